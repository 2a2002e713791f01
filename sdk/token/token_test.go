// SPDX-License-Identifier: MPL-2.0

package token_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

func TestFormatRules(t *testing.T) {
	for name, tc := range map[string]struct {
		format token.Format
		want   string // "" means valid
	}{
		"the zero format is valid":          {token.Format{}, ""},
		"shortest":                          {token.Format{Prefix: "k", SecretLength: 22}, ""},
		"longest":                           {token.Format{Prefix: "k" + strings.Repeat("_", 31), SecretLength: 128}, ""},
		"prefix too long":                   {token.Format{Prefix: strings.Repeat("k", 33)}, "prefix must be a lower-case letter followed by at most 31 of a-z, 0-9 and _, got 33 characters"},
		"prefix upper case":                 {token.Format{Prefix: "Key"}, `prefix must be a lower-case letter followed by at most 31 of a-z, 0-9 and _, got "Key"`},
		"prefix begins with digit":          {token.Format{Prefix: "1k"}, `prefix must be a lower-case letter followed by at most 31 of a-z, 0-9 and _, got "1k"`},
		"prefix begins with _":              {token.Format{Prefix: "_"}, `prefix must be a lower-case letter followed by at most 31 of a-z, 0-9 and _, got "_"`},
		"prefix with newline":               {token.Format{Prefix: "a\n"}, `prefix must be a lower-case letter followed by at most 31 of a-z, 0-9 and _, got "a\n"`},
		"secret too short":                  {token.Format{SecretLength: 21}, "secret_length must be between 22 and 128, got 21"},
		"secret too long":                   {token.Format{SecretLength: 129}, "secret_length must be between 22 and 128, got 129"},
		"secret negative":                   {token.Format{SecretLength: -1}, "secret_length must be between 22 and 128, got -1"},
		"the first fault found is reported": {token.Format{Prefix: "-", SecretLength: 1}, `prefix must be a lower-case letter followed by at most 31 of a-z, 0-9 and _, got "-"`},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := tc.format.Validate(); err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			s, err := token.New(rand.Reader, tc.format, "EXAMPLEkey01")
			if (err == nil) != (tc.want == "") || (err != nil && s != "") {
				t.Errorf("New does not validate the format: %v", err)
			}
		})
	}
}

func TestFormatErrorNeverShowsATokenGivenAsPrefix(t *testing.T) {
	s := mustNew(t, token.Format{Prefix: "k", SecretLength: 22})
	if err := (token.Format{Prefix: s}).Validate(); err == nil || strings.Contains(err.Error(), s) {
		t.Errorf("got %v", err)
	}
}

func TestNewRefusesAnInvalidKeyIDWithoutEchoingIt(t *testing.T) {
	for _, id := range []string{"", "short", "EXAMPLEkey0_", "EXAMPLEkey012", "EXAMPLEkey0\x00", "EXAMPLEkey0é"} {
		_, err := token.New(rand.Reader, token.Format{}, id)
		if err == nil || !strings.HasPrefix(err.Error(), "key_id must be 12 characters") || (id != "" && strings.Contains(err.Error(), id)) {
			t.Errorf("New(%q): %v", id, err)
		}
		if token.ValidID(id) {
			t.Errorf("ValidID(%q)", id)
		}
	}
}

func TestNewFollowsTheFormat(t *testing.T) {
	s := mustNew(t, token.Format{Prefix: "tm_live", SecretLength: 40})
	if !regexp.MustCompile(`^tm_live_EXAMPLEkey01_[0-9A-Za-z]{46}$`).MatchString(s) {
		t.Error("form is wrong")
	}
	if d := mustNew(t, token.Format{}); !strings.HasPrefix(d, "key_EXAMPLEkey01_") || len(d) != 17+32+6 {
		t.Error("the default form is wrong")
	}
}

func TestBytesFrom248AreRejected(t *testing.T) {
	// 248 to 255 would map to 0-7 once more and make these more likely.
	src := []byte{255, 248, 0, 250, 61, 62, 247, 251, 252, 253, 254, 249}
	src = append(src, bytes.Repeat([]byte{10}, 20)...)
	got, err := token.NewID(bytes.NewReader(src))
	if err != nil || got != "0z0zAAAAAAAA" {
		t.Errorf("got %q, %v, want 0z0zAAAAAAAA", got, err)
	}
}

