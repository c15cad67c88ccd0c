package mtls

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"
)

// State is what has become of a secret.
type State string

// The states of a secret. Whatever the state, the last good version stays published.
const (
	StateCurrent     State = "current"     // the current version is published
	StateWaiting     State = "waiting"     // not looked at yet, or waiting for the rest of the set
	StateHeld        State = "held"        // not valid yet; published when it is
	StateRejected    State = "rejected"    // the current version cannot be published
	StateUnreachable State = "unreachable" // a transient failure
	StateDenied      State = "denied"      // a persistent failure
)

var states = []State{StateCurrent, StateWaiting, StateHeld, StateRejected, StateUnreachable, StateDenied}

// Status is a snapshot of what is published and why. It never changes once made, and never holds content of a
// secret other than certificates.
type Status struct {
	// Ready: a complete, valid set has been published, now or by an earlier run.
	Ready       bool      `json:"ready"`
	Path        string    `json:"path"`
	Generation  string    `json:"generation,omitempty"`
	PublishedAt time.Time `json:"published_at,omitzero"`
	// NotAfter is when the first client or server certificate expires, without one the first certificate.
	NotAfter     time.Time      `json:"not_after,omitzero"`
	Certificates []Certificate  `json:"certificates"`
	Secrets      []SecretStatus `json:"secrets"`
	Warnings     []string       `json:"warnings,omitempty"`
	// Error is why the last attempt to publish did not succeed. Empty: it did, or there was none.
	Error string `json:"error,omitempty"`

	keys map[string][sha256.Size]byte
}

// Certificate is one certificate in one published file.
type Certificate struct {
	File       string    `json:"file"`
	Subject    string    `json:"subject"`
	SANs       []string  `json:"sans,omitempty"` // with their type, as in URI:spiffe://example.org/node
	Issuer     string    `json:"issuer"`
	Serial     string    `json:"serial"` // hex
	NotBefore  time.Time `json:"not_before"`
	NotAfter   time.Time `json:"not_after"`
	SHA256     string    `json:"sha256"`      // of the certificate
	SPKISHA256 string    `json:"spki_sha256"` // of its SubjectPublicKeyInfo
	Secret     string    `json:"secret"`
	Version    string    `json:"version"`
}

// SecretStatus is what is known of one secret.
type SecretStatus struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Published is the version that is published, Version the one that is current. Empty: none, or not known yet.
	Published   string    `json:"published_version,omitempty"`
	Version     string    `json:"version,omitempty"`
	Pending     string    `json:"pending_version,omitempty"`
	LastChecked time.Time `json:"last_checked,omitzero"` // the last time the source answered
	NextCheck   time.Time `json:"next_check,omitzero"`
	HeldUntil   time.Time `json:"held_until,omitzero"`
	// Error is the reason of any state but current.
	Error string `json:"error,omitempty"`
}

func certificates(s *set) []Certificate {
	list := []Certificate{}
	for _, f := range s.files {
		for _, c := range f.certs {
			sum, key := sha256.Sum256(c.Raw), spki(c)
			list = append(list, Certificate{
				File:       f.name,
				Subject:    c.Subject.String(),
				SANs:       sans(c),
				Issuer:     c.Issuer.String(),
				Serial:     c.SerialNumber.Text(16),
				NotBefore:  c.NotBefore,
				NotAfter:   c.NotAfter,
				SHA256:     hex.EncodeToString(sum[:]),
				SPKISHA256: hex.EncodeToString(key[:]),
				Secret:     f.origin.Secret,
				Version:    f.origin.Version,
			})
		}
	}
	return list
}

func sans(c *x509.Certificate) []string {
	var list []string
	for _, v := range c.DNSNames {
		list = append(list, "DNS:"+v)
	}
	for _, v := range c.IPAddresses {
		list = append(list, "IP:"+v.String())
	}
	for _, v := range c.URIs {
		list = append(list, "URI:"+v.String())
	}
	for _, v := range c.EmailAddresses {
		list = append(list, "email:"+v)
	}
	return list
}
