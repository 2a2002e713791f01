# Policy of a verifier: an API server on sdk/verifier, or a gateway, which decides
# about keys by itself. For a mount at apikeys/; change the paths for another.
# Who asks Vault about each key has api-server.hcl instead.
#
# What it learns of keys are ids, digests, states, scopes and metadata, never a
# key itself.
#
# Not here is "verifiers", which a verifier does not need: it names all others,
# who they are to Vault, and the boot that each reports under. Where several share
# a login, that text is what keeps one from reporting in another's name. To let a
# verifier look at itself alone, allow "read" on apikeys/verifiers/ and its name;
# operator.hcl allows all.

# What is needed to decide.
path "apikeys/lookup" {
  capabilities = ["update"]
}
# What has changed since.
path "apikeys/sync" {
  capabilities = ["read"]
}
# Report what was accepted and refused.
path "apikeys/usage" {
  capabilities = ["update"]
}
