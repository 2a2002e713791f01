# Policy of a Prometheus server: reads the metrics of the mount and nothing
# else. For a mount at apikeys/; change the path for another.
#
# The second path lets the token renew itself, where something renews it; a
# token whose role is periodic then lives as long as that goes on.

path "apikeys/metrics" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
