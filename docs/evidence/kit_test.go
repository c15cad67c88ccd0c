package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
)

// kit is vectors.json: README.md describes it.
type kit struct {
	At      string   `json:"at"`
	Region  string   `json:"region"`
	Roots   string   `json:"roots"`
	Vectors []vector `json:"vectors"`

	parts map[string][]byte // of certificates
}

// pieces are bytes of which long ones, which many vectors have, are named: base64, or @ and the name of a part.
type pieces []string

// pieces takes bytes apart.
func (k kit) pieces(data []byte) (p pieces) {
	for name, part := range ordered(k.parts) {
		if before, after, ok := bytes.Cut(data, part); ok {
			return append(append(k.pieces(before), "@"+name), k.pieces(after)...)
		}
	}
	return pieces{base64.StdEncoding.EncodeToString(data)}
}

// join puts pieces together.
func (k kit) join(p pieces) (data []byte) {
	for _, piece := range p {
		part, ok := k.parts[strings.TrimPrefix(piece, "@")]
		if !ok || piece[0] != '@' {
			part = must2(base64.StdEncoding.DecodeString(piece))
		}
		data = append(data, part...)
	}
	return data
}

// vector is a document, given as changes of one in vectors/, with the arguments for a verifier and the right answer.
type vector struct {
	Name     string `json:"name"`
	Class    string `json:"class"`
	Document string `json:"document,omitempty"`
	// Certificate is a certificate that carries evidence, DER, instead of a document.
	Certificate pieces `json:"certificate,omitempty"`
	// The changes, in this order.
	Drop    []string                   `json:"drop,omitempty"`
	Put     map[string]json.RawMessage `json:"put,omitempty"`
	Bytes   []change                   `json:"bytes,omitempty"`
	Wrap    bool                       `json:"wrap,omitempty"`
	Replace [][2]string                `json:"replace,omitempty"`
	// The arguments. What is absent is as the kit says.
	Nonce  string `json:"nonce"`
	Region string `json:"region,omitempty"`
	At     string `json:"at,omitempty"`
	Roots  string `json:"roots,omitempty"`
	// Refused are the codes of the reasons for which the document must be refused. None: it must be accepted.
	Refused []string `json:"refused,omitempty"`
}

// change writes bytes into the report, or into the first certificate.
type change struct {
	Of     string
	Offset int
	Bytes  evidence.Hex
}

// MarshalJSON implements json.Marshaler.
func (c change) MarshalJSON() ([]byte, error) { return json.Marshal([]any{c.Of, c.Offset, c.Bytes}) }

// UnmarshalJSON implements json.Unmarshaler.
func (c *change) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&c.Of, &c.Offset, &c.Bytes})
}

func loadKit(t testing.TB) kit {
	t.Helper()
	var k kit
	dec := json.NewDecoder(bytes.NewReader(must.Get(os.ReadFile("vectors.json"))(t, "read the vectors")))
	dec.DisallowUnknownFields()
	must.Do(t, dec.Decode(&k), "decode vectors.json")
	var more struct {
		Parts   map[string][]byte `json:"parts"`
		Vectors []vector          `json:"vectors"`
	}
	dec = json.NewDecoder(bytes.NewReader(must.Get(os.ReadFile("certificates.json"))(t, "read more vectors")))
	dec.DisallowUnknownFields()
	must.Do(t, dec.Decode(&more), "decode certificates.json")
	k.parts, k.Vectors, more.Vectors = more.Parts, append(k.Vectors, more.Vectors...), nil
	dec = json.NewDecoder(bytes.NewReader(must.Get(os.ReadFile("nitrotpm.json"))(t, "read the last vectors")))
	dec.DisallowUnknownFields()
	must.Do(t, dec.Decode(&more), "decode nitrotpm.json")
	k.Vectors = append(k.Vectors, more.Vectors...)
	return k
}

// members are those of a document in a file of vectors/, one on a line: name and value as they are spelled.
type members [][2]string

func split(text string) (m members) {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":"); ok {
			m = append(m, [2]string{name, strings.TrimSuffix(value, ",")})
		}
	}
	return m
}

func (m members) join() string {
	lines := make([]string, len(m))
	for i, member := range m {
		lines[i] = member[0] + ":" + member[1]
	}
	return "{\n" + strings.Join(lines, ",\n") + "\n}\n"
}

// text returns a member that is a string.
func (m members) text(name string) (s string) {
	for _, member := range m {
		if member[0] == `"`+name+`"` {
			json.Unmarshal([]byte(member[1]), &s)
		}
	}
	return s
}

