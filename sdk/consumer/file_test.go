// SPDX-License-Identifier: MPL-2.0

package consumer_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
)

func TestWhatAFileMayHold(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	for name, test := range map[string]struct {
		content string
		key     string
		version int
		err     string
	}{
		"the key":         {"secret-of-version-1", "secret-of-version-1", 0, ""},
		"with line ends":  {"\r\n secret-of-version-1\r\n", "secret-of-version-1", 0, ""},
		"the answer":      {`{"api_key":"secret-of-version-4","key_id":"Exam9leKey1d","version":4,"ttl":3600,"rotation_period":3600}` + "\n", "secret-of-version-4", 4, ""},
		"without version": {`{"api_key":"secret-of-version-4"}`, "secret-of-version-4", 0, ""},
		"version in text": {`{"api_key":"secret-of-version-4","version":"4"}`, "secret-of-version-4", 4, ""},
		"nothing":         {"", "", 0, "the file is empty"},
		"white space":     {" \n\t ", "", 0, "the file is empty"},
		"two lines":       {"secret-of-version-1\nsecret-of-version-2", "", 0, "an API key is 1 to 2048 printable"},
		"binary":          {"secret-of-version-1\x00\x01", "", 0, "an API key is 1 to 2048 printable"},
		"long":            {strings.Repeat("s", 2049), "", 0, "an API key is 1 to 2048 printable"},
		"endless":         {strings.Repeat("s", 1<<20), "", 0, "the file is longer than 65536 bytes"},
		"half of JSON":    {`{"api_key":"secret-of-ver`, "", 0, "is not one JSON object"},
		"two of JSON":     {`{"api_key":"secret-of-version-1"}{"api_key":"secret-of-version-2"}`, "", 0, "is not one JSON object"},
		"null":            {`{"api_key":null}`, "", 0, "is not one JSON object"},
		"no key":          {`{"key":"secret-of-version-1"}`, "", 0, "is not one JSON object"},
		"empty key":       {`{"api_key":""}`, "", 0, "an API key is 1 to 2048 printable"},
		"a list":          {`{"api_key":["secret-of-version-1"]}`, "", 0, "is not one JSON object"},
		"odd version":     {`{"api_key":"secret-of-version-1","version":1.5}`, "", 0, "is not one JSON object"},
		"minus version":   {`{"api_key":"secret-of-version-1","version":-1}`, "", 0, "is not one JSON object"},
		"huge version":    {`{"api_key":"secret-of-version-1","version":99999999999999999999}`, "", 0, "is not one JSON object"},
	} {
		render(t, file, test.content)
		got, err := consumer.File(file).Fetch(t.Context())
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) || strings.Contains(err.Error(), "secret-of") || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || got.Key.Reveal() != test.key || got.Key.Version() != test.version {
			t.Errorf("%s: %v, %v", name, got.Key, err)
		}
	}
	if _, err := consumer.File(filepath.Join(t.TempDir(), "none")).Fetch(t.Context()); err == nil {
		t.Error("a file that is not there")
	}
}

func TestAFileIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		file := filepath.Join(t.TempDir(), "key")
		s := w.source(func(c *consumer.Config) { c.Origin, c.Confirmer = consumer.File(file), w })
		run(t, s)
		time.Sleep(time.Minute) // nothing is rendered yet
		render(t, file, `{"api_key":"`+at(1)+`","version":1}`)
		api := w.client(s)
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		// A rotation with an overlap: by looking.
		w.rotate(time.Minute)
		render(t, file, at(2))
		time.Sleep(1100 * time.Millisecond)
		if s.Current().Reveal() != at(2) {
			t.Errorf("a second later it is %v", s.Current())
		}
		// Without: the request waits for the file.
		w.rotate(0)
		go func() {
			time.Sleep(3 * time.Second)
			render(t, file, `{"api_key":"`+at(3)+`","version":3}`)
		}()
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		// A file that is broken or gone leaves the last key in use.
		render(t, file, "")
		time.Sleep(5 * time.Second)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if status := post(t, api, "x"); status != http.StatusOK || s.Err() == nil {
			t.Errorf("status %d, %v", status, s.Err())
		}
		synctest.Wait()
		if got := strings.Join(w.confirmed, " "); got != "eu:1 eu:3" {
			t.Errorf("confirmed %s", got)
		}
	})
}

// render replaces a file in one step, as Agent does.
func render(t testing.TB, file, content string) {
	t.Helper()
	if err := os.WriteFile(file+".new", []byte(content), 0o600); err != nil {
		t.Error(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Error(err)
	}
}
