package search

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/must"
)

// TestSearch plants a key in every way in which one may leave a node, and has it found; and its public key where that
// belongs.
func TestSearch(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		key := must.Get(ecdsa.GenerateKey(curve, rand.Reader))(t, "make a key")
		scalar := must.Get(key.Bytes())(t, "encode the key")
		point := must.Get(key.PublicKey.Bytes())(t, "encode the public key")
		reversed := slices.Clone(scalar)
		slices.Reverse(reversed)
		pkcs8 := must.Get(x509.MarshalPKCS8PrivateKey(key))(t, "encode the key")
		sec1 := must.Get(x509.MarshalECPrivateKey(key))(t, "encode the key")
		spki := must.Get(x509.MarshalPKIXPublicKey(key.Public()))(t, "encode the public key")
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		must.Do(t, err, "make a request")

		s := New()
		s.Add("private", scalar)
		s.Add("public", point[1:])
		for range 200 { // others, which are nowhere
			other := make([]byte, len(scalar))
			rand.Read(other)
			s.Add("other", other)
		}

		armored := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
		std, raw := base64.StdEncoding.EncodeToString, base64.RawURLEncoding.EncodeToString
		inJSON := func(v any) string { return string(must.Get(json.Marshal(v))(t, "encode as JSON")) }
		private := map[string]string{
			"raw": string(scalar), "reversed": string(reversed), "PKCS#8": string(pkcs8), "SEC 1": string(sec1),
			"its end":       string(scalar[len(scalar)-piece:]),
			"hex":           hex.EncodeToString(scalar),
			"HEX":           fmt.Sprintf("%X", scalar),
			"hex of PKCS#8": hex.EncodeToString(pkcs8), "hex of PKCS#8, moved": "0" + hex.EncodeToString(pkcs8),
			"openssl": strings.ReplaceAll(fmt.Sprintf("% x", scalar), " ", ":"),
			"OPENSSL": strings.ReplaceAll(fmt.Sprintf("% X", scalar), " ", ":"),
			"dump":    fmt.Sprintf("% x", scalar), "hex of the reversed": hex.EncodeToString(reversed),
			"decimal": new(big.Int).SetBytes(scalar).String(),
			"log":     fmt.Sprint(scalar), "Go": fmt.Sprintf("%#v", scalar),
			"array":    strings.ReplaceAll(fmt.Sprint(scalar), " ", ","),
			"Python":   strings.ReplaceAll(fmt.Sprint(scalar), " ", ", "),
			"a struct": fmt.Sprintf("%+v", key),
			"base64":   std(scalar), "base64 at 1": std(append([]byte{1}, scalar...)),
			"base64 at 2": std(append([]byte{1, 2}, scalar...)), "base64url": raw(scalar),
			"base64url at 1":         raw(append([]byte{255}, scalar...)),
			"base64url at 2":         raw(append([]byte{255, 255}, scalar...)),
			"base64 of the reversed": std(reversed),
			"PEM":                    armored,
			"PEM with CRLF":          strings.ReplaceAll(armored, "\n", "\r\n"),
			"SEC 1 PEM":              string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})),
			"YAML":                   "key: |\n    " + strings.ReplaceAll(armored, "\n", "\n    "),
			"JSON":                   inJSON(armored), "JSON in JSON": inJSON(inJSON(armored)),
			"three times": inJSON(inJSON(inJSON(armored))),
			"escaped":     strings.ReplaceAll(strings.ReplaceAll(inJSON(armored), "+", `\u002b`), "/", `\/`),
			"URL":         "/?key=" + url.QueryEscape(armored),
			"log of PEM":  fmt.Sprintf("v=%v", []byte(armored)), "Go of PEM": fmt.Sprintf("%#v", []byte(armored)),
			"openssl of PEM": strings.ReplaceAll(fmt.Sprintf("% x", armored), " ", ":"),
			"log of base64":  fmt.Sprint([]byte(std([]byte(armored)))),
			"PEM in base64":  `{"Csr":"` + std([]byte(armored)) + `"}`,
			"twice":          std([]byte(std([]byte(armored)))),
			"PEM in hex":     hex.EncodeToString([]byte(armored)),
			"after a word":   "ab\n" + std([]byte(armored)),
			"JWS": inJSON(map[string]string{
				"payload": raw([]byte(inJSON(map[string]string{"key": raw(pkcs8)}))),
			}),
			"JWK":            inJSON(map[string]string{"d": raw(scalar)}),
			"across a chunk": strings.Repeat("\x00", chunk-len(armored)/2) + armored,
		}
		public := map[string]string{
			"CSR": string(csr), "SubjectPublicKeyInfo": string(spki),
			"CSR in PEM in base64 in JSON": inJSON(map[string][]byte{
				"Csr": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}),
			}),
			"ACME": inJSON(map[string]string{"payload": raw([]byte(inJSON(map[string]string{"csr": raw(csr)})))}),
		}
		for name, planted := range map[string]map[string]string{"private": private, "public": public} {
			for what, text := range planted {
				t.Run(fmt.Sprint(curve.Params().Name, " ", name, " ", what), func(t *testing.T) {
					for _, before := range []string{"", strings.Repeat("level=INFO msg=ordered ", 99)} {
						found := s.Search([]byte(before + text + "\n{}"))
						if found[name].Name == "" {
							t.Errorf("after %d bytes: not found", len(before))
						}
						if found["other"].Name != "" || name == "public" && found["private"].Name != "" {
							t.Errorf("found %v, which is not there", found)
						}
					}
				})
			}
		}
	}
}

// TestForms: each form finds its secret alone.
func TestForms(t *testing.T) {
	secret := make([]byte, 32)
	rand.Read(secret)
	s := New()
	s.Add("secret", secret)
	for form, texts := range Forms(secret) {
		for _, text := range texts {
			hit := s.Search(slices.Concat([]byte("<"), text, []byte(">")))["secret"]
			// Both alphabets may write it alike.
			if url := strings.NewReplacer("base64url", "base64"); url.Replace(hit.Form) != url.Replace(form) {
				t.Errorf("%q is found as %q, want %q", text, hit.Form, form)
			}
		}
	}
}

// TestNothing: what is random has no secrets in it, nor do texts that begin as one does.
func TestNothing(t *testing.T) {
	s := New()
	noise := make([]byte, 4*chunk)
	rand.Read(noise)
	for i := range 1000 {
		secret := make([]byte, 32)
		rand.Read(secret)
		s.Add(fmt.Sprint(i), secret)
		begins := append(secret[:piece-1:piece-1], ^secret[piece-1])
		copy(noise[i*100:], begins)
		copy(noise[i*100+50:], hex.EncodeToString(begins))
	}
	encoded := base64.StdEncoding.AppendEncode(nil, noise[:chunk])
	for _, data := range [][]byte{noise, encoded, bytes.Repeat([]byte{0}, chunk), nil} {
		if found := s.Search(data); len(found) != 0 {
			t.Errorf("found %v in %d bytes of noise", found, len(data))
		}
	}
}
