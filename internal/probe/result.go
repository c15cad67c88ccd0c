package probe

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strings"

	"sevagent/client"
	"sevagent/internal/visible"
)

func describe(c *x509.Certificate) *client.ServerCertificate {
	sum := sha256.Sum256(c.Raw)
	return &client.ServerCertificate{
		Subject:   clip(c.Subject.String()),
		Issuer:    clip(c.Issuer.String()),
		NotBefore: c.NotBefore,
		NotAfter:  c.NotAfter,
		SHA256:    hex.EncodeToString(sum[:]),
	}
}

// maxText bounds, in bytes, a text that a server may have influenced.
const maxText = 512

// clip makes such a text visible, and no longer than that: the server at the endpoint is not authenticated yet.
func clip(s string) string {
	s = visible.Text(s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}
