# Policy of a rotator: a pipeline, or a person, that rolls keys over and looks
# after them while they do. For a mount at apikeys/; change the paths for
# another.
#
# It makes, changes and deletes no keys or roles, and cannot revoke. It sees the
# keys that it rotates; to keep them from it, have it ask for a wrapped answer:
# min_wrapping_ttl on apikeys/rotate/+ enforces that.

path "apikeys/rotate/+" {
  capabilities = ["update"]
}
path "apikeys/promote/+" {
  capabilities = ["update"]
}
path "apikeys/rollback/+" {
  capabilities = ["update"]
}
path "apikeys/extend/+" {
  capabilities = ["update"]
}
path "apikeys/retire/+" {
  capabilities = ["update"]
}
path "apikeys/roles/+/rotate" {
  capabilities = ["read", "update"]
}

path "apikeys/keys" {
  capabilities = ["list"]
}
path "apikeys/keys/+" {
  capabilities = ["read"]
}
path "apikeys/history/+" {
  capabilities = ["read"]
}

# Who is left on the old version.
path "apikeys/usage/+" {
  capabilities = ["read"]
}
path "apikeys/rollovers" {
  capabilities = ["list"]
}
path "apikeys/rollovers/+" {
  capabilities = ["read"]
}
