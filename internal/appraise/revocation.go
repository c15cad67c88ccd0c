package appraise

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Codes of a verdict that revocation lists decide.
const (
	CodeCertificateRevoked = "certificate_revoked"
	// CodeRevocationUnknown: lists were given, and none of them that is in force covers the certificate.
	CodeRevocationUnknown = "revocation_unknown"
)

// revocations are revocation lists that the roots have signed, by the ARK's name. A nil one was not asked for.
type revocations map[string]*x509.RevocationList

// readRevocations reads lists, DER or PEM, each signed by an ARK of the roots. Of two by the same ARK the newer counts.
func readRevocations(lists [][]byte, r roots) (revocations, error) {
	if len(lists) == 0 {
		return nil, nil
	}
	known := make(revocations)
	for i, data := range lists {
		list, err := readRevocation(data, r)
		if err != nil {
			return nil, fmt.Errorf("read revocation list %d: %w", i+1, err)
		}
		name := string(list.RawIssuer)
		if old := known[name]; old == nil || old.ThisUpdate.Before(list.ThisUpdate) {
			known[name] = list
		}
	}
	return known, nil
}

func readRevocation(data []byte, r roots) (*x509.RevocationList, error) {
	if block, rest := pem.Decode(data); block != nil {
		if block.Type != "X509 CRL" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, fmt.Errorf("want one PEM block of type X509 CRL, and found one of type %q", block.Type)
		}
		data = block.Bytes
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, errors.New("neither DER nor PEM of a revocation list")
	}
	// A critical extension says that the list is only a part of one: RFC 5280, section 5.2.
	for _, e := range list.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("it has the critical extension %v, which is not understood", e.Id)
		}
	}
	for _, a := range r {
		ark := a.ark
		if ark == nil || !bytes.Equal(ark.RawSubject, list.RawIssuer) {
			continue
		}
		if err := list.CheckSignatureFrom(ark); err != nil {
			return nil, fmt.Errorf("it is not signed by %s, whose name it carries", ark.Subject.CommonName)
		}
		return list, nil
	}
	return nil, fmt.Errorf("its issuer %q is none of the trusted roots", list.Issuer.CommonName)
}

// revoked returns the code and the reason why a certificate that leads to the roots must not be relied on, by the
// lists; none if it may be.
//
// AMD's lists are signed by the ARK and name serial numbers alone. A leaf is looked up as well as what is above it,
// although it was issued by another key than the list's. Serial number 0 is passed over: AMD gives it to all
// certificates of endorsement keys.
func (known revocations) revoked(leaf *x509.Certificate, r roots, now time.Time) (code, reason string) {
	if known == nil {
		return "", ""
	}
	for _, a := range r {
		ark := a.ark
		for _, issuer := range []*x509.Certificate{a.ask, a.asvk} {
			if ark == nil || issuer == nil || !bytes.Equal(issuer.RawSubject, leaf.RawIssuer) {
				continue
			}
			list := known[string(ark.RawSubject)]
			if list == nil {
				return CodeRevocationUnknown, fmt.Sprintf("no revocation list of %s was given", ark.Subject.CommonName)
			}
			if now.After(list.NextUpdate) { // as a list without a next update always is
				return CodeRevocationUnknown, fmt.Sprintf("the revocation list of %s ended at %s; fetch a newer one",
					ark.Subject.CommonName, list.NextUpdate.UTC().Format(time.RFC3339))
			}
			for _, entry := range list.RevokedCertificateEntries {
				for _, cert := range []*x509.Certificate{leaf, issuer, ark} {
					if cert.SerialNumber.Sign() != 0 && cert.SerialNumber.Cmp(entry.SerialNumber) == 0 {
						return CodeCertificateRevoked, fmt.Sprintf(
							"the certificate of %s, serial number %v, was revoked at %s",
							cert.Subject.CommonName, cert.SerialNumber, entry.RevocationTime.UTC().Format(time.RFC3339))
					}
				}
			}
			return "", ""
		}
	}
	return CodeRevocationUnknown, "no revocation list covers the issuer of the endorsement key's certificate"
}