func TestEveryCharacterIsEquallyLikely(t *testing.T) {
	// Every byte value once: 62 characters, four times each, nothing more.
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	src := io.MultiReader(bytes.NewReader(all[:248]), bytes.NewReader(bytes.Repeat([]byte{0}, 4)))
	var b strings.Builder
	for range 248 / 12 {
		id, err := token.NewID(src)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(id)
	}
	rest, err := token.NewID(src) // 8 more bytes below 248, then 4 zeros
	if err != nil {
		t.Fatal(err)
	}
	b.WriteString(rest[:8])
	for _, c := range alphabet {
		if n := strings.Count(b.String(), string(c)); n != 4 {
			t.Errorf("%c comes %d times, want 4", c, n)
		}
	}
}

func TestABrokenRandomSourceIsAnErrorAndNeverAToken(t *testing.T) {
	boom := errors.New("boom")
	for name, src := range map[string]io.Reader{
		"empty":       strings.NewReader(""),
		"short":       bytes.NewReader(make([]byte, 11)),
		"fails":       io.MultiReader(bytes.NewReader(make([]byte, 5)), errReader{boom}),
		"all 0xff":    ffReader{},
		"ends on 248": bytes.NewReader(append(make([]byte, 11), 248)),
	} {
		if id, err := token.NewID(src); err == nil || id != "" {
			t.Errorf("NewID, %s: %q, %v", name, id, err)
		}
		if s, err := token.New(src, token.Format{}, "EXAMPLEkey01"); err == nil || s != "" {
			t.Errorf("New, %s: %q, %v", name, s, err)
		}
	}
	if _, err := token.NewID(errReader{boom}); !errors.Is(err, boom) {
		t.Errorf("cause lost: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type ffReader struct{}

func (ffReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0xff
	}
	return len(p), nil
}

func TestChecksumIsCRC32InBase62(t *testing.T) {
	// 0xCBF43926 is the check value of CRC-32/ISO-HDLC for "123456789".
	if crc32.ChecksumIEEE([]byte("123456789")) != 0xCBF43926 {
		t.Fatal("the oracle is another CRC")
	}
	for body, want := range map[string]string{
		"":          "000000",
		"123456789": "3jZRME",
	} {
		if got := token.Checksum(body); got != want || got != naiveChecksum(body) {
			t.Errorf("Checksum(%q) = %s, want %s", body, got, want)
		}
	}
}

// naiveChecksum is written another way than the package's.
func naiveChecksum(body string) string {
	n, s := crc32.ChecksumIEEE([]byte(body)), ""
	for range 6 {
		s = string(alphabet[n%62]) + s
		n /= 62
	}
	return s
}

var naiveForm = regexp.MustCompile(`\A([a-z][a-z0-9_]{0,31})_([0-9A-Za-z]{12})_([0-9A-Za-z]{22,128})([0-9A-Za-z]{6})\z`)

// naiveParse is the oracle: the definition as a regular expression.
func naiveParse(s string) (token.Parsed, bool) {
	m := naiveForm.FindStringSubmatch(s)
	if m == nil || naiveChecksum(s[:len(s)-6]) != m[4] {
		return token.Parsed{}, false
	}
	return token.Parsed{Prefix: m[1], KeyID: m[2]}, true
}

func checkParse(t interface {
	Helper()
	Errorf(string, ...any)
}, s string) {
	t.Helper()
	want, ok := naiveParse(s)
	got, err := token.Parse(s)
	if ok != (err == nil) || got != want || (err != nil && err != token.ErrMalformed) { //nolint:errorlint // identity is the rule here
		t.Errorf("Parse(%q) = %+v, %v; the definition says %+v, %v", s, got, err, want, ok)
	}
}

func drawFormat(t *rapid.T) token.Format {
	return token.Format{
		Prefix:       rapid.StringMatching(`([a-z][a-z0-9_]{0,31})?`).Draw(t, "prefix"),
		SecretLength: rapid.OneOf(rapid.Just(0), rapid.IntRange(22, 128)).Draw(t, "length"),
	}
}

func TestWhatIsMadeParses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFormat(t)
		// Zeros are always taken, so that it does not run out.
		src := bytes.NewReader(append(rapid.SliceOfN(rapid.Byte(), 200, 200).Draw(t, "random"), make([]byte, 200)...))
		id, err := token.NewID(src)
		if err != nil {
			t.Fatal(err)
		}
		s, err := token.New(src, f, id)
		if err != nil {
			t.Fatal(err)
		}
		prefix := f.Prefix
		if prefix == "" {
			prefix = token.DefaultPrefix
		}
		p, err := token.Parse(s)
		if err != nil || p.Prefix != prefix || p.KeyID != id || !token.ValidID(p.KeyID) {
			t.Fatalf("%q: %+v, %v", s, p, err)
		}
		if token.ImportableForm(s) != nil {
			t.Fatal("a token of ours is not of an importable form")
		}
		scan := regexp.MustCompile(token.ScanPattern(f))
		for _, text := range []string{s, "X-Api-Key: " + s + "\r\n", `{"k":"` + s + `"}`, "a=" + s + ",", s + "."} {
			if scan.FindString(text) != s {
				t.Fatalf("%s does not find the token in %q", scan, text)
			}
		}
		checkParse(t, s)
	})
}

func TestParseAgreesWithTheDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[a-z][a-z0-9_]{0,33}_[0-9A-Za-z]{11,13}_[0-9A-Za-z]{20,130}`).Draw(t, "body")
		s = seal(s)
		if rapid.Bool().Draw(t, "change") {
			i := rapid.IntRange(0, len(s)-1).Draw(t, "at")
			s = s[:i] + string(rapid.Byte().Draw(t, "byte")) + s[i+1:]
		}
		checkParse(t, s)
	})
}

func TestOneWrongCharacterIsAlwaysCaught(t *testing.T) {
	s := mustNew(t, token.Format{})
	for i := range len(s) {
		for c := range 256 {
			if byte(c) == s[i] {
				continue
			}
			if _, err := token.Parse(s[:i] + string([]byte{byte(c)}) + s[i+1:]); err == nil {
				t.Fatalf("accepted with byte %d changed to %d", i, c)
			}
		}
	}
}

func TestTwoNeighboursSwappedAreAlwaysCaught(t *testing.T) {
	s := mustNew(t, token.Format{})
	for i := range len(s) - 1 {
		if s[i] == s[i+1] {
			continue
		}
		if _, err := token.Parse(s[:i] + s[i+1:i+2] + s[i:i+1] + s[i+2:]); err == nil {
			t.Fatalf("accepted with %d and %d swapped", i, i+1)
		}
	}
}

func TestErrorsEchoNothing(t *testing.T) {
	s := mustNew(t, token.Format{})
	_, err := token.Parse(s + "x")
	_, err2 := token.ParseDigest(s)
	_, err3 := token.ParseDigest(strings.Repeat("0", 63) + "g")
	err4 := token.ImportableForm(s + " ")
	for _, err := range []error{err, err2, err3, err4} {
		if err == nil || strings.Contains(err.Error(), s[4:16]) || strings.Contains(err.Error(), "'g'") {
			t.Errorf("got %v", err)
		}
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	s := mustNew(t, token.Format{Prefix: strings.Repeat("p", 32), SecretLength: 128})
	imported := strings.Repeat("x", 512)
	var d token.Digest
	for name, f := range map[string]func(){
		"Parse":             func() { _, _ = token.Parse(s) },
		"Parse, malformed":  func() { _, _ = token.Parse(s[1:]) },
		"Sum":               func() { d = token.Sum(s) },
		"Sum, imported":     func() { d = token.Sum(imported) },
		"Equal":             func() { _ = d.Equal(token.Digest{}) },
		"ImportableForm":    func() { _ = token.ImportableForm(imported) },
		"ImportableForm, x": func() { _ = token.ImportableForm("x") },
		"ValidID":           func() { _ = token.ValidID("EXAMPLEkey01") },
	} {
		if n := testing.AllocsPerRun(50, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func TestDigestIsSHA256OfTheWholeString(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringN(0, 700, 1000).Draw(t, "s")
		want := sha256.Sum256([]byte(s))
		d := token.Sum(s)
		if d != want || d.Hex() != hex.EncodeToString(want[:]) || d.Fingerprint() != d.Hex()[:12] {
			t.Fatal("wrong digest")
		}
		back, err := token.ParseDigest(strings.ToUpper(d.Hex()))
		if err != nil || !back.Equal(d) {
			t.Fatalf("%v, %v", back, err)
		}
	})
}

func TestDigestsDifferingInOneBitAreNotEqual(t *testing.T) {
	d := token.Sum("x")
	for bit := range 256 {
		o := d
		o[bit/8] ^= 1 << (bit % 8)
		if d.Equal(o) {
			t.Fatalf("bit %d is ignored", bit)
		}
	}
	if d.IsZero() || !(token.Digest{}).IsZero() {
		t.Error("IsZero")
	}
}

func TestDigestInJSON(t *testing.T) {
	type entry struct {
		D    token.Digest  `json:"d"`
		None token.Digest  `json:"none,omitzero"`
		P    *token.Digest `json:"p"`
	}
	d := token.Sum("x")
	data, err := json.Marshal(entry{D: d})
	if err != nil || string(data) != `{"d":"`+d.Hex()+`","p":null}` {
		t.Fatalf("%s, %v", data, err)
	}
	var back entry
	if err := json.Unmarshal(data, &back); err != nil || back.D != d {
		t.Fatalf("%+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"d":"00"}`), &back); !errors.Is(err, token.ErrMalformedDigest) || back.D != d {
		t.Errorf("a refused text changed the digest: %v", err)
	}
}

