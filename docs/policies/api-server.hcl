# Policy of an API server that asks Vault about each key that a request presents,
# and of nothing else. For a mount at apikeys/; change the path for another.
# Who decides by itself, with sdk/verifier or the gateway, has verifier.hcl
# instead.
#
# What it learns of keys that are presented to it are ids, states, scopes and
# metadata.

path "apikeys/verify" {
  capabilities = ["update"]
}
