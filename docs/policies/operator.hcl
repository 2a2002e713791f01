# Policy of an operator: configures the mount, its roles and its keys, and acts
# in incidents. For a mount at apikeys/; change the paths for another.
#
# It cannot read a client's current key (static-creds) nor verify one. It does
# see the keys that it makes: creating and rotating answer the new key.

path "apikeys/config" {
  capabilities = ["read", "update", "patch"]
}

path "apikeys/roles" {
  capabilities = ["list"]
}
path "apikeys/roles/+" {
  capabilities = ["create", "read", "update", "patch", "delete"]
}
# Rotate all keys of a role, and see how far that is.
path "apikeys/roles/+/rotate" {
  capabilities = ["read", "update"]
}

path "apikeys/keys" {
  capabilities = ["list"]
}
path "apikeys/keys/+" {
  capabilities = ["create", "read", "update", "patch", "delete"]
}
path "apikeys/import" {
  capabilities = ["update"]
}
path "apikeys/history/+" {
  capabilities = ["read"]
}

# What a rollover or a leak may call for.
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
path "apikeys/revoke/+" {
  capabilities = ["update"]
}

# Who still uses what, and how far rollovers are.
path "apikeys/usage/+" {
  capabilities = ["read"]
}
path "apikeys/rollovers" {
  capabilities = ["list"]
}
path "apikeys/rollovers/+" {
  capabilities = ["read"]
}
# Which verifiers are at work, and how far each has followed. A verifier may have
# a name with slashes, such as eu/1.
path "apikeys/verifiers" {
  capabilities = ["list"]
}
path "apikeys/verifiers/*" {
  capabilities = ["read"]
}

# Who is told of it. A webhook that may reach private addresses (allow_private)
# lets its maker send requests from Vault's network.
path "apikeys/webhooks" {
  capabilities = ["list"]
}
path "apikeys/webhooks/+" {
  capabilities = ["create", "read", "update", "patch", "delete"]
}
path "apikeys/webhooks/+/test" {
  capabilities = ["update"]
}

path "apikeys/sweep" {
  capabilities = ["update"]
}
path "apikeys/info" {
  capabilities = ["read"]
}
