# vault agent -config=docs/how-to/examples/agent-file.hcl
#
# Keeps the current API key of acme in the file api-key. The server's address
# comes from VAULT_ADDR. Use absolute paths when a service manager starts it.

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "role-id"
      secret_id_file_path                 = "secret-id"
      remove_secret_id_file_after_reading = false
    }
  }
}

template {
  destination          = "api-key"
  perms                = "0600"
  error_on_missing_key = true
  contents             = "{{ with secret \"apikeys/static-creds/acme\" }}{{ .Data.api_key }}{{ end }}"
}
