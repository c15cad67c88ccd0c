package mtls

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// set is all that one generation holds, validated as a whole.
type set struct {
	files   []file // without manifest.json and evidence.json
	sources []sourceVersion
	// leaves are the client and the server certificate, by kind, where there is one.
	leaves   map[string]*x509.Certificate
	carried  []carried // in ca.crt, beside the anchors of the secret
	warnings []string
}

// sourceVersion says which version of which secret went into a set.
type sourceVersion struct {
	Secret  string `json:"secret"`
	Version string `json:"version"`
}

// file is one file to publish.
type file struct {
	name    string
	content []byte
	private bool // key_mode instead of cert_mode
	origin  sourceVersion
	// certs are those that the file is the home of: client.pem only repeats client.crt.
	certs []*x509.Certificate
}

// The kinds of certificate with a key.
const (
	kindClient = "client"
	kindServer = "server"
)

// CollisionError: two secrets give the same file. It is for the operator to say which one is meant.
type CollisionError struct {
	File    string
	Secrets [2]string
}

func (e *CollisionError) Error() string {
	return fmt.Sprintf("secrets %s and %s both give %s", e.Secrets[0], e.Secrets[1], e.File)
}

// HeldError: the secret is fine but for its date, and will be published at Until.
type HeldError struct {
	Secret string
	Field  string
	Until  time.Time
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("secret %s: %s: held until it is valid, at %s", e.Secret, e.Field, e.Until.UTC().Format(time.RFC3339))
}

