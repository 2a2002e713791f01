# Policy of an API server or a gateway: checks the keys that requests present,
# by asking Vault or by itself. For a mount at apikeys/; change the paths for
# another.
#
# What it learns of keys are ids, digests, states, scopes and metadata, never a
# key itself.

# Ask Vault about a key.
path "apikeys/verify" {
  capabilities = ["update"]
}
# Or keep what is needed to decide, and follow what changes.
path "apikeys/lookup" {
  capabilities = ["update"]
}
path "apikeys/sync" {
  capabilities = ["read"]
}
# Report what was verified without asking Vault.
path "apikeys/usage" {
  capabilities = ["update"]
}
