package certset

import (
	"bytes"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"strings"
)

// isSequence reports whether der is one ASN.1 SEQUENCE and nothing else, as every form of private key is. A plain
// secret may hold kinds of key that this program does not know.
func isSequence(der []byte) bool {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(der, &v)
	return err == nil && len(rest) == 0 && v.Tag == asn1.TagSequence && v.IsCompound
}

// canonical drops the headers except those that an encrypted key cannot do without (RFC 1421).
func canonical(block *pem.Block) *pem.Block {
	c := &pem.Block{Type: block.Type, Bytes: block.Bytes}
	for _, h := range []string{"Proc-Type", "DEK-Info"} {
		if v, ok := block.Headers[h]; ok && block.Headers["Proc-Type"] != "" {
			if c.Headers == nil {
				c.Headers = make(map[string]string)
			}
			c.Headers[h] = v
		}
	}
	return c
}

// normalise repairs what text suffers on its way into a secret: CRLF, and line ends written as a backslash and an n.
// PEM has no other use for a backslash.
func normalise(text string) string {
	return strings.NewReplacer(`\r\n`, "\n", `\n`, "\n", `\r`, "\n", "\r\n", "\n", "\r", "\n").Replace(text)
}

// decodePEM returns the blocks in text. Other text is allowed around them (RFC 7468, section 2), a damaged block
// is not: encoding/pem skips those silently.
func decodePEM(text string) ([]*pem.Block, error) {
	if strings.TrimSpace(text) == "" {
		return nil, fmt.Errorf("is empty")
	}
	var blocks []*pem.Block
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		blocks = append(blocks, block)
	}
	begin, end := strings.Count(text, "-----BEGIN "), strings.Count(text, "-----END ")
	switch {
	case begin == 0 && end == 0:
		return nil, fmt.Errorf("is not PEM")
	case begin != len(blocks) || end != len(blocks):
		return nil, fmt.Errorf("holds a PEM block that is cut short or damaged: %d whole, %d begun, %d ended",
			len(blocks), begin, end)
	}
	for _, block := range blocks {
		odd := strings.Trim(block.Type, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ") != ""
		if odd || strings.TrimSpace(block.Type) != block.Type {
			return nil, fmt.Errorf("holds a PEM block with an odd label")
		}
	}
	return blocks, nil
}

func isPrivate(label string) bool {
	return strings.Contains(label, "PRIVATE KEY")
}

// describeLabel names label if it is one of those in use. Anything else may be a misplaced part of the secret.
func describeLabel(label string) string {
	switch label {
	case "CERTIFICATE", "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY",
		"ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY",
		"DSA PRIVATE KEY", "PUBLIC KEY", "RSA PUBLIC KEY", "EC PARAMETERS", "DH PARAMETERS", "CERTIFICATE REQUEST",
		"NEW CERTIFICATE REQUEST", "X509 CRL", "PKCS7", "CMS", "X509 CERTIFICATE", "TRUSTED CERTIFICATE":
		return "a block labelled " + label
	}
	return "a block with an unknown label"
}

func encodePEM(blocks ...*pem.Block) []byte {
	var b bytes.Buffer
	for _, block := range blocks {
		// This cannot fail: a buffer takes everything, and canonical has dropped headers that do not encode.
		if err := pem.Encode(&b, block); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}
