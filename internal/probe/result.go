package probe

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"time"
	"unicode"
)

// Code is how a probe ended. The codes are stable: they are in metrics and in answers of the local API.
type Code string

// How a probe can end. Only OK is good.
const (
	OK           Code = "ok"
	Pending      Code = "pending"     // not probed yet
	NoMaterial   Code = "no_material" // nothing is published to probe with; the network was not touched
	DNS          Code = "dns"         // the name does not resolve
	Refused      Code = "refused"     // nobody listens
	Unreachable  Code = "unreachable" // any other failure to connect
	Timeout      Code = "timeout"     // to connect, or if Reachable, to shake hands
	Protocol     Code = "protocol"    // not TLS, not a version of it that we speak, or broken off before we were asked for a certificate
	Expired      Code = "server_certificate_expired"
	Untrusted    Code = "server_certificate_untrusted"
	NameMismatch Code = "server_name_mismatch"
	// Alert: the server ended the handshake with a TLS alert. Reason says which, and if it had our certificate.
	Alert Code = "tls_alert"
	// Closed: the server had our certificate and hung up with no alert, which is how Node.js refuses one.
	Closed Code = "closed_after_certificate"
	// NotRequested: the handshake succeeds, but is not mutual: the server does not ask who we are. A warning.
	NotRequested Code = "no_client_certificate_requested"
)

// Result is what is known of an endpoint. It never changes once made.
type Result struct {
	Endpoint string `json:"endpoint"` // host:port, as configured
	Result   Code   `json:"result"`   // of the last probe
	// Reason is what is to be said of any result but ok and pending.
	Reason      string    `json:"reason,omitempty"`
	Since       time.Time `json:"since,omitzero"`        // when Result was first seen, without another in between
	LastProbe   time.Time `json:"last_probe,omitzero"`   // when the last probe started
	LastSuccess time.Time `json:"last_success,omitzero"` // when the last one that ended ok did
	Failures    int       `json:"failures"`              // probes in a row that did not end ok

	// The rest is of the last probe, as far as it got.

	Reachable bool `json:"reachable"` // a TCP connection was made
	// Address is what the connection was made to, IP:port.
	Address          string  `json:"address,omitempty"`
	ConnectSeconds   float64 `json:"connect_seconds,omitempty"`   // to resolve the name and to connect
	HandshakeSeconds float64 `json:"handshake_seconds,omitempty"` // from there to the end of the client's handshake
	TLSVersion       string  `json:"tls_version,omitempty"`       // as in "TLS 1.3"
	// Server is the leaf that the server showed, trusted or not.
	Server *Certificate `json:"server_certificate,omitempty"`
}

// OK reports whether the last probe found all as it should be. It is false before the first one: see Pending.
func (r Result) OK() bool { return r.Result == OK }

// Certificate describes a server's leaf.
type Certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	SHA256    string    `json:"sha256"` // of the certificate
}

func describe(c *x509.Certificate) *Certificate {
	sum := sha256.Sum256(c.Raw)
	return &Certificate{
		Subject:   printable(c.Subject.String()),
		Issuer:    printable(c.Issuer.String()),
		NotBefore: c.NotBefore,
		NotAfter:  c.NotAfter,
		SHA256:    hex.EncodeToString(sum[:]),
	}
}

// maxText bounds a text that a server may have had a hand in, in bytes.
const maxText = 512

// printable makes such a text fit for a terminal: who listens at the endpoint is not known yet.
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
