terraform {
  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 4.3"
    }
  }
}

resource "vault_mount" "apikeys" {
  path           = "apikeys"
  type           = "vault-plugin-secrets-apikeys"
  plugin_version = "v0.1.0"
  description    = "API keys of our partners"
}

resource "vault_generic_endpoint" "partner" {
  path                 = "${vault_mount.apikeys.path}/roles/partner"
  ignore_absent_fields = true

  data_json = jsonencode({
    prefix          = "tm_live"
    scopes          = ["orders:write", "orders:read", "reports:*"]
    rotation_period = 2592000
    rotation_jitter = 10
    overlap_period  = 86400
    bound_cidrs     = ["192.0.2.0/24", "2001:db8::/32"]
    reminders       = [50, 80, 95]
    custom_metadata = {
      team = "partners"
      tier = "gold"
    }
  })
}

resource "vault_generic_endpoint" "acme" {
  path                 = "${vault_mount.apikeys.path}/keys/acme"
  ignore_absent_fields = true
  depends_on           = [vault_generic_endpoint.partner]

  data_json = jsonencode({
    role    = "partner"
    scopes  = ["orders:read"]
    enabled = true
    custom_metadata = {
      customer = "4711"
    }
  })
}

resource "vault_policy" "acme" {
  name   = "apikeys-acme"
  policy = <<-EOT
    path "${vault_mount.apikeys.path}/static-creds/acme" {
      capabilities = ["read"]
    }
  EOT
}
