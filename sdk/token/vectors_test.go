// SPDX-License-Identifier: MPL-2.0

package token_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors/token.json")

const vectorsPath = "../../testdata/vectors/token.json"

// vector is an entry of testdata/vectors/token.json, which the backend, the
// SDK and the gateway share. sha256 and fingerprint are those of input as
// UTF-8, also where input is no token.
type vector struct {
	Name        string `json:"name"`
	Input       string `json:"input"`
	Valid       bool   `json:"valid"`
	Prefix      string `json:"prefix"`
	KeyID       string `json:"key_id"`
	SHA256      string `json:"sha256"`
	Fingerprint string `json:"fingerprint"`
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	data, err := os.ReadFile(vectorsPath)
	if err != nil {
		t.Fatalf("read the vectors (go test -update writes them): %v", err)
	}
	var vectors []vector
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 30 {
		t.Fatalf("only %d vectors", len(vectors))
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			p, err := token.Parse(v.Input)
			if v.Valid {
				if err != nil || p.Prefix != v.Prefix || p.KeyID != v.KeyID {
					t.Errorf("Parse = %+v, %v", p, err)
				}
			} else if !errors.Is(err, token.ErrMalformed) || p != (token.Parsed{}) {
				t.Errorf("Parse = %+v, %v, want ErrMalformed", p, err)
			}
			d := token.Sum(v.Input)
			if d.Hex() != v.SHA256 || d.Fingerprint() != v.Fingerprint {
				t.Errorf("Sum = %s, %s", d.Hex(), d.Fingerprint())
			}
		})
	}
}

func TestVectorsAreWhatTheGeneratorMakes(t *testing.T) {
	got, err := os.ReadFile(vectorsPath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, encodeVectors(t)) {
		t.Error("token.json differs from the generator: run go test -update and review the diff")
	}
}

func writeVectors(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(vectorsPath, encodeVectors(t), 0o644); err != nil {
		t.Fatal(err)
	}
}

