package certset

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// Set is everything that one generation holds, validated as a whole.
type Set struct {
	Files   []File    // sorted by name; without manifest.json and evidence.json
	Bundles []*Bundle // what it was made of, in the order of the configuration
	// Leaves are the client and the server certificate, by kind, where there is one.
	Leaves map[string]*x509.Certificate
	// Issuers are, by kind, the first to expire of the CAs that the chain of a leaf needs.
	Issuers  map[string]*x509.Certificate
	Carried  []Carried // in ca.crt, beside the anchors of the secret
	Warnings []string

	bundle *File // published only where a consumer asks for it, since client.pem has the same for all others
}

// Carried is an anchor that ca.crt holds although the secret has dropped it: not all peers whose certificates it issued
// have new ones yet. It is bounded, and has to be configured, since after the loss of a CA's key that CA has to go at
// once.
type Carried struct {
	Cert  *x509.Certificate
	Until time.Time
}

// Digest returns the SHA-256 of the certificate in hexadecimal digits.
func (c Carried) Digest() string { return digest(c.Cert.Raw) }

// Origin names the version of a secret that a file comes from, and how it was read.
type Origin struct {
	Secret  string  `json:"secret"`
	Version string  `json:"version"`
	Reading Reading `json:"reading,omitzero"`
}

// File is one file to publish.
type File struct {
	Name    string
	Content []byte
	Private bool // only for the owner of the published files
	Origin  Origin
	Also    []Origin // other secrets that have given some of its anchors
	// Certs are the certificates that the file is the home of: client.pem only repeats those of client.crt.
	Certs []*x509.Certificate
	// Ends is the certificate whose expiry ends the use of the file, or nil. For client.crt, client.pem and the
	// server's, it is the first to expire of those that the chain needs, from the leaf to the anchor. Of anchors, it is
	// the last.
	Ends *x509.Certificate
}

// Digest returns the SHA-256 of the content in hexadecimal digits.
func (f File) Digest() string { return digest(f.Content) }

// last returns what ends a file of certificates that are no chain: the first of those for one peer or, if all are CAs,
// the last of these. It returns nil if there are none.
func last(certs []*x509.Certificate) (c *x509.Certificate) {
	leaves := slices.DeleteFunc(slices.Clone(certs), func(c *x509.Certificate) bool { return c.IsCA })
	switch byExpiry := func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }; {
	case len(leaves) > 0:
		return slices.MinFunc(leaves, byExpiry)
	case len(certs) > 0:
		return slices.MaxFunc(certs, byExpiry)
	}
	return nil
}

// String is how logs name an origin.
func (o Origin) String() string { return o.Secret + " " + o.Version }

// origin returns where the content of b comes from.
func (b *Bundle) origin() Origin { return Origin{b.Secret, b.Version, b.Reading} }

// Origins lists the versions that the set was made of, in the order of the configuration.
func (s *Set) Origins() []Origin {
	var list []Origin
	for _, b := range s.Bundles {
		list = append(list, b.origin())
	}
	return list
}

// NotAfter returns when the first of the files comes to its end, or zero if none does.
func (s *Set) NotAfter() (first time.Time) {
	for _, f := range s.Files {
		if f.Ends != nil && (first.IsZero() || f.Ends.NotAfter.Before(first)) {
			first = f.Ends.NotAfter
		}
	}
	return first
}

// NextExpiry returns when the first certificate in it expires of those that have not by now; zero: none does. From then
// on, Assemble may find another path, or leave something out.
func (s *Set) NextExpiry(now time.Time) (first time.Time) {
	for _, f := range s.Files {
		for _, c := range f.Certs {
			if !now.After(c.NotAfter) && (first.IsZero() || c.NotAfter.Before(first)) {
				first = c.NotAfter
			}
		}
	}
	return first
}

// Binding returns the kind of the certificate that evidence.json speaks of, the client's or else the server's, and the
// SHA-256 of its SubjectPublicKeyInfo.
func (s *Set) Binding() (kind string, spki [sha256.Size]byte, ok bool) {
	for _, kind := range kinds {
		if leaf, ok := s.Leaves[kind]; ok {
			return kind, SPKI(leaf), true
		}
	}
	return "", spki, false
}

// SPKI returns the SHA-256 of a certificate's SubjectPublicKeyInfo.
func SPKI(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// digest returns the SHA-256 of content, hex.
func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// Subset returns the part of the set that has the named files, and the names that it has no file for.
func (s *Set) Subset(names []string) (sub *Set, missing []string) {
	sub = &Set{Bundles: s.Bundles, Leaves: make(map[string]*x509.Certificate)}
	if slices.Contains(names, anchorFile) {
		sub.Carried = s.Carried
	}
	files := s.Files
	if s.bundle != nil {
		files = append(slices.Clip(files), *s.bundle)
	}
	for _, name := range names {
		i := slices.IndexFunc(files, func(f File) bool { return f.Name == name })
		if i < 0 {
			missing = append(missing, name)
			continue
		}
		sub.Files = append(sub.Files, files[i])
		for kind, leaf := range s.Leaves {
			if name == fileOf(kind+"_cert") || name == pairFile(kind) || name == bundleFile && kind == kindClient {
				sub.Leaves[kind] = leaf
			}
		}
	}
	sub.sortFiles()
	return sub, missing
}

func (s *Set) sortFiles() {
	slices.SortFunc(s.Files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
}
