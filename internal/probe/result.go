package probe

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"unicode"

	"sevagent/client"
)

func describe(c *x509.Certificate) *client.ServerCertificate {
	sum := sha256.Sum256(c.Raw)
	return &client.ServerCertificate{
		Subject:   printable(c.Subject.String()),
		Issuer:    printable(c.Issuer.String()),
		NotBefore: c.NotBefore,
		NotAfter:  c.NotAfter,
		SHA256:    hex.EncodeToString(sum[:]),
	}
}

// maxText bounds, in bytes, a text that a server may have influenced.
const maxText = 512

// printable makes such a text safe for a terminal: the server at the endpoint is not authenticated yet.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}
