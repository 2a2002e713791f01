// SPDX-License-Identifier: MPL-2.0

// Package docstest keeps the documentation true. Its tests run every command
// of the README, the tutorial, the guides and the reference against a real Vault,
// compare the output that a page shows with what came, apply the Terraform
// examples as the provider does, run the Agent examples, and compare the
// reference with the code:
//
//	go test -run Docs ./e2e/docstest
//	go test -run Docs ./e2e/docstest -update   # write the generated parts of docs/reference/api.md
//
// # How a page is run
//
// A page is run from top to bottom in one bash, with a dev server of its own
// where the engine is registered, and enabled at apikeys/ unless the page does
// that itself. Two kinds of fenced blocks are run:
//
//   - shell: commands only.
//   - console: commands after "$ ", each with the output that it shows, if any.
//
// In an output, "..." stands for any text within a line, and alone on a line for
// any lines. Columns may be of any width. API keys, key ids, times and hashes are
// compared by their form only, so a page shows invented ones.
//
// A comment on a line of its own says what is special about the next block:
//
//	<!-- not run: REASON -->   the test lists it, and does not run it
//	<!-- exit 2 -->            its last command ends with this code
//	<!-- until -->             its last command is repeated until it shows this output
//	<!-- background -->        its last command stays running; it is stopped with the page
package docstest