// assemble judges bundles together, in the order of the secrets list, and returns what to publish. A bundle without
// fields keeps the place of a secret that has given nothing. Errors are *RejectError, *HeldError and *CollisionError.
//
// standing are the bundles that are published already. That one of them has expired since is no reason to keep the
// others from being renewed. carry are anchors for ca.crt to hold beside its own; no leaf may need one of them.
func assemble(bundles, standing []*bundle, now time.Time, carry []carried) (*set, error) {
	s := &set{leaves: make(map[string]*x509.Certificate)}
	fields := make(map[string]*bundle)
	for i, b := range bundles {
		s.sources = append(s.sources, sourceVersion{b.secret, b.version})
		for _, w := range b.warnings {
			s.warnings = append(s.warnings, fmt.Sprintf("secret %s: %s", b.secret, w))
		}
		for _, field := range jsonFields {
			if b.fields[field] == nil {
				continue
			}
			if other := fields[field]; other != nil {
				return nil, &CollisionError{fileOf(field), [2]string{other.secret, b.secret}}
			}
			fields[field] = b
		}
		if p := b.fields[plain]; p != nil {
			s.add(b, "cert-"+strconv.Itoa(i)+".pem", p)
		}
	}
	for _, kind := range []string{kindClient, kindServer} {
		if err := s.addPair(kind, fields, standing, now); err != nil {
			return nil, err
		}
	}
	if b := fields[caCert]; b != nil {
		s.carried = carry
		if err := s.addAnchors(b, slices.Contains(standing, b), now); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(s.files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return s, nil
}

// fileOf turns client_cert into client.crt, client_key into client.key.
func fileOf(field string) string {
	name, what, _ := strings.Cut(field, "_")
	if what == "cert" {
		what = "crt"
	}
	return name + "." + what
}

func (s *set) add(b *bundle, name string, p *part) {
	s.files = append(s.files, file{name, p.pem(), p.private, sourceVersion{b.secret, b.version}, p.certs})
}

// addPair adds the certificate and the key of one kind, and the two in one file: one open, one read, no mismatch.
func (s *set) addPair(kind string, fields map[string]*bundle, standing []*bundle, now time.Time) error {
	certField, keyField := kind+"_cert", kind+"_key"
	certs, keys := fields[certField], fields[keyField]
	switch {
	case certs == nil && keys == nil:
		return nil
	case keys == nil:
		return &RejectError{certs.secret, certField, "comes without " + keyField}
	case certs == nil:
		return &RejectError{keys.secret, keyField, "comes without " + certField}
	case fields[caCert] == nil:
		return &RejectError{certs.secret, certField, "comes without " + caCert + " to lead to"}
	}
	key, list := keys.fields[keyField], certs.fields[certField].certs
	i := indexLeaf(list, key.key)
	if i < 0 {
		return &RejectError{keys.secret, keyField, fmt.Sprintf("does not match %s: not the key of %q", certField, list[0].Subject)}
	}
	leaf, rest := list[i], slices.Delete(slices.Clone(list), i, i+1)
	warn := func(format string, args ...any) {
		s.warnings = append(s.warnings, fmt.Sprintf("secret %s: %s: ", certs.secret, certField)+fmt.Sprintf(format, args...))
	}
	if now.After(leaf.NotAfter) && slices.Contains(standing, certs) && slices.Contains(standing, keys) {
		warn("%s", expired(leaf))
	} else {
		from, err := judge(kind, leaf, rest, fields[caCert].fields[caCert].certs, now)
		if err != nil {
			return &RejectError{certs.secret, certField, err.Error()}
		}
		if from.After(now.Add(maxSkew)) {
			return &HeldError{certs.secret, certField, from}
		}
	}
	chain, extra := orderChain(leaf, rest)
	if len(extra) > 0 {
		warn("%q is not part of the chain", extra[0].Subject)
	}
	ordered := new(part)
	for _, c := range slices.Concat(chain, extra) {
		ordered.add(c)
	}
	s.leaves[kind] = leaf
	s.add(certs, fileOf(certField), ordered)
	s.add(keys, fileOf(keyField), key)
	s.add(certs, kind+".pem", &part{blocks: slices.Concat(key.blocks, ordered.blocks), private: true})
	return nil
}

// addAnchors adds ca.crt. Those that a leaf needs have been judged with it; here it is enough that one is valid.
func (s *set) addAnchors(b *bundle, standing bool, now time.Time) error {
	p := b.fields[caCert]
	var valid, root bool
	var next time.Time
	for _, c := range p.certs {
		switch {
		case now.After(c.NotAfter):
			s.warnings = append(s.warnings, fmt.Sprintf("secret %s: %s: %q %s", b.secret, caCert, c.Subject, expired(c)))
			continue
		case c.NotBefore.After(now.Add(maxSkew)):
			if next.IsZero() || c.NotBefore.Before(next) {
				next = c.NotBefore
			}
			continue
		}
		valid = true
		root = root || c.CheckSignatureFrom(c) == nil
	}
	switch {
	case !valid && !next.IsZero():
		return &HeldError{b.secret, caCert, next}
	case !valid && !standing:
		return &RejectError{b.secret, caCert, fmt.Sprintf("%q %s", p.certs[0].Subject, expired(p.certs[0]))}
	case valid && !root:
		s.warnings = append(s.warnings, fmt.Sprintf("secret %s: %s: holds no root, so readers that use OpenSSL need X509_V_FLAG_PARTIAL_CHAIN", b.secret, caCert))
	}
	all := &part{blocks: slices.Clone(p.blocks), certs: slices.Clone(p.certs)}
	for _, c := range s.carried {
		all.add(c.cert)
	}
	s.add(b, fileOf(caCert), all)
	return nil
}

// notAfter is when the first client or server certificate expires; without one, the first certificate at all.
// Zero: the set has no certificate.
func (s *set) notAfter() time.Time {
	var first time.Time
	earliest := func(c *x509.Certificate) {
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	for _, c := range s.leaves {
		earliest(c)
	}
	if len(s.leaves) == 0 {
		for _, f := range s.files {
			for _, c := range f.certs {
				earliest(c)
			}
		}
	}
	return first
}

// binding is what evidence.json speaks of: the client certificate's key, else the server's.
func (s *set) binding() (Binding, bool) {
	for _, kind := range []string{kindClient, kindServer} {
		if c := s.leaves[kind]; c != nil {
			return Binding{kind, spki(c)}, true
		}
	}
	return Binding{}, false
}

// Binding names a published public key.
type Binding struct {
	Kind string // "client" or "server"
	// SPKISHA256 is the SHA-256 of the certificate's SubjectPublicKeyInfo.
	SPKISHA256 [sha256.Size]byte
}

func spki(c *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(c.RawSubjectPublicKeyInfo)
}
