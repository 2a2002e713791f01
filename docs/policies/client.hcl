# Policy of one API client, or of the Vault Agent beside it: reads its own
# current key. For the key "acme" of a mount at apikeys/; change both.

path "apikeys/static-creds/acme" {
  capabilities = ["read"]
}
