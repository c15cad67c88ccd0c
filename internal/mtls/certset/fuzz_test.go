package certset

import (
	"bytes"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
)

// FuzzBundle holds the parser to its laws: it never panics, no error repeats the content, and what is accepted
// is read back from the published files to the same bytes. Run it with -fuzzminimizetime 20x: certificates take long
// to make smaller.
func FuzzBundle(f *testing.F) {
	// A pair made once for this purpose, since seeds that differ from process to process confuse the fuzzer.
	good, err := os.ReadFile("testdata/client.json")
	if err != nil {
		f.Fatalf("read the seed: %v", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(good, &fields); err != nil {
		f.Fatalf("decode the seed: %v", err)
	}
	cert, key, anchor := fields[clientCert].(string), fields[clientKey].(string), fields[caCert].(string)
	f.Add(good)
	f.Add(bytes.ReplaceAll(good, []byte(`\n`), []byte(`\r\n`)))
	f.Add(bytes.ReplaceAll(good, []byte(`\n`), []byte(`\\n`)))
	f.Add(good[:len(good)/2])
	f.Add(mtlstest.Fields{serverCert: anchor + cert, serverKey: key, caCert: anchor, clientKey: nil}.JSON(f))
	f.Add([]byte(cert + key))
	f.Add([]byte(strings.ReplaceAll(cert+key, "\n", " ")))
	f.Add(bytes.ReplaceAll(good, []byte(`\n`), nil))
	f.Add([]byte(`"` + strings.ReplaceAll(anchor, "\n", "\n\u00a0") + pemBlock("PRIVATE KEY", ed448Key)))
	f.Add([]byte(`{"data": {"tls.crt": "a", "tls.key": "b"}, "client_cert": ["x"], "peer_ca": ""}`))
	f.Add([]byte(encryptedKey))
	f.Add([]byte(`{"ca_cert": "x", "ca_cert": null, "` + strings.Repeat("A", 40) + `": [{}]}`))
	f.Add([]byte(pemBlock("X509 CRL", []byte{0x30, 0})))
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)

	f.Fuzz(func(t *testing.T, content []byte) {
		for _, how := range []Reading{{}, {Validate: unverified}, {As: caCert}} {
			roundTrip(t, content, how, now)
		}
	})
}

func roundTrip(t *testing.T, content []byte, how Reading, now time.Time) {
	b, err := Parse("a", "1", content, how)
	var s *Set
	if err == nil {
		s, err = Assemble([]*Bundle{b}, nil, now, nil)
	}
	if err != nil {
		if leak := leaked(err, content); leak != "" {
			t.Errorf("error %q shows content: %q", err, leak)
		}
		return
	}
	var files []File
	for _, f := range s.Files {
		files = append(files, File{Name: f.Name, Content: f.Content, Origin: f.Origin})
	}
	s2, err := Restore(s.Origins(), files, nil, s.Warnings, now)
	if err != nil {
		t.Fatalf("accepted as %+v, but not a second time: %v", how, err)
	}
	if dump(s) != dump(s2) {
		t.Errorf("read as %+v, and back as\n%s\nwant\n%s", how, dump(s2), dump(s))
	}
}

func dump(s *Set) string {
	var b strings.Builder
	for _, f := range s.Files {
		b.WriteString(f.Name + " " + strconv.FormatBool(f.Private) + "\n" + string(f.Content))
	}
	return b.String()
}
