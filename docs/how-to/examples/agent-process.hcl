# vault agent -config=docs/how-to/examples/agent-process.hcl
#
# Runs a program with the current API key of acme in ACME_API_KEY, and starts it
# anew with the next one. Here the program is client.sh; put yours.

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "role-id"
      secret_id_file_path                 = "secret-id"
      remove_secret_id_file_after_reading = false
    }
  }
}

env_template "ACME_API_KEY" {
  error_on_missing_key = true
  contents             = "{{ with secret \"apikeys/static-creds/acme\" }}{{ .Data.api_key }}{{ end }}"
}

exec {
  command                   = ["/bin/sh", "docs/how-to/examples/client.sh"]
  restart_on_secret_changes = "always"
  restart_stop_signal       = "SIGTERM"
}