func encodeVectors(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(makeVectors(t)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// wordReader is a random source that makes fillBase62 spell its text over and
// over, so that a reader (and a secret scanner) sees that a key is not one.
type wordReader struct {
	text string
	at   int
}

func (r *wordReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(strings.IndexByte(alphabet, r.text[r.at%len(r.text)]))
		r.at++
	}
	return len(p), nil
}

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// seal appends the right checksum, for vectors that break another rule only.
func seal(body string) string { return body + token.Checksum(body) }

func makeVectors(t *testing.T) []vector {
	t.Helper()
	const id = "EXAMPLEkey01"
	secret := func(n int) string {
		return strings.Repeat("NotARealSecret", n/14+1)[:n]
	}
	mint := func(prefix string, length int, id string) string {
		s, err := token.New(&wordReader{text: "NotARealSecret"}, token.Format{Prefix: prefix, SecretLength: length}, id)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	seeded := func(seed byte) string {
		rng := rand.NewChaCha8([32]byte{seed})
		id, err := token.NewID(rng)
		if err != nil {
			t.Fatal(err)
		}
		s, err := token.New(rng, token.Format{Prefix: "fake"}, id)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := mint("", 0, id)
	body := good[:len(good)-token.ChecksumLength]
	flipped := func(i int) string {
		c := byte('x')
		if good[i] == c {
			c = 'y'
		}
		return good[:i] + string(c) + good[i+1:]
	}

	var vectors []vector
	add := func(name, input, prefix, id string) {
		d := token.Sum(input)
		vectors = append(vectors, vector{name, input, prefix != "", prefix, id, d.Hex(), d.Fingerprint()})
	}
	valid := func(name, prefix, input string) {
		id := input[len(prefix)+1 : len(prefix)+1+token.IDLength]
		add(name, input, prefix, id)
	}
	bad := func(name, input string) { add(name, input, "", "") }

	valid("default form", "key", good)
	valid("prefix with an underscore", "tm_live", mint("tm_live", 0, id))
	valid("prefix that ends in an underscore", "tm_", mint("tm_", 0, id))
	valid("prefix of underscores", "a___", mint("a___", 0, id))
	valid("prefix with digits", "k2_3", mint("k2_3", 0, id))
	valid("prefix of one letter", "k", mint("k", 0, id))
	valid("prefix of 32 characters", strings.Repeat("p", 32), mint(strings.Repeat("p", 32), 0, id))
	valid("prefix that looks like a prefix and a key id", "key_examplekey01", mint("key_examplekey01", 0, id))
	valid("shortest secret", "key", mint("", token.MinSecretLength, id))
	valid("longest secret", "key", mint("", token.MaxSecretLength, id))
	valid("longest token", strings.Repeat("p", 32), mint(strings.Repeat("p", 32), token.MaxSecretLength, id))
	valid("key id of digits", "key", mint("", 0, "000000000000"))
	for i := range 3 {
		valid("seeded "+string(rune('1'+i)), "fake", seeded(byte(i)))
	}
	// The checksum of this body begins with zeros: padding is part of it.
	for n := 0; ; n++ {
		s := seal("key_" + id + "_" + secret(26) + string("0123456789"[n/100000%10]) +
			string("0123456789"[n/10000%10]) + string("0123456789"[n/1000%10]) +
			string("0123456789"[n/100%10]) + string("0123456789"[n/10%10]) + string("0123456789"[n%10]))
		if s[len(s)-6:len(s)-4] == "00" {
			valid("checksum padded with zeros", "key", s)
			break
		}
	}

	bad("empty", "")
	bad("one underscore", "_")
	bad("two underscores", "__")
	bad("no underscore", strings.ReplaceAll(good, "_", ""))
	bad("prefix alone", "key_")
	bad("key id alone", "key_"+id)
	bad("no secret", "key_"+id+"_")
	bad("no prefix", seal("_"+id+"_"+secret(32)))
	bad("no prefix and no underscore before the key id", seal(id+"_"+secret(32)))
	bad("upper-case prefix", seal("Key_"+id+"_"+secret(32)))
	bad("prefix that begins with a digit", seal("1key_"+id+"_"+secret(32)))
	bad("prefix that begins with an underscore", seal("_key_"+id+"_"+secret(32)))
	bad("prefix with a hyphen", seal("my-key_"+id+"_"+secret(32)))
	bad("prefix of 33 characters", seal(strings.Repeat("p", 33)+"_"+id+"_"+secret(32)))
	bad("key id of 11 characters", seal("key_"+id[:11]+"_"+secret(32)))
	bad("key id of 13 characters", seal("key_"+id+"X_"+secret(32)))
	bad("key id with a hyphen", seal("key_EXAMPLE-ey01_"+secret(32)))
	bad("secret of 21 characters", seal("key_"+id+"_"+secret(21)))
	bad("secret of 129 characters", seal("key_"+id+"_"+secret(129)))
	bad("secret with a hyphen", seal("key_"+id+"_"+secret(31)+"-"))
	bad("secret with an underscore", seal("key_"+id+"_"+secret(16)+"_"+secret(15)))
	bad("no checksum", body)
	bad("checksum of zeros", body+"000000")
	bad("checksum with its case changed", strings.ToLower(good))
	bad("checksum one short", good[:len(good)-1])
	bad("checksum one long", good+"0")
	bad("wrong last character", flipped(len(good)-1))
	bad("wrong character in the secret", flipped(len("key_")+token.IDLength+5))
	bad("wrong character in the key id", flipped(5))
	bad("another prefix", "kex"+good[3:])
	bad("leading space", " "+good)
	bad("trailing space", good+" ")
	bad("trailing newline", good+"\n")
	bad("trailing NUL", good+"\x00")
	bad("NUL in the secret", seal("key_"+id+"_"+secret(31)+"\x00"))
	bad("NUL in the prefix", seal("k\x00y_"+id+"_"+secret(32)))
	bad("quoted", `"`+good+`"`)
	bad("with its header", "Bearer "+good)
	bad("twice", good+good)
	bad("two, separated by a comma", good+","+good)
	bad("cyrillic look-alike in the prefix", seal("kеy_"+id+"_"+secret(32)))
	bad("cyrillic look-alike in the key id", seal("key_EXАMPLEkey0_"+secret(32)))
	bad("cyrillic look-alike in the secret", seal("key_"+id+"_"+secret(30)+"о"))
	bad("full-width underscore", strings.Replace(good, "_", "＿", 1))
	bad("zero-width space", good[:20]+"\u200b"+good[20:])
	bad("combining accent", good+"\u0301")
	bad("10000 characters", seal("key_"+id+"_"+secret(10000)))
	bad("10000 underscores", strings.Repeat("_", 10000))
	bad("path traversal", "../../key/"+id)
	return vectors
}
