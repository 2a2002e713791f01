// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
)

const (
	// pastColumns and futureColumns are how the picture's width is shared, and
	// column is the time that one character stands for.
	pastColumns   = 28
	futureColumns = 16
	column        = time.Second
	watchEvery    = 100 * time.Millisecond
)

// version is one entry of versions in the answer of keys/acme.
type version struct {
	Version       int       `json:"version"`
	State         string    `json:"state"`
	AcceptedUntil time.Time `json:"accepted_until"`
	LastUsedTime  time.Time `json:"last_used_time"`
	UseCount      int       `json:"use_count"`
}

// change is a state that a version was seen to enter.
type change struct {
	at    time.Time
	state string
}

// watcher reads keys/acme again and again and remembers what it saw.
type watcher struct {
	vault *api.Client
	quit  chan struct{}
	done  sync.WaitGroup

	mu       sync.Mutex
	versions []version // oldest first
	past     map[int][]change
}

func newWatcher(vault *api.Client) *watcher {
	return &watcher{vault: vault, quit: make(chan struct{}), past: map[int][]change{}}
}

func (w *watcher) start(ctx context.Context) {
	w.done.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			_, _ = w.look(ctx) // a miss leaves the picture as it was
			select {
			case <-ctx.Done():
				return
			case <-w.quit:
				return
			case <-tick.C:
			}
		}
	})
}

func (w *watcher) stop() {
	select {
	case <-w.quit:
	default:
		close(w.quit)
	}
	w.done.Wait()
}

// look reads the versions now.
func (w *watcher) look(ctx context.Context) ([]version, error) {
	secret, err := w.vault.Logical().ReadWithContext(ctx, "apikeys/keys/acme")
	if err != nil || secret == nil {
		return nil, fmt.Errorf("read keys/acme: %w", err)
	}
	text, err := json.Marshal(secret.Data["versions"])
	if err != nil {
		return nil, err
	}
	var versions []version
	if err := json.Unmarshal(text, &versions); err != nil {
		return nil, err
	}
	slices.Reverse(versions)
	w.note(time.Now(), versions)
	return versions, nil
}

func (w *watcher) note(now time.Time, versions []version) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.versions = versions
	for _, v := range versions {
		past := w.past[v.Version]
		if len(past) == 0 || past[len(past)-1].state != v.State {
			w.past[v.Version] = append(past, change{now, v.State})
		}
	}
}

// draw is the picture at now: the versions as bars in time, with what Vault
// knows of their use.
func (w *watcher) draw(now time.Time) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	scale := fmt.Sprintf("%-*s%s%*s", pastColumns-1, fmt.Sprintf("-%ds", pastColumns), "now", futureColumns-2, fmt.Sprintf("+%ds", futureColumns))
	lines := []string{fmt.Sprintf("%14s%s   verified", "", scale)}
	for _, v := range w.versions {
		used := "never"
		if !v.LastUsedTime.IsZero() {
			used = fmt.Sprintf("%5d, last %.1fs ago", v.UseCount, max(0, now.Sub(v.LastUsedTime).Seconds()))
		}
		lines = append(lines, fmt.Sprintf("v%d %-11s%s   %s", v.Version, v.State, bar(v, w.past[v.Version], now), used))
	}
	return lines
}

// legend explains the characters of a bar.
const legend = "# active   = superseded, still accepted   - will still be accepted   ! compromised"

// bar is one version: what it was until now, a mark for now, and what is
// planned.
func bar(v version, past []change, now time.Time) string {
	var b strings.Builder
	for i := range pastColumns {
		from := now.Add(-column * time.Duration(pastColumns-i))
		b.WriteByte(mark(past, from, from.Add(column)))
	}
	b.WriteByte('|')
	for i := range futureColumns {
		if v.State == "retiring" && v.AcceptedUntil.After(now.Add(column*time.Duration(i))) {
			b.WriteByte('-')
		} else {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// mark is the character of what a version was between from and to, or of the
// moment in which it was ended for good.
func mark(past []change, from, to time.Time) byte {
	state := ""
	for _, c := range past {
		if !c.at.Before(to) {
			break
		}
		state = c.state
		if (state == "compromised" || state == "revoked") && c.at.Before(from) {
			return ' '
		}
	}
	switch state {
	case "active":
		return '#'
	case "pending", "retiring":
		return '='
	case "compromised", "revoked":
		return '!'
	}
	return ' '
}
