package mtls

import (
	"cmp"
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
	// CAOverlap are the anchors that ca.crt holds although the secret does not any more.
	CAOverlap []Overlap        `json:"ca_overlap,omitempty"`
	Guard     GuardStatus      `json:"guard"`
	Adoption  Adoption         `json:"adoption"`
	Consumers []ConsumerStatus `json:"consumers,omitempty"`
	Clock     ClockStatus      `json:"clock"`
	Cost      Cost             `json:"cost"`

	keys map[string][sha256.Size]byte
}

// ConsumerStatus is what has become of a consumer's directory.
type ConsumerStatus struct {
	Name        string      `json:"name"`
	Path        string      `json:"path"`
	Generation  string      `json:"generation,omitempty"`
	PublishedAt time.Time   `json:"published_at,omitzero"`
	Files       []string    `json:"files"`             // published there
	Missing     []string    `json:"missing,omitempty"` // configured for it, but given by no secret
	Error       string      `json:"error,omitempty"`
	Guard       GuardStatus `json:"guard"`
	Adoption    Adoption    `json:"adoption"`
}

// Overlap is an anchor on its way out.
type Overlap struct {
	Subject string    `json:"subject"`
	SHA256  string    `json:"sha256"` // of the certificate
	Until   time.Time `json:"until"`
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
	// Preflight is what would become of the pending version.
	Preflight *PreflightStatus `json:"preflight,omitempty"`
	// Error is the reason of any state but current.
	Error string `json:"error,omitempty"`
}

// show publishes a new snapshot.
func (r *Rotator) show() {
	main := r.main()
	s := &Status{
		Ready:        r.isReady(),
		Path:         main.pub.path,
		Certificates: []Certificate{},
		Secrets:      []SecretStatus{},
		Guard:        main.guardStatus(),
		Adoption:     main.adopted,
		Clock:        r.skew.status(),
		Cost:         r.cost(),
		keys:         make(map[string][sha256.Size]byte),
	}
	if g := main.current; g != nil {
		s.Generation, s.PublishedAt, s.NotAfter = g.name(), g.manifest.Published, g.set.notAfter()
		s.Certificates, s.Warnings = certificates(g.set), g.set.warnings
		for kind, leaf := range g.set.leaves {
			s.keys[kind] = spki(leaf)
		}
		for _, c := range g.set.carried {
			s.CAOverlap = append(s.CAOverlap, Overlap{c.cert.Subject.String(), contentID(c.cert.Raw), c.Until.UTC()})
		}
	}
	if err := cmp.Or(main.publish.err, r.blocked); err != nil {
		s.Error = err.Error()
	}
	for _, d := range r.dirs[1:] {
		s.Consumers = append(s.Consumers, d.status())
	}
	for _, k := range r.secrets {
		s.Secrets = append(s.Secrets, k.status())
	}
	r.status.Store(s)
	r.metrics.show(s)
}

func (d *directory) status() ConsumerStatus {
	s := ConsumerStatus{Name: d.consumer.Name, Path: d.pub.path, Generation: d.generation(), Files: []string{}, Missing: d.missing, Guard: d.guardStatus(), Adoption: d.adopted}
	if g := d.current; g != nil {
		s.PublishedAt = g.manifest.Published
		for _, e := range g.manifest.Files {
			s.Files = append(s.Files, e.File)
		}
	}
	if err := d.publish.err; err != nil {
		s.Error = err.Error()
	}
	return s
}

func (d *directory) guardStatus() GuardStatus {
	s := d.state
	s.Immutable = d.current != nil && d.current.immutable
	return s
}

// Current is the generation of a consumer's directory or, with an empty name, of the node's own. Empty: there is none.
func (s *Status) Current(consumer string) string {
	if consumer == "" {
		return s.Generation
	}
	for _, c := range s.Consumers {
		if c.Name == consumer {
			return c.Generation
		}
	}
	return ""
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
