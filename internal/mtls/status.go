package mtls

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"

	"sevagent/client"
)

// snapshot is a Publication with what is not for others.
type snapshot struct {
	client.Publication
	keys map[string][sha256.Size]byte // SHA-256 of the SubjectPublicKeyInfo, by kind
}

// show publishes a new snapshot.
func (r *Rotator) show() {
	main := r.main()
	s := &snapshot{keys: make(map[string][sha256.Size]byte), Publication: client.Publication{
		Ready:        r.isReady(),
		Path:         main.pub.path,
		Certificates: []client.Certificate{},
		Secrets:      []client.SecretStatus{},
		Guard:        main.guardStatus(),
		Clock:        r.clock.status(),
		Cost:         r.cost(),
	}}
	if g := main.current; g != nil {
		s.Generation, s.PublishedAt, s.NotAfter = g.name(), g.manifest.Published, g.set.notAfter()
		s.Certificates, s.Warnings = certificates(g.set), g.set.warnings
		for kind, leaf := range g.set.leaves {
			s.keys[kind] = spki(leaf)
		}
		for _, c := range g.set.carried {
			s.CAOverlap = append(s.CAOverlap, client.Overlap{Subject: c.cert.Subject.String(), SHA256: contentID(c.cert.Raw), Until: c.Until.UTC()})
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
	r.metrics.show(&s.Publication)
}

func (d *directory) status() client.ConsumerStatus {
	s := client.ConsumerStatus{Name: d.consumer.Name, Path: d.pub.path, Generation: d.generation(), Files: []string{}, Missing: d.missing, Guard: d.guardStatus()}
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

func (d *directory) guardStatus() client.GuardStatus {
	s := d.state
	s.Immutable = d.current != nil && d.current.immutable
	return s
}

func certificates(s *set) []client.Certificate {
	list := []client.Certificate{}
	for _, f := range s.files {
		for _, c := range f.certs {
			sum, key := sha256.Sum256(c.Raw), spki(c)
			list = append(list, client.Certificate{
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
