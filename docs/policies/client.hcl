# Policy of one API client, or of the Vault Agent beside it: reads its own
# current key, and confirms which version it uses. For the key "acme" of a mount
# at apikeys/; change both.

path "apikeys/static-creds/acme" {
  capabilities = ["read"]
}
path "apikeys/confirm/acme" {
  capabilities = ["update"]
}
