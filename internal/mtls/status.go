package mtls

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"sevagent/client"
	"sevagent/internal/mtls/certset"
)

// snapshot is a Publication, and what is not part of the local API.
type snapshot struct {
	client.Publication
	keys map[string][sha256.Size]byte // SHA-256 of the SubjectPublicKeyInfo, by kind
}

// updateStatus takes a new snapshot.
func (r *Rotator) updateStatus() {
	main := r.main()
	s := &snapshot{keys: make(map[string][sha256.Size]byte), Publication: client.Publication{
		Ready:        r.isReady(),
		Path:         main.Path(),
		Certificates: []client.Certificate{},
		Secrets:      []client.SecretStatus{},
		Guard:        main.guardStatus(),
		Clock:        r.clock.status(),
		Cost:         r.secrets.cost(r.settings.PollInterval),
	}}
	if g := main.Current(); g != nil {
		s.Generation, s.PublishedAt, s.NotAfter = g.Name(), g.Published(), g.Set.NotAfter()
		s.Expiry = append(expiry(g.Set), r.issuersExpiry(g.Set)...)
		s.Certificates, s.Warnings = certificates(g.Set)
		for kind, leaf := range g.Set.Leaves {
			s.keys[kind] = certset.SPKI(leaf)
		}
		for _, c := range g.Set.Carried {
			s.CAOverlap = append(s.CAOverlap, client.Overlap{
				Subject: c.Cert.Subject.String(), SHA256: c.Digest(), Until: c.Until.UTC(),
			})
		}
	}
	if err := cmp.Or(main.attempt.err, r.blocked); err != nil {
		s.Error = err.Error()
	}
	for _, t := range r.targets[1:] {
		s.Consumers = append(s.Consumers, t.status())
	}
	for _, k := range r.secrets {
		s.Secrets = append(s.Secrets, k.status())
	}
	r.status.Store(s)
	r.metrics.update(&s.Publication)
}

// expiry lists when the files of a set end. Those that hold a private key beside a certificate end with client.crt and
// server.crt.
func expiry(s *certset.Set) (list []client.Expiry) {
	for _, f := range s.Files {
		if f.Ends != nil && len(f.Certs) > 0 {
			list = append(list, client.Expiry{
				File: f.Name, Secret: f.Origin.Secret, Subject: f.Ends.Subject.String(),
				NotBefore: f.Ends.NotBefore, NotAfter: f.Ends.NotAfter,
			})
		}
	}
	return list
}

// issuersExpiry lists when the CAs end that issue certificates for keys of this node, once for each source. SPIFFE is
// left out: who decides about renewals there changes CAs, too.
func (r *Rotator) issuersExpiry(s *certset.Set) (list []client.Expiry) {
	for _, f := range s.Files {
		kind, isLeaf := strings.CutSuffix(f.Name, ".crt")
		ca, k := s.Issuers[kind], r.secrets.find(f.Origin.Secret)
		if !isLeaf || ca == nil || k == nil || k.issuing() == nil {
			continue
		}
		known := func(e client.Expiry) bool { return e.Secret == k.name }
		if i := k.issuing().Status(); !i.RenewAt.IsZero() && !slices.ContainsFunc(list, known) {
			list = append(list, client.Expiry{
				File: f.Name, Secret: k.name, Subject: ca.Subject.String(), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
				ReplaceBy: ca.NotAfter.Add(-2 * i.NotAfter.Sub(i.Issued)).UTC(),
			})
		}
	}
	return list
}

// maxListed bounds the certificates of a file that the status names: a bundle of 1 MiB may hold two thousand, and
// clients read at most 1 MiB of a response.
const maxListed = 200

// certificates lists those of a set, and its warnings, to which it adds what it leaves out.
func certificates(s *certset.Set) (list []client.Certificate, warnings []string) {
	list, warnings = []client.Certificate{}, slices.Clone(s.Warnings)
	for _, f := range s.Files {
		if n := len(f.Certs) - maxListed; n > 0 {
			warnings = append(warnings, fmt.Sprintf("%s holds %d more certificates than are listed", f.Name, n))
		}
		for _, c := range f.Certs[:min(len(f.Certs), maxListed)] {
			sum, key := sha256.Sum256(c.Raw), certset.SPKI(c)
			list = append(list, client.Certificate{
				File:       f.Name,
				Subject:    c.Subject.String(),
				SANs:       sans(c),
				Issuer:     c.Issuer.String(),
				Serial:     c.SerialNumber.Text(16),
				NotBefore:  c.NotBefore,
				NotAfter:   c.NotAfter,
				SHA256:     hex.EncodeToString(sum[:]),
				SPKISHA256: hex.EncodeToString(key[:]),
				Secret:     f.Origin.Secret,
				Version:    f.Origin.Version,
			})
		}
	}
	return list, warnings
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
