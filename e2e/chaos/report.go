// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/chaos/oracle"
)

// Report is what a run has seen.
type Report struct {
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Seed    uint64    `json:"seed"`
	// Missing is what the machine did not allow, and so was not tried.
	Missing []string `json:"missing,omitempty"`
	// Network is what partitions were made with, if they were.
	Network string `json:"network,omitempty"`
	// Usable are the faults that could be tried.
	Usable  []string `json:"usable"`
	Strikes []Strike `json:"faults"`
	oracle.Summary
	Changes map[string]int `json:"changes"`
	// Clients are the uses by clients of each kind, and how many were refused.
	Clients map[string]Uses `json:"clients"`
	Leased  int64           `json:"leased_keys"`
	Jobs    int64           `json:"bulk_jobs"`
	// Deleted are the keys that came and went meanwhile, and whose events were
	// all looked for.
	Deleted int `json:"deleted_keys"`
	// Events were delivered, Repeated more than once; BadMessages had a wrong
	// signature or form.
	Events      int `json:"events"`
	Repeated    int `json:"events_repeated"`
	BadMessages int `json:"bad_messages"`
	// Compared are the keys whose history was compared with what was delivered.
	Compared int `json:"histories_compared"`
	// Snapshot tells how the restore of a snapshot went.
	Snapshot string `json:"snapshot"`
	// Edges tell what the verifiers of the SDK did.
	Edges map[string]string `json:"edges,omitempty"`
}

// Uses are uses of keys.
type Uses struct {
	Uses    int64 `json:"uses"`
	Refused int64 `json:"refused"`
}

// Violated is how many violations there were.
func (r *Report) Violated() int {
	n := 0
	for _, count := range r.ByKind {
		n += count
	}
	return n
}

// write writes chaos.md and chaos.json.
func (r *Report) write(dir string) error {
	if err := mkdir(dir); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "chaos.json"), append(text, '\n'), 0o600),
		os.WriteFile(filepath.Join(dir, "chaos.md"), []byte(r.Markdown()), 0o600),
	)
}

// Markdown is the report for people.
func (r *Report) Markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Chaos: %s\n", r.Began.UTC().Format("2006-01-02 15:04"))
	line("%d faults in %s, %d verifications, %d rotations of %d keys, seed %d: **%d violations**.\n",
		len(r.Strikes), (time.Duration(r.Seconds) * time.Second), r.Verifications(), r.Rotations, r.Keys, r.Seed, r.Violated())
	if r.Network != "" {
		line("Partitions were made with %s.\n", r.Network)
	}
	for _, m := range r.Missing {
		line("Not tried, because this machine lacks %s\n", m)
	}

	line("## What was promised\n\n| violation | count |\n|---|---:|")
	for _, kind := range oracle.Kinds {
		line("| %s | %d |", kind, r.ByKind[kind])
	}
	for _, v := range r.Violations {
		line("\n    %s", v)
	}

	line("\n## Verifications\n\n| | by Vault | at the edge |\n|---|---:|---:|")
	vault, edge := r.class("Vault"), r.class("edge")
	for _, row := range []struct {
		name string
		of   func(c oracle.Class) int
	}{
		{"all", func(c oracle.Class) int { return c.Verifications }},
		{"accepted", func(c oracle.Class) int { return c.Accepted }},
		{"refused", func(c oracle.Class) int { return c.Refused }},
		{"unavailable", func(c oracle.Class) int { return c.Unavailable }},
		{"no answer", func(c oracle.Class) int { return c.Errors }},
		{"all, while no fault was on", func(c oracle.Class) int { return c.Calm }},
		{"unavailable or no answer, while no fault was on", func(c oracle.Class) int { return c.CalmLost }},
	} {
		line("| %s | %d | %d |", row.name, row.of(vault), row.of(edge))
	}
	line("| accepted after their end, within the bound | %d | %d |", vault.Late, edge.Late)
	line("| accepted late by at most | %.0f ms | %.0f ms |", vault.MaxLate, edge.MaxLate)
	codes := map[string]bool{}
	for _, c := range []oracle.Class{vault, edge} {
		for code := range c.Codes {
			codes[code] = true
		}
	}
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		line("| refused as %s | %d | %d |", code, vault.Codes[code], edge.Codes[code])
	}

	line("\n## Faults\n\n| fault | times | lasted on average | whole again after, at most |\n|---|---:|---:|---:|")
	byName := map[string][]Strike{}
	for _, s := range r.Strikes {
		byName[s.Fault] = append(byName[s.Fault], s)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		var lasted, healed float64
		for _, s := range byName[name] {
			lasted += s.Lasted
			healed = max(healed, s.Healed)
		}
		line("| %s | %d | %.1f s | %.1f s |", name, len(byName[name]), lasted/float64(len(byName[name])), healed)
	}
	line("| all | %d | | |", len(r.Strikes))

	line("\n## Changes\n\nIn doubt: the answer was lost or an error; the call was repeated where that is safe, and the key read again.\n\n| change | count |\n|---|---:|")
	for _, name := range slices.Sorted(maps.Keys(r.Changes)) {
		line("| %s | %d |", name, r.Changes[name])
	}

	line("\n## Clients\n\nOf %d answers to clients that read their keys, and of %d uses by those that kept to the ttl of such an answer, each was judged: a refusal in its time is a violation, unless somebody has ended the version since.\n\n| clients | uses | refused |\n|---|---:|---:|", r.Fetches, r.InTime)
	for _, name := range slices.Sorted(maps.Keys(r.Clients)) {
		line("| %s | %d | %d |", name, r.Clients[name].Uses, r.Clients[name].Refused)
	}

	line("\n## Events\n\n%d events were delivered, %d of them more than once, %d with a wrong signature or form. The histories of %d keys were compared with them, and %d keys that were made and deleted meanwhile were told of from beginning to end.", r.Events, r.Repeated, r.BadMessages, r.Compared, r.Deleted)
	line("\n## Snapshot\n\n%s", r.Snapshot)
	if len(r.Edges) > 0 {
		line("\n## Verifiers at the edge\n")
		for _, name := range slices.Sorted(maps.Keys(r.Edges)) {
			line("- %s: %s", name, r.Edges[name])
		}
	}
	return b.String()
}

func (r *Report) class(name string) oracle.Class {
	if c := r.Classes[name]; c != nil {
		return *c
	}
	return oracle.Class{}
}
