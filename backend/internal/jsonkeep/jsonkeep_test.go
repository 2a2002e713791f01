// SPDX-License-Identifier: MPL-2.0

package jsonkeep

import (
	"encoding/json"
	"reflect"
	"testing"
)

type inner struct {
	B int `json:"b,omitempty"`
}

type entry struct {
	inner
	A string `json:"a,omitempty"`
	X Extra  `json:"-"`
}

func TestUnknownFieldsSurviveAReadChangeWrite(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ in, change, want string }{
		"one unknown field":         {`{"a":"x","later":{"deep":[1,2]}}`, "y", `{"a":"y","later":{"deep":[1,2]}}`},
		"only unknown fields":       {`{"later":1}`, "", `{"later":1}`},
		"no unknown field":          {`{"a":"x","b":2}`, "y", `{"b":2,"a":"y"}`},
		"an embedded one is known":  {`{"b":2}`, "y", `{"b":2,"a":"y"}`},
		"a large number stays what": {`{"n":12345678901234567890}`, "y", `{"a":"y","n":12345678901234567890}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var e entry
			extra, err := Unmarshal([]byte(tc.in), &e)
			if err != nil {
				t.Fatal(err)
			}
			e.A = tc.change
			out, err := Marshal(e, extra)
			if err != nil {
				t.Fatal(err)
			}
			var got, want map[string]json.RawMessage
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%s: %v", out, err)
			}
			if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got %s, want %s", out, tc.want)
			}
		})
	}
}

func TestADeclaredFieldWinsOverAKeptOne(t *testing.T) {
	t.Parallel()
	out, err := Marshal(entry{A: "new"}, Extra{"a": json.RawMessage(`"old"`)})
	if err != nil || string(out) != `{"a":"new"}` {
		t.Fatalf("got %s, %v", out, err)
	}
}

func TestGarbageIsAnError(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "null2", `{"a":`, `[]`, `{"a":5}`} {
		if _, err := Unmarshal([]byte(in), &entry{}); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}
