// SPDX-License-Identifier: MPL-2.0

package verifierhttp

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
)

// The errors of [Places.Find]. They hold nothing of what the request presents.
var (
	ErrNoKey       = errors.New("the request presents no API key")
	ErrSeveralKeys = errors.New("the request presents several API keys, want one")
	ErrQuery       = errors.New("the request's query is not well-formed, so that a key in it could be read in several ways")
	ErrNoBearer    = errors.New("the request's bearer token is not written as RFC 6750 has it: Bearer, one or more spaces, the token")
)

const (
	authorization = "Authorization"
	bearer        = "Bearer"
)

// Headers are the header fields of a request, such as an [http.Header].
type Headers interface {
	// Values returns all values of a field whose name is in canonical form.
	Values(name string) []string
}

// Places are where a request may present its key. A key that stands in the URL
// ends up in logs, histories and Referer fields: leave Query empty unless
// clients cannot be changed.
type Places struct {
	// Bearer looks into Authorization, for the scheme Bearer. Other schemes are
	// somebody else's and are left alone.
	Bearer bool
	// Fields are header fields that hold the key and nothing else. NewPlaces
	// brings their names into canonical form.
	Fields []string
	// Query is the name of a parameter of the URL; empty for none.
	Query string
}

// DefaultPlaces are Authorization: Bearer, and X-API-Key.
func DefaultPlaces() Places {
	return Places{Bearer: true, Fields: []string{"X-Api-Key"}}
}

// NewPlaces checks places and brings the names of fields into canonical form.
// Authorization among the fields means its scheme Bearer.
func NewPlaces(p Places) (Places, error) {
	checked := Places{Bearer: p.Bearer, Query: p.Query}
	for _, field := range p.Fields {
		if !isFieldName(field) {
			return Places{}, fmt.Errorf("a header field must have a name of letters, digits and hyphens, got %q", field)
		}
		if field = textproto.CanonicalMIMEHeaderKey(field); field == authorization {
			checked.Bearer = true
			continue
		}
		checked.Fields = append(checked.Fields, field)
	}
	if !checked.Bearer && len(checked.Fields) == 0 && checked.Query == "" {
		return Places{}, errors.New("no place is named where a request presents its key")
	}
	return checked, nil
}

// Find returns the one key that a request presents: nothing says that it is
// well-formed, or how long it is. It returns ErrNoKey where no place has one,
// ErrNoBearer for a bearer token behind anything but spaces, and ErrSeveralKeys
// where a field or a parameter comes twice or two places have a key, be it the
// same: whoever reads the request next could take another one than was checked.
// A URL's query is looked at only if Query names a parameter; one that is not
// well-formed is ErrQuery.
func (p Places) Find(h Headers, rawQuery string) (string, error) {
	var found string
	if p.Bearer {
		values := h.Values(authorization)
		if len(values) > 1 {
			return "", ErrSeveralKeys
		}
		if len(values) == 1 {
			key, err := bearerToken(values[0])
			if err != nil {
				return "", err
			}
			found = key
		}
	}
	for _, field := range p.Fields {
		values := h.Values(field)
		if len(values) == 0 {
			continue
		}
		if len(values) > 1 || found != "" {
			return "", ErrSeveralKeys
		}
		found = values[0]
	}
	if p.Query != "" && rawQuery != "" {
		keys, err := parameter(rawQuery, p.Query)
		if err != nil {
			return "", err
		}
		if len(keys) > 1 || len(keys) == 1 && found != "" {
			return "", ErrSeveralKeys
		}
		if len(keys) == 1 {
			found = keys[0]
		}
	}
	if found == "" {
		return "", ErrNoKey
	}
	return found, nil
}

// FindIn is Find for a request.
func (p Places) FindIn(r *http.Request) (string, error) {
	return p.Find(r.Header, r.URL.RawQuery)
}

// bearerToken returns the token of the scheme Bearer, whose name may be in any
// case, and an empty one for another scheme.
func bearerToken(value string) (string, error) {
	if len(value) < len(bearer) || !strings.EqualFold(value[:len(bearer)], bearer) {
		return "", nil
	}
	rest := value[len(bearer):]
	token := strings.TrimLeft(rest, " ")
	switch {
	case rest == "":
		return "", nil
	case len(token) < len(rest):
		if strings.ContainsAny(token, " \t") {
			return "", ErrNoBearer
		}
		return token, nil
	case rest[0] == '\t':
		return "", ErrNoBearer
	}
	return "", nil // the scheme of another name that begins alike
}

// parameter returns the values of a parameter, or ErrQuery.
func parameter(rawQuery, name string) ([]string, error) {
	if !strings.Contains(rawQuery, name) && !strings.ContainsAny(rawQuery, "%+") {
		return nil, nil
	}
	values, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, ErrQuery
	}
	return values[name], nil
}

func isFieldName(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' {
			return false
		}
	}
	return s != ""
}
