# Policy of an API server or a gateway: checks the keys that requests present,
# and learns nothing of any other. For a mount at apikeys/; change the path for
# another.

path "apikeys/verify" {
  capabilities = ["update"]
}
# Reports what it verified by itself, without asking Vault.
path "apikeys/usage" {
  capabilities = ["update"]
}
