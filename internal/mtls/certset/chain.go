package certset

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxSkew is how far in the future a certificate's validity may begin while we still publish it at once: the issuer's
// clock need not agree with ours to the second, and readers allow as much.
const maxSkew = 5 * time.Minute

// indexLeaf returns the index of the certificate that key belongs to, which need not come first; -1: there is none.
func indexLeaf(certs []*x509.Certificate, key crypto.Signer) int {
	return slices.IndexFunc(certs, func(c *x509.Certificate) bool {
		pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		return ok && pub.Equal(key.Public())
	})
}

// verify returns the first moment, now or later, at which a TLS peer that trusts anchors would accept leaf. It returns
// an error if there is none.
func verify(kind string, leaf *x509.Certificate, rest, anchors []*x509.Certificate, now time.Time) (time.Time, error) {
	if now.After(leaf.NotAfter) {
		return time.Time{}, errors.New(expired(leaf))
	}
	usage := x509.ExtKeyUsageClientAuth
	if kind == kindServer {
		usage = x509.ExtKeyUsageServerAuth
	}
	named := func(u x509.ExtKeyUsage) bool { return slices.Contains(leaf.ExtKeyUsage, u) }
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 && !named(usage) && !named(x509.ExtKeyUsageAny) {
		return time.Time{}, fmt.Errorf("is not for %s authentication: its extended key usage does not say so", kind)
	}
	from, err := validFrom(leaf, rest, anchors, usage, now)
	if err != nil {
		return time.Time{}, fmt.Errorf("does not lead to %s: %s", caCert, strings.TrimPrefix(err.Error(), "x509: "))
	}
	return from, nil
}

// maxTries bounds how often verify looks for a chain, for which crypto/x509 verifies up to a hundred signatures.
const maxTries = 2

// validFrom returns the first moment, now or later, at which leaf leads to one of anchors. Any certificate of the chain
// may begin in the future, so each of their dates is tried at which names and dates allow a chain.
func validFrom(
	leaf *x509.Certificate, intermediates, anchors []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time,
) (time.Time, error) {
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
	start := now
	if leaf.NotBefore.After(now) {
		start = leaf.NotBefore
	}
	moments := []time.Time{start}
	consider := func(pool *x509.CertPool, certs []*x509.Certificate) {
		for _, c := range certs {
			pool.AddCert(c)
			if c.NotBefore.After(start) {
				moments = append(moments, c.NotBefore)
			}
		}
	}
	consider(opts.Roots, anchors)
	consider(opts.Intermediates, intermediates)
	slices.SortFunc(moments, time.Time.Compare)

	moments = slices.CompactFunc(moments, time.Time.Equal)
	moments = slices.DeleteFunc(moments, func(t time.Time) bool { return !mayLead(leaf, intermediates, anchors, t) })
	if len(moments) == 0 {
		moments = []time.Time{start} // for the reason
	}

	var first error
	for i, t := range moments {
		if i == maxTries {
			return time.Time{}, fmt.Errorf("%w; %d later dates were not tried", first, len(moments)-i)
		}
		opts.CurrentTime = t
		_, err := leaf.Verify(opts)
		if err == nil {
			return t, nil
		}
		if first == nil {
			first = err
		}
	}
	return time.Time{}, first
}

// mayLead reports whether there is a chain at t, going by names and dates alone.
func mayLead(leaf *x509.Certificate, intermediates, anchors []*x509.Certificate, t time.Time) bool {
	if slices.ContainsFunc(anchors, leaf.Equal) {
		return true
	}
	reached := []*x509.Certificate{leaf}
	for i := 0; i < len(reached); i++ {
		issues := func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, reached[i].RawIssuer) && !t.Before(c.NotBefore) && !t.After(c.NotAfter)
		}
		if slices.ContainsFunc(anchors, issues) {
			return true
		}
		for _, c := range intermediates {
			if issues(c) && !slices.Contains(reached, c) {
				reached = append(reached, c)
			}
		}
	}
	return false
}

// orderChain returns leaf followed by the certificates of rest that lead up from it, and those that do not.
func orderChain(leaf *x509.Certificate, rest []*x509.Certificate) (chain, extra []*x509.Certificate) {
	chain, extra = []*x509.Certificate{leaf}, slices.Clone(rest)
	for c := leaf; !bytes.Equal(c.RawSubject, c.RawIssuer); {
		i := slices.IndexFunc(extra, func(issuer *x509.Certificate) bool {
			return bytes.Equal(issuer.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(issuer) == nil
		})
		if i < 0 {
			break
		}
		c = extra[i]
		chain, extra = append(chain, c), slices.Delete(extra, i, i+1)
	}
	return chain, extra
}

func expired(c *x509.Certificate) string {
	return "expired on " + c.NotAfter.UTC().Format(time.RFC3339)
}
