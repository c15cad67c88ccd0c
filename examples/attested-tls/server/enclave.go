package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	attestedtls "sevagent/examples/attested-tls"
	"sevagent/internal/sim/simnitro"
)

// enclave makes a document with two of its fields. In an enclave that is the request Attestation to /dev/nsm, as
// aws-nitro-enclaves-nsm-api sends it. Only this program may reach it: who chooses the fields can be taken for it.
type enclave func(userData, nonce []byte) ([]byte, error)

// showEnclave sends the enclave's document for this connection and the key of our certificate, or an empty message.
func (s *server) showEnclave(conn *tls.Conn) error {
	if s.enclave == nil {
		return attestedtls.WriteMessage(conn, nil)
	}
	leaf, err := x509.ParseCertificate(s.tlsConfig.Certificates[0].Certificate[0])
	if err != nil {
		return fmt.Errorf("read the server's certificate: %w", err)
	}
	userData, nonce, err := attestedtls.EnclaveFields(conn.ConnectionState(), leaf.RawSubjectPublicKeyInfo)
	if err != nil {
		return err
	}
	doc, err := s.enclave(userData, nonce)
	if err != nil {
		return fmt.Errorf("get the enclave's document: %w", err)
	}
	if err := attestedtls.WriteMessage(conn, doc); err != nil {
		return fmt.Errorf("send the enclave's document: %w", err)
	}
	return nil
}

// simulateEnclave makes an enclave under a root of its own, and writes what a client has to know about it.
func simulateEnclave(dir string) (enclave, error) {
	ca, err := simnitro.New()
	if err != nil {
		return nil, fmt.Errorf("make a root for the simulated enclave: %w", err)
	}
	pcrs := make(map[int][]byte)
	for i, value := range simnitro.PCRs() {
		if i < 16 { // an enclave has no others
			pcrs[i] = value
		}
	}
	// As nitro-cli build-enclave prints it.
	measurements, err := json.Marshal(map[string]map[string]string{"Measurements": {
		"HashAlgorithm": "Sha384 { ... }", "PCR0": hex.EncodeToString(pcrs[0]),
		"PCR1": hex.EncodeToString(pcrs[1]), "PCR2": hex.EncodeToString(pcrs[2]),
	}})
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.WriteFile(filepath.Join(dir, "root.pem"), ca.PEM(), 0o644),
		os.WriteFile(filepath.Join(dir, "measurements.json"), measurements, 0o644))
	return func(userData, nonce []byte) ([]byte, error) {
		return ca.Sign(simnitro.Fields{Suffix: "-enc0123456789abcdef", Map: simnitro.MapEnclave, PCRs: pcrs,
			Time: time.Now(), UserData: userData, Nonce: nonce})
	}, err
}