func TestADigestPrintsAsItsFingerprint(t *testing.T) {
	d := token.Sum("x")
	for _, verb := range []string{"%v", "%s", "%+v"} {
		if got := fmt.Sprintf(verb, d); got != d.Fingerprint() {
			t.Errorf("%s: %s", verb, got)
		}
	}
}

func TestMalformedDigestsAreRefused(t *testing.T) {
	h := token.Sum("x").Hex()
	for _, s := range []string{"", "0", h[1:], h + "0", h[1:] + "g", h[1:] + " ", "0x" + h[2:], strings.Repeat("é", 32)} {
		if d, err := token.ParseDigest(s); !errors.Is(err, token.ErrMalformedDigest) || !d.IsZero() {
			t.Errorf("ParseDigest(%q): %v", s, err)
		}
	}
}

func TestImportableForm(t *testing.T) {
	for name, tc := range map[string]struct {
		s  string
		ok bool
	}{
		"16 characters":    {strings.Repeat("x", 16), true},
		"15 characters":    {strings.Repeat("x", 15), false},
		"512 characters":   {strings.Repeat("x", 512), true},
		"513 characters":   {strings.Repeat("x", 513), false},
		"every printable":  {printable(), true},
		"with a space":     {"abcdefgh ijklmnop", false},
		"with a tab":       {"abcdefgh\tijklmnop", false},
		"with a newline":   {"abcdefghijklmnop\n", false},
		"with a NUL":       {"abcdefghijklmnop\x00", false},
		"with a DEL":       {"abcdefghijklmnop\x7f", false},
		"with an accent":   {"abcdefghijklmnopé", false},
		"with high bytes":  {"abcdefghijklmnop\xff", false},
		"empty":            {"", false},
		"10000 characters": {strings.Repeat("x", 10000), false},
	} {
		err := token.ImportableForm(tc.s)
		if (err == nil) != tc.ok || (err != nil && !errors.Is(err, token.ErrUnimportable)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func printable() string {
	var b strings.Builder
	for c := byte('!'); c <= '~'; c++ {
		b.WriteByte(c)
	}
	return b.String()
}

func TestScanPatternMatchesTokensOfItsFormatOnly(t *testing.T) {
	f := token.Format{Prefix: "live"}
	scan := regexp.MustCompile(token.ScanPattern(f))
	if want := `\blive_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}\b`; scan.String() != want {
		t.Errorf("got %s, want %s", scan, want)
	}
	for name, s := range map[string]string{
		"another prefix":    mustNew(t, token.Format{Prefix: "tm_live"}),
		"a longer word":     "x" + mustNew(t, f),
		"a longer secret":   mustNew(t, token.Format{Prefix: "live", SecretLength: 33}),
		"a shorter secret":  mustNew(t, token.Format{Prefix: "live", SecretLength: 31}),
		"a longer word yet": mustNew(t, f) + "_",
	} {
		if scan.MatchString(s) {
			t.Errorf("matches %s", name)
		}
	}
	if got := token.ScanPattern(token.Format{Prefix: "(((("}); got != "" {
		t.Errorf("an invalid format gives %q", got)
	}
}

func mustNew(t testing.TB, f token.Format) string {
	t.Helper()
	s, err := token.New(rand.Reader, f, "EXAMPLEkey01")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func FuzzParse(f *testing.F) {
	for _, v := range []string{"", "key_EXAMPLEkey01_", "__", seal("tm_live_EXAMPLEkey01_NotARealSecretNotARealSecret")} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, s string) {
		checkParse(t, s)
		checkParse(t, seal(s)) // so that mutations get past the checksum
		_ = token.ImportableForm(s)
		if d, err := token.ParseDigest(s); err == nil && d.Hex() != strings.ToLower(s) {
			t.Errorf("ParseDigest(%q) = %s", s, d.Hex())
		}
	})
}

func BenchmarkParse(b *testing.B) {
	s := mustNew(b, token.Format{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := token.Parse(s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseMalformed(b *testing.B) {
	s := strings.Repeat("_", 10000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := token.Parse(s); err == nil {
			b.Fatal("accepted")
		}
	}
}

func BenchmarkSum(b *testing.B) {
	s := mustNew(b, token.Format{})
	b.ReportAllocs()
	for b.Loop() {
		_ = token.Sum(s)
	}
}

func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_ = mustNew(b, token.Format{})
	}
}
