// SPDX-License-Identifier: MPL-2.0

// Command apikeys is the companion of the API keys secrets engine, by the
// conventions of Vault's own command line: flags have one dash, help is at -h,
// and a command ends with 0, with 1 if it was called wrongly, or with 2 if
// something else went wrong.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/cli"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/internal/version"
)

// The codes with which a command ends.
const (
	exitOK     = 0
	exitUsage  = 1
	exitFailed = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the program without the process.
func run(args []string, stdout, stderr io.Writer) int {
	ui := &cli.BasicUi{Writer: stdout, ErrorWriter: stderr}
	app := &cli.CLI{
		Name: "apikeys", Version: "apikeys " + version.String(), Args: args,
		Commands: map[string]cli.CommandFactory{
			"gateway": func() (cli.Command, error) { return &gatewayCommand{ui: ui, stdout: stdout, stderr: stderr}, nil },
			"version": func() (cli.Command, error) { return &versionCommand{ui: ui}, nil },
		},
		HelpFunc: cli.BasicHelpFunc("apikeys"), HelpWriter: stdout, ErrorWriter: stderr,
	}
	code, err := app.Run()
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "Error: %s\n", err)
		return exitUsage
	}
	if code == cli.RunResultHelp || code == 127 {
		return exitUsage
	}
	return code
}

// versionCommand is `apikeys version`.
type versionCommand struct{ ui cli.Ui }

func (*versionCommand) Synopsis() string { return "Prints the version" }

func (*versionCommand) Help() string {
	return `
Usage: apikeys version

  Prints the version and the commit that this program was built from.
`
}

func (c *versionCommand) Run(args []string) int {
	if len(args) > 0 {
		c.ui.Error(fmt.Sprintf("Too many arguments (expected 0, got %d)", len(args)))
		return exitUsage
	}
	c.ui.Output("apikeys " + version.String())
	return exitOK
}
