# Policy of an API server or a gateway: checks the keys that requests present,
# and learns nothing of any other. For a mount at apikeys/; change the path for
# another.

path "apikeys/verify" {
  capabilities = ["update"]
}
