// SPDX-License-Identifier: MPL-2.0

package verifierhttp_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
)

func TestFindTheOneKey(t *testing.T) {
	t.Parallel()
	every := verifierhttp.Places{Bearer: true, Fields: []string{"X-Api-Key", "X-Token"}, Query: "api_key"}
	long := strings.Repeat("k", 10_000)
	for _, c := range []struct {
		name   string
		places verifierhttp.Places
		header http.Header
		query  string
		want   string
		err    error
	}{
		{name: "bearer", header: http.Header{"Authorization": {"Bearer abc"}}, want: "abc"},
		{name: "the scheme in any case", header: http.Header{"Authorization": {"bEaReR abc"}}, want: "abc"},
		{name: "several spaces", header: http.Header{"Authorization": {"Bearer   abc"}}, want: "abc"},
		{name: "field", header: http.Header{"X-Api-Key": {"abc"}}, want: "abc"},
		{name: "another field", header: http.Header{"X-Token": {"abc"}}, want: "abc"},
		{name: "query", query: "a=1&api_key=a%62c", want: "abc"},
		{name: "an escaped name", query: "api%5Fkey=abc", want: "abc"},
		{name: "long", header: http.Header{"X-Api-Key": {long}}, want: long},
		{name: "binary", header: http.Header{"X-Api-Key": {"a\x80\xff"}}, want: "a\x80\xff"},
		{name: "look-alike of a scheme", header: http.Header{"Authorization": {"Вearer abc"}}, err: verifierhttp.ErrNoKey},
		{name: "basic is somebody else's", header: http.Header{"Authorization": {"Basic abc"}, "X-Api-Key": {"key"}}, want: "key"},
		{name: "a scheme that begins alike", header: http.Header{"Authorization": {"BearerX abc"}}, err: verifierhttp.ErrNoKey},

		{name: "nothing", err: verifierhttp.ErrNoKey},
		{name: "an empty field", header: http.Header{"X-Api-Key": {""}}, err: verifierhttp.ErrNoKey},
		{name: "bearer without a token", header: http.Header{"Authorization": {"Bearer"}}, err: verifierhttp.ErrNoKey},
		{name: "bearer and a space", header: http.Header{"Authorization": {"Bearer "}}, err: verifierhttp.ErrNoKey},
		{name: "an empty parameter", query: "api_key=", err: verifierhttp.ErrNoKey},
		{name: "a tab", header: http.Header{"Authorization": {"Bearer\tabc"}}, err: verifierhttp.ErrNoBearer},
		{name: "a space and a tab", header: http.Header{"Authorization": {"Bearer \tabc"}}, err: verifierhttp.ErrNoBearer},
		{name: "two tokens", header: http.Header{"Authorization": {"Bearer abc def"}}, err: verifierhttp.ErrNoBearer},

		{name: "authorization twice", header: http.Header{"Authorization": {"Bearer abc", "Bearer abc"}}, err: verifierhttp.ErrSeveralKeys},
		{name: "authorization twice, once basic", header: http.Header{"Authorization": {"Basic abc", "Bearer abc"}}, err: verifierhttp.ErrSeveralKeys},
		{name: "a field twice", header: http.Header{"X-Api-Key": {"abc", "abc"}}, err: verifierhttp.ErrSeveralKeys},
		{name: "a field twice, once empty", header: http.Header{"X-Api-Key": {"", "abc"}}, err: verifierhttp.ErrSeveralKeys},
		{name: "bearer and a field", header: http.Header{"Authorization": {"Bearer abc"}, "X-Api-Key": {"abc"}}, err: verifierhttp.ErrSeveralKeys},
		{name: "two fields", header: http.Header{"X-Token": {"abc"}, "X-Api-Key": {"abc"}}, err: verifierhttp.ErrSeveralKeys},
		{name: "a field and the query", header: http.Header{"X-Api-Key": {"abc"}}, query: "api_key=abc", err: verifierhttp.ErrSeveralKeys},
		{name: "the query twice", query: "api_key=abc&api_key=def", err: verifierhttp.ErrSeveralKeys},
		{name: "a query that readers disagree on", query: "a=1;api_key=abc", err: verifierhttp.ErrQuery},

		{name: "the URL is not looked at", places: verifierhttp.DefaultPlaces(), query: "api_key=abc", err: verifierhttp.ErrNoKey},
		{name: "nor refused", places: verifierhttp.DefaultPlaces(), header: http.Header{"X-Api-Key": {"abc"}}, query: "api_key=abc", want: "abc"},
		{name: "without bearer", places: verifierhttp.Places{Fields: []string{"X-Api-Key"}}, header: http.Header{"Authorization": {"Bearer abc"}}, err: verifierhttp.ErrNoKey},
	} {
		places := c.places
		if len(places.Fields) == 0 {
			places = every
		}
		got, err := places.Find(c.header, c.query)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: got %.20q, %v; want %.20q, %v", c.name, got, err, c.want, c.err)
		}
	}
}

func TestNewPlaces(t *testing.T) {
	t.Parallel()
	p, err := verifierhttp.NewPlaces(verifierhttp.Places{Fields: []string{"x-api-key", "authorization"}})
	if err != nil || !p.Bearer || len(p.Fields) != 1 || p.Fields[0] != "X-Api-Key" {
		t.Errorf("got %+v, %v", p, err)
	}
	for _, bad := range []verifierhttp.Places{{}, {Fields: []string{""}}, {Fields: []string{"X Key"}}, {Fields: []string{"X-Key:"}}, {Fields: []string{"X_Key"}}} {
		if p, err := verifierhttp.NewPlaces(bad); err == nil {
			t.Errorf("%+v became %+v", bad, p)
		}
	}
}

func TestFindAllocatesNothing(t *testing.T) {
	places := verifierhttp.DefaultPlaces()
	header := http.Header{"Authorization": {"Bearer abc"}, "Accept": {"*/*"}}
	if n := testing.AllocsPerRun(100, func() { _, _ = places.Find(header, "a=1") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
