# /etc/apikeys/gateway.hcl: apikeys gateway beside a proxy on the same host.
# Every field: docs/reference/gateway.md

vault {
  address = "https://vault.example.com:8200"
  mount   = "apikeys"

  auth "approle" {
    role_id_file   = "/etc/apikeys/role-id"
    secret_id_file = "/etc/apikeys/secret-id"
  }
}

verifier {
  # Counted use is told apart by it: a region, a cluster.
  source = "eu-west"
}

# Where the proxy asks, and where probes and Prometheus do.
listener "http" {
  address = "127.0.0.1:9180"
}
listener "grpc" {
  address = "127.0.0.1:9181"
}
listener "admin" {
  address = "127.0.0.1:9182"
}

# Who may ask, and whose X-Forwarded-For is believed.
trusted_proxies = ["127.0.0.1/32", "::1/128"]

key {
  headers = ["Authorization", "X-API-Key"]
  hide    = true
}

deprecation_link = "https://example.com/docs/rotating-keys"

# The first route that fits decides. What fits none is refused.
route "health" {
  path   = "/health"
  public = true
}
route "orders-read" {
  path    = "/v1/orders"
  methods = ["GET", "HEAD"]
  scopes  = ["orders:read"]
}
route "orders-write" {
  path   = "/v1/orders"
  scopes = ["orders:write"]
}
