# Policy of an API client with leased keys: makes a key of its own for each
# lease, and rotates those that it made itself; the engine refuses others'. For
# the role "trading" of a mount at apikeys/; change both.
#
# Renewing leases is in Vault's default policy.

path "apikeys/creds/trading" {
  capabilities = ["read"]
}
path "apikeys/rotate-leased/+" {
  capabilities = ["update"]
}
