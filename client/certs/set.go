package certs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
)

// Set is the content of one generation. All of it belongs together, and must not be changed.
type Set struct {
	// Generation is the name of the directory below the published one that the set was read from. The publisher keeps
	// it for at least ten minutes after it has been replaced.
	Generation string

	// Client and Server are the certificates, with intermediates and key; nil: not published here.
	Client, Server *tls.Certificate

	// Roots holds the trust anchors, for peers of either kind. It is never nil, for which crypto/tls would use the
	// roots of the host: without ca.crt it is empty, and nobody is trusted.
	Roots *x509.CertPool

	// RootsPEM is ca.crt; nil: not published here.
	RootsPEM []byte

	// NotAfter is the earliest end of the certificates in Client and Server; zero without either.
	NotAfter time.Time
}

// readSet reads a generation.
func readSet(dir string) (*Set, error) {
	s := &Set{Generation: filepath.Base(dir), Roots: x509.NewCertPool()}
	err := s.read(dir)
	if err != nil {
		return nil, fmt.Errorf("load certificates from %s: %w", dir, err)
	}
	return s, nil
}

func (s *Set) read(dir string) (err error) {
	if s.RootsPEM, err = readFile(dir, "ca.crt"); err != nil {
		return err
	}
	if s.RootsPEM != nil {
		if err := addRoots(s.Roots, s.RootsPEM); err != nil {
			return fmt.Errorf("ca.crt: %w", err)
		}
	}
	if s.Client, err = s.readPair(dir, "client"); err != nil {
		return err
	}
	if s.Server, err = s.readPair(dir, "server"); err != nil {
		return err
	}
	if s.RootsPEM == nil && s.Client == nil && s.Server == nil {
		return fmt.Errorf("there is no ca.crt, client.pem, client.crt, server.pem or server.crt: %w", fs.ErrNotExist)
	}
	return nil
}

// readPair reads name.pem, or name.crt and name.key; nil if there are neither.
func (s *Set) readPair(dir, name string) (*tls.Certificate, error) {
	both, err := readFile(dir, name+".pem")
	if err != nil {
		return nil, err
	}
	from, cert, key := name+".pem", both, both
	if both == nil {
		from = name + ".crt and " + name + ".key"
		if cert, err = readFile(dir, name+".crt"); err != nil {
			return nil, err
		}
		if key, err = readFile(dir, name+".key"); err != nil {
			return nil, err
		}
		switch {
		case cert == nil && key == nil:
			return nil, nil
		case cert == nil || key == nil:
			return nil, fmt.Errorf("%s: one is there without the other", from)
		}
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	for _, der := range pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		if s.NotAfter.IsZero() || c.NotAfter.Before(s.NotAfter) {
			s.NotAfter = c.NotAfter
		}
	}
	return &pair, nil
}

// addRoots is AppendCertsFromPEM, except that certificates that do not parse are an error: that one skips them
// silently.
func addRoots(pool *x509.CertPool, text []byte) error {
	n := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return fmt.Errorf("there is no certificate in it")
	}
	return nil
}
