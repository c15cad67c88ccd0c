package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"sevagent/verify"
)

// measurements are the registers of an enclave's image: PCR0 the image, PCR1 kernel and bootstrap, PCR2 the
// application.
type measurements [3][]byte

// readMeasurements reads what nitro-cli build-enclave, or describe-eif, prints.
func readMeasurements(file string) (m measurements, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return m, err
	}
	var printed struct{ Measurements map[string]string }
	if err := json.Unmarshal(text, &printed); err != nil {
		return m, fmt.Errorf("%s is not what nitro-cli build-enclave prints: %w", file, err)
	}
	for i := range m {
		name := fmt.Sprint("PCR", i)
		m[i], err = hex.DecodeString(printed.Measurements[name])
		if err != nil || len(m[i]) != 48 {
			return m, fmt.Errorf("%s: Measurements.%s is not 96 hexadecimal digits", file, name)
		}
		if bytes.Equal(m[i], make([]byte, 48)) {
			return m, fmt.Errorf("%s: %s is zero, as of every enclave in debug mode", file, name)
		}
	}
	return m, nil
}

// enclaveVerifier returns a verifier of enclaves' documents: by AWS's root, or by that of a simulator.
func enclaveVerifier(roots string) (*verify.Verifier, error) {
	policy, err := verify.BuiltinPolicy("aws-shared")
	if roots != "" {
		policy, err = verify.ParsePolicy("enclave", fmt.Appendf(nil, "profile: aws-shared\nroots: %q\n", roots),
			os.ReadFile)
	}
	if err != nil {
		return nil, err
	}
	return verify.New(verify.Config{Policy: policy, AnyRegion: true, AllowCustomRoots: roots != ""})
}

// verifyEnclave reports why the document does not prove that this connection ends in an enclave of the image want,
// which uses the key of the server's certificate there. userData and nonce are what EnclaveFields returns.
func verifyEnclave(verifier *verify.Verifier, want measurements, doc, userData, nonce []byte, now time.Time) error {
	if len(doc) == 0 {
		return errors.New("verify the enclave's document: the server shows no document")
	}
	result, err := verifier.NitroDocument(doc, verify.Want{Nonce: nonce, Now: now})
	if err != nil {
		return fmt.Errorf("verify the enclave's document: %w", err)
	}
	return want.check(result.NitroTPM, userData)
}

// check reports why a genuine document is not of an enclave of this image that has chosen userData, or nil.
func (m measurements) check(d *verify.NitroTPM, userData []byte) error {
	if d.Kind != verify.EnclaveDocument {
		return fmt.Errorf("verify the enclave's document: it is of kind %s, want %s", d.Kind, verify.EnclaveDocument)
	}
	for i, value := range m {
		if !bytes.Equal(d.PCRs[i], value) {
			return fmt.Errorf("verify the enclave's document: PCR%d is %s, want %x", i, d.PCRs[i], value)
		}
	}
	if d.UserData == nil || !bytes.Equal(*d.UserData, userData) {
		return errors.New("verify the enclave's document: it is not for the key of the server's certificate")
	}
	return nil
}
