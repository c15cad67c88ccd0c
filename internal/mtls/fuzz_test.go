package mtls

import (
	"bytes"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// FuzzBundle holds the parser to its laws: it never panics, no error repeats the content, and what is accepted
// is read back from the published files to the same bytes. Run it with -fuzzminimizetime 20x: certificates take long
// to make smaller.
func FuzzBundle(f *testing.F) {
	// A pair made once for this purpose, since seeds that differ from process to process confuse the fuzzer.
	good, err := os.ReadFile("testdata/client.json")
	if err != nil {
		f.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(good, &fields); err != nil {
		f.Fatal(err)
	}
	cert, key, anchor := fields[clientCert].(string), fields[clientKey].(string), fields[caCert].(string)
	f.Add(good)
	f.Add(bytes.ReplaceAll(good, []byte(`\n`), []byte(`\r\n`)))
	f.Add(bytes.ReplaceAll(good, []byte(`\n`), []byte(`\\n`)))
	f.Add(good[:len(good)/2])
	f.Add(secretJSON(f, map[string]any{serverCert: anchor + cert, serverKey: key, caCert: anchor, clientKey: nil}))
	f.Add([]byte(cert + key))
	f.Add([]byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"))
	f.Add([]byte(`{"ca_cert": "x", "ca_cert": null, "` + strings.Repeat("A", 40) + `": [{}]}`))
	f.Add([]byte(pemBlock("X509 CRL", []byte{0x30, 0})))
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)

	f.Fuzz(func(t *testing.T, content []byte) {
		b, err := parseBundle("a", "1", content)
		var s *set
		if err == nil {
			s, err = assemble([]*bundle{b}, nil, now, nil)
		}
		if err != nil {
			if leak := leaked(err, content); leak != "" {
				t.Errorf("error %q shows content: %q", err, leak)
			}
			return
		}
		again := &generation{bundles: []*bundle{{secret: "a", version: "1", fields: make(map[string]*part)}}}
		for _, f := range s.files {
			if err := again.takeFile(manifestEntry{File: f.name, Secret: "a", Version: "1"}, f.content, new(manifest), new([]carried)); err != nil {
				t.Fatalf("%s is accepted, but not a second time: %v", f.name, err)
			}
		}
		s2, err := assemble(again.bundles, nil, now, nil)
		if err != nil {
			t.Fatalf("accepted, but not a second time: %v", err)
		}
		if dump(s) != dump(s2) {
			t.Errorf("read back as\n%s\nwant\n%s", dump(s2), dump(s))
		}
	})
}

func dump(s *set) string {
	var b strings.Builder
	for _, f := range s.files {
		b.WriteString(f.name + " " + strconv.FormatBool(f.private) + "\n" + string(f.content))
	}
	return b.String()
}
