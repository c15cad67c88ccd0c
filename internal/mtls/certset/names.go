package certset

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"

	"sevagent/internal/pattern"
)

// Name constraints that OpenSSL applies and crypto/x509 does not: those of directory names, which crypto/x509 ignores
// where they are not critical, and those of DNS names and email addresses for such names in a subject (OpenSSL 3.0,
// crypto/x509/v3_ncons.c and x509_vfy.c, check_name_constraints).

var (
	oidNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidSubjectAltName  = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// checkNames verifies the names in p by the constraints of those above them.
func checkNames(p path) error {
	for i, c := range p {
		if i > 0 && isRoot(c) {
			continue
		}
		for _, ca := range p[i+1:] {
			if what := forbidden(ca, c, i == 0); what != "" {
				return fmt.Errorf("readers that use OpenSSL do not accept %q: the name constraints of %q do not permit its %s",
					c.Subject, ca.Subject, what)
			}
		}
	}
	return nil
}

// forbidden returns what sort of name in c the constraints of ca do not permit; empty: they permit all.
func forbidden(ca, c *x509.Certificate, leaf bool) string {
	permitted, excluded := directorySubtrees(ca)
	for _, name := range directoryNames(c) {
		if !permits(permitted, excluded, name.within) {
			return "directory name"
		}
	}
	for _, a := range c.Subject.Names {
		value := fmt.Sprint(a.Value)
		domain := func(domain string) bool { return isWithin(value, domain) }
		mailbox := func(base string) bool { return isMailbox(value, base) }
		switch {
		case a.Type.Equal(oidCommonName) && leaf && len(c.DNSNames) == 0 && hostName.MatchString(value) &&
			!permits(ca.PermittedDNSDomains, ca.ExcludedDNSDomains, domain):
			return "common name, which stands in for a DNS name"
		case a.Type.Equal(oidEmailAddress) && !permits(ca.PermittedEmailAddresses, ca.ExcludedEmailAddresses, mailbox):
			return "email address"
		}
	}
	return ""
}

// permits reports whether constraints of one sort permit a name, given whether it is within one.
func permits[T any](permitted, excluded []T, within func(T) bool) bool {
	return (len(permitted) == 0 || slices.ContainsFunc(permitted, within)) && !slices.ContainsFunc(excluded, within)
}

var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidEmailAddress = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}

	// hostName is what OpenSSL takes a common name for a DNS name by.
	hostName = pattern.New(`^(\w([\w-]*\w)?\.)+\w([\w-]*\w)?$`)
)

// isWithin reports whether a host name is in a domain, or is it.
func isWithin(host, domain string) bool {
	host, domain = strings.ToLower(host), strings.ToLower(domain)
	before, found := strings.CutSuffix(host, domain)
	return found && (before == "" || domain == "" || domain[0] == '.' || strings.HasSuffix(before, "."))
}

// isMailbox reports whether an address is base, of the host that base is or, if that begins with a dot, in that domain.
func isMailbox(address, base string) bool {
	local, host, _ := strings.Cut(address, "@")
	if baseLocal, baseHost, ok := strings.Cut(base, "@"); ok {
		return local == baseLocal && strings.EqualFold(host, baseHost)
	}
	if strings.HasPrefix(base, ".") {
		return isWithin(host, base)
	}
	return strings.EqualFold(host, base)
}

// directoryName is an X.500 name in the form in which OpenSSL compares it.
type directoryName []string

// within reports whether a name is in the subtree of another one.
func (n directoryName) within(base directoryName) bool {
	return len(n) >= len(base) && slices.Equal(n[:len(base)], base)
}

// newDirectoryName reads a Name in DER; nil: it is none, or empty.
func newDirectoryName(der []byte) (n directoryName) {
	var sequence pkix.RDNSequence
	if _, err := asn1.Unmarshal(der, &sequence); err != nil {
		return nil
	}
	for _, set := range sequence {
		var parts []string
		for _, a := range set {
			value := strings.ToLower(strings.Join(strings.Fields(fmt.Sprint(a.Value)), " "))
			parts = append(parts, fmt.Sprintf("%v=%q", a.Type, value))
		}
		n = append(n, strings.Join(parts, "+"))
	}
	return n
}

// directoryNames returns the subject of c and the directory names beside it.
func directoryNames(c *x509.Certificate) (list []directoryName) {
	if n := newDirectoryName(c.RawSubject); n != nil {
		list = append(list, n)
	}
	var names asn1.RawValue
	if _, err := asn1.Unmarshal(extension(c, oidSubjectAltName), &names); err != nil {
		return list
	}
	for rest := names.Bytes; ; {
		var der []byte
		if der, rest = nextDirectoryName(rest); der == nil {
			return list
		}
		if n := newDirectoryName(der); n != nil {
			list = append(list, n)
		}
	}
}

// directorySubtrees returns the directory names that c permits and excludes below it.
func directorySubtrees(c *x509.Certificate) (permitted, excluded []directoryName) {
	var constraints struct {
		Permitted []asn1.RawValue `asn1:"optional,tag:0"`
		Excluded  []asn1.RawValue `asn1:"optional,tag:1"`
	}
	if _, err := asn1.Unmarshal(extension(c, oidNameConstraints), &constraints); err != nil {
		return nil, nil
	}
	read := func(subtrees []asn1.RawValue) (list []directoryName) {
		for _, s := range subtrees {
			if der, _ := nextDirectoryName(s.Bytes); der != nil {
				list = append(list, newDirectoryName(der))
			}
		}
		return list
	}
	return read(constraints.Permitted), read(constraints.Excluded)
}

// nextDirectoryName returns the first directoryName of GeneralNames, as DER, and what follows it; nil: there is none.
func nextDirectoryName(names []byte) (der, rest []byte) {
	for len(names) > 0 {
		var name asn1.RawValue
		rest, err := asn1.Unmarshal(names, &name)
		if err != nil {
			return nil, nil
		}
		if name.Class == asn1.ClassContextSpecific && name.Tag == 4 { // explicit, since Name is a CHOICE
			return name.Bytes, rest
		}
		names = rest
	}
	return nil, nil
}

// extension returns the value of an extension; nil: c has none.
func extension(c *x509.Certificate, id asn1.ObjectIdentifier) []byte {
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return e.Value
		}
	}
	return nil
}