// put replaces a member, or adds it at the end.
func (m *members) put(name string, value any) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		panic(err)
	}
	member := [2]string{`"` + name + `"`, strings.TrimSuffix(text.String(), "\n")}
	if i := slices.IndexFunc(*m, func(old [2]string) bool { return old[0] == member[0] }); i >= 0 {
		(*m)[i] = member
		return
	}
	*m = append(*m, member)
}

// certificates returns the certificates of a document, DER.
func (m members) certificates() (certs [][]byte) {
	for block, rest := pem.Decode([]byte(m.text("certificates"))); block != nil; block, rest = pem.Decode(rest) {
		certs = append(certs, block.Bytes)
	}
	return certs
}

// wrap makes the member cmw of report, nitrotpm and certificates.
func (m *members) wrap() {
	url := base64.RawURLEncoding.EncodeToString
	cmw := `{"__cmwc_t":"tag:sevagent,2026:evidence#2"`
	for i, der := range m.certificates() {
		cmw += fmt.Sprintf(`,"certificate-%d":["application/pkix-cert","%s",2]`, i, url(der))
	}
	if document, err := base64.StdEncoding.DecodeString(m.text("nitrotpm")); err == nil && len(document) > 0 {
		cmw += fmt.Sprintf(`,"nitrotpm":["application/vnd.sevagent.nitrotpm-document","%s",4]`, url(document))
	}
	m.put("cmw", json.RawMessage(cmw+fmt.Sprintf(`,"report":["application/vnd.sevagent.sev-snp-report","%s",4]}`,
		url(m.report()))))
}

// report returns the report of a document, or nil.
func (m members) report() []byte {
	report, err := base64.StdEncoding.DecodeString(m.text("report"))
	if err != nil {
		return nil
	}
	return report
}

// write applies c.
func (m *members) write(c change) {
	if c.Of == "report" {
		report := m.report()
		copy(report[c.Offset:], c.Bytes)
		m.put("report", report)
		return
	}
	certs := m.certificates()
	copy(certs[0][c.Offset:], c.Bytes)
	m.put("certificates", pemText(certs...))
}

func pemText(certs ...[]byte) string {
	var text []byte
	for _, der := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return string(text)
}

// apply changes a document as v says.
func (v vector) apply(text string) (string, error) {
	m := split(text)
	for _, name := range v.Drop {
		m = slices.DeleteFunc(m, func(member [2]string) bool { return member[0] == `"`+name+`"` })
	}
	for _, name := range slices.Sorted(maps.Keys(v.Put)) {
		m.put(name, v.Put[name])
	}
	for _, c := range v.Bytes {
		m.write(c)
	}
	if v.Wrap {
		m.wrap()
	}
	text = m.join()
	for _, r := range v.Replace {
		if n := strings.Count(text, r[0]); n != 1 {
			return "", fmt.Errorf("%q stands %d times in the document, want once", r[0], n)
		}
		text = strings.Replace(text, r[0], r[1], 1)
	}
	return text, nil
}

// args returns the arguments for a verifier, but for the document.
func (k kit) args(v vector) []string {
	region := []string{"--region", cmp.Or(v.Region, k.Region)}
	if v.Region == "any" {
		region = []string{"--any-region"}
	}
	return append(region, "--roots", filepath.Join("vectors", cmp.Or(v.Roots, k.Roots)),
		"--nonce", v.Nonce, "--at", cmp.Or(v.At, k.At))
}

// documents returns the documents of all vectors.
func (k kit) documents(t testing.TB) []string {
	t.Helper()
	genuine := make(map[string]string)
	documents := make([]string, len(k.Vectors))
	for i, v := range k.Vectors {
		if v.Certificate != nil {
			documents[i] = string(k.join(v.Certificate))
			continue
		}
		if genuine[v.Document] == "" {
			text := must.Get(os.ReadFile(filepath.Join("vectors", v.Document+".json")))(t, "read a document")
			genuine[v.Document] = string(text)
		}
		var err error
		documents[i], err = v.apply(genuine[v.Document])
		must.Do(t, err, "make the document of %q", v.Name)
	}
	return documents
}

// wrong returns what is wrong with a verifier's answer: the line that it has printed and its exit status.
func (v vector) wrong(line string, status int) string {
	if v.Refused == nil && line == "accepted" && status == accepted {
		return ""
	}
	code, ok := strings.CutPrefix(line, "refused ")
	if ok && status == refused && slices.Contains(v.Refused, code) {
		return ""
	}
	return fmt.Sprintf("%s, %s: %q, status %d, want one of %q", v.Class, v.Name, line, status, v.Refused)
}
