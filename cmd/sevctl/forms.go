package main

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sevagent/internal/cli"
	"sevagent/internal/nitro"
	"sevagent/internal/snp"
)

// maxReportFile bounds what may hold a report, in bytes: an extended report, or another tool's file around one.
const maxReportFile = 256 << 10

// forms names the forms of a report that findReport recognises, for messages.
const forms = "raw (1184 bytes), hexadecimal, base64, followed by its certificate table, or in an Azure HCL report"

// findReport finds an attestation report in what tools hand out, and the certificates of the table behind it.
func findReport(data []byte) (report []byte, certs [][]byte, err error) {
	if text := bytes.TrimSpace(data); printable(text) {
		if data, err = decodeText(text); err != nil {
			return nil, nil, err
		}
	}
	at, err := reportOffset(data)
	if err != nil {
		return nil, nil, err
	}
	report, rest := data[at:at+snp.ReportSize], data[at+snp.ReportSize:]
	if at == 0 && len(bytes.Trim(rest, "\x00")) > 0 {
		table, err := snp.ParseCertTable(rest)
		if err != nil {
			return nil, nil, fmt.Errorf("behind the report are %d bytes that are no certificate table (%w); "+
				"'head -c %d FILE' cuts them off", len(rest), err, snp.ReportSize)
		}
		for _, entry := range table {
			certs = append(certs, entry.Data)
		}
	}
	return report, certs, nil
}

// nitroDocument returns the document of a Nitro hypervisor that data is, raw or as hexadecimal or base64, or nil.
func nitroDocument(data []byte) []byte {
	if text := bytes.TrimSpace(data); printable(text) {
		decoded, err := decodeText(text)
		if err != nil {
			return nil
		}
		data = decoded
	}
	if !nitro.Is(data) {
		return nil
	}
	return data
}

func printable(text []byte) bool {
	return len(text) > 0 && !bytes.ContainsFunc(text, func(r rune) bool {
		return r >= 0x7f || r < ' ' && r != '\n' && r != '\r' && r != '\t'
	})
}

// decodeText decodes hexadecimal or base64 of any alphabet, in one line or several.
func decodeText(text []byte) ([]byte, error) {
	switch {
	case text[0] == '{' || text[0] == '[':
		return nil, errors.New("JSON, not an attestation report" + reportInJSON(text))
	case bytes.Contains(text, []byte("-----BEGIN")):
		return nil, errors.New("PEM, not an attestation report; certificates are given with --cert")
	}
	joined := string(bytes.Join(bytes.Fields(text), nil))
	if data, err := hex.DecodeString(strings.TrimPrefix(strings.TrimPrefix(joined, "0x"), "0X")); err == nil {
		return data, nil
	}
	lines := strings.NewReplacer("\r", "", "\n", "", "-", "+", "_", "/", "=", "").Replace(string(text))
	if data, err := base64.RawStdEncoding.DecodeString(lines); err == nil {
		return data, nil
	}
	return nil, errors.New("text that is neither hexadecimal nor base64; a report comes " + forms)
}

// reportInJSON says which member of another project's JSON holds a report, and how to cut that out.
func reportInJSON(text []byte) string {
	var value any
	if json.Unmarshal(text, &value) != nil {
		return ""
	}
	path := memberWithReport(value, "")
	if path == "" {
		return "; a report in it can be verified with --report, which takes it " + forms
	}
	return fmt.Sprintf("; the report in it can be verified with --report: "+
		"'jq -r %s FILE | sevctl evidence verify --report - --cert CERT'", path)
}

func memberWithReport(value any, path string) string {
	switch v := value.(type) {
	case map[string]any:
		for name, inner := range v {
			if simpleName(name) {
				if found := memberWithReport(inner, path+"."+name); found != "" {
					return found
				}
			}
		}
	case string:
		if len(v) >= snp.ReportSize {
			if _, _, err := findReport([]byte(v)); err == nil {
				return path
			}
		}
	}
	return ""
}

// simpleName reports whether a name can stand in a jq path, and on a terminal, as it is.
func simpleName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	})
}

// reportOffset says where in data the report is.
func reportOffset(data []byte) (int, error) {
	const header = 32
	framed := len(data) >= header+snp.ReportSize && looksLikeReport(data[header:])
	switch {
	case len(data) == snp.ReportSize:
		return 0, nil
	case framed && bytes.HasPrefix(data, []byte("HCLA")): // Azure's paravisor: microsoft/openhcl, HCL_REPORT_SIGNATURE
		return header, nil
	case framed && binary.LittleEndian.Uint32(data) == 0 && binary.LittleEndian.Uint32(data[4:]) == snp.ReportSize:
		return header, nil // MSG_REPORT_RSP: STATUS, REPORT_SIZE, 24 reserved bytes (AMD 56860)
	case looksLikeReport(data):
		return 0, nil
	case len(data) > 4 && looksLikeReport(data[4:]) && data[0] == 0: // dstack: a version, and a length of SCALE
		return 4, nil
	}
	for at := 1; at+snp.ReportSize <= len(data); at++ {
		if looksLikeReport(data[at:]) {
			return 0, fmt.Errorf("%d bytes; what looks like a report is at offset %d: cut it out with "+
				"'tail -c +%d FILE | head -c %d'", len(data), at, at+1, snp.ReportSize)
		}
	}
	return 0, fmt.Errorf("%d bytes in which nothing looks like a report of %d bytes; a report comes %s",
		len(data), snp.ReportSize, forms)
}

// looksLikeReport reports whether data begins as a report does that is signed with ECDSA on P-384: R and S have 48
// bytes in fields of 72, and nothing follows them.
func looksLikeReport(data []byte) bool {
	if len(data) < snp.ReportSize {
		return false
	}
	r, err := snp.ParseReport(data[:snp.ReportSize])
	if err != nil || r.Version > 16 || r.SignatureAlgo != 1 || r.VMPL > 3 {
		return false
	}
	signature := data[snp.SignedSize:snp.ReportSize]
	zero := func(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
	return !zero(signature[:48]) && zero(signature[48:72]) && !zero(signature[72:120]) && zero(signature[120:])
}

// certNames are the files of a directory of certificates, as virtee/snpguest lays it out, the endorsement key's first.
var certNames = []string{"vlek", "vcek", "asvk", "ask", "ark"}

// readCerts reads the certificates that --cert names, DER: of a file, or of the files of a directory.
func readCerts(path string) ([][]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, cli.Usagef("read certificates: %w", err)
	}
	if !info.IsDir() {
		data, err := readInput(nil, path, maxReportFile)
		if err != nil {
			return nil, err
		}
		return splitCerts(path, data)
	}
	var certs [][]byte
	var keys int
	for _, name := range certNames {
		for _, suffix := range []string{".pem", ".der", ".crt", ".cer"} {
			file := filepath.Join(path, name+suffix)
			if _, err := os.Stat(file); err != nil {
				continue
			}
			data, err := readInput(nil, file, maxReportFile)
			if err != nil {
				return nil, err
			}
			more, err := splitCerts(file, data)
			if err != nil {
				return nil, err
			}
			if certs = append(certs, more...); name == "vlek" || name == "vcek" {
				keys++
			}
		}
	}
	if keys == 0 {
		return nil, cli.Usagef("read certificates: %s has no vcek.pem or vlek.pem (or .der, .crt, .cer)", path)
	}
	return certs, nil
}

// splitCerts returns the certificates in the content of a file: PEM, DER, several of either, or a certificate table.
// Any other content is returned unchanged, and the verifier looks for the endorsement key's certificate elsewhere.
func splitCerts(file string, data []byte) (certs [][]byte, err error) {
	if bytes.Contains(data, []byte("-----BEGIN")) {
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				return nil, cli.Usagef("read certificates: %s holds PEM of type %q, want CERTIFICATE", file, block.Type)
			}
			certs = append(certs, block.Bytes)
		}
		if certs == nil {
			return nil, cli.Usagef("read certificates: %s holds PEM that cannot be decoded", file)
		}
		return certs, nil
	}
	if parsed, err := x509.ParseCertificates(data); err == nil && len(parsed) > 0 {
		for _, cert := range parsed {
			certs = append(certs, cert.Raw)
		}
		return certs, nil
	}
	if table, err := snp.ParseCertTable(data); err == nil && len(table) > 0 {
		for _, entry := range table {
			certs = append(certs, entry.Data)
		}
		return certs, nil
	}
	return [][]byte{data}, nil
}

// parseNonce reads a nonce in hexadecimal or in base64url. What consists of hexadecimal digits alone is hexadecimal: of
// the base64url forms of random nonces, one in 10^10 at most does.
func parseNonce(text string) ([]byte, error) {
	if strings.Trim(text, "0123456789abcdefABCDEF") == "" {
		nonce, err := hex.DecodeString(text)
		if err != nil {
			return nil, cli.Usagef("--nonce is an odd number of hexadecimal digits (%d)", len(text))
		}
		return nonce, nil
	}
	nonce, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimRight(text, "="))
	if err != nil || strings.ContainsAny(text, "\r\n") {
		return nil, cli.Usagef("--nonce is neither hexadecimal nor base64url")
	}
	return nonce, nil
}

// peerKey returns the SubjectPublicKeyInfo of the first certificate in a file, PEM or DER.
func peerKey(file string) ([]byte, error) {
	data, err := readInput(nil, file, maxReportFile)
	if err != nil {
		return nil, err
	}
	cert := firstCert(data)
	if cert == nil {
		return nil, cli.Usagef("--peer-cert: %s holds no certificate, in PEM or DER", file)
	}
	return slices.Clone(cert.RawSubjectPublicKeyInfo), nil
}

// firstCert returns the first certificate in PEM, which may follow its key, or the one that data is in DER, or nil.
func firstCert(data []byte) *x509.Certificate {
	der := data
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if der = nil; block.Type == "CERTIFICATE" {
			der = block.Bytes
			break
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return cert
}
