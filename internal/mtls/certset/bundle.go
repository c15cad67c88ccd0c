package certset

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// maxBytes bounds a secret. Secrets Manager's own limit is 65,536 bytes (API reference, PutSecretValue).
const maxBytes = 64 << 10

// RejectError says why a secret cannot be published.
type RejectError struct {
	Secret string
	Field  string // a key of the JSON secret; empty: the secret as a whole
	Reason string
}

func (e *RejectError) Error() string {
	if e.Field == plain {
		return fmt.Sprintf("secret %s: %s", e.Secret, e.Reason)
	}
	return fmt.Sprintf("secret %s: %s: %s", e.Secret, e.Field, e.Reason)
}

// Bundle is one version of one secret, parsed. Everything about it that depends neither on the time nor on other
// fields has been verified. Without a version it stands for a secret that has given nothing.
type Bundle struct {
	Secret, Version string

	fields    map[string]*part // by the keys above
	noOverlap bool             // ca_overlap: false
	warnings  []string
	joined    bool // restored from files that held the anchors of several secrets
}

// Partial reports whether b was restored from files that do not say which of their anchors are its own, so that the
// secret has to be read again.
func (b *Bundle) Partial() bool { return b.joined }

// Parse reads the content of a secret. What begins with a brace is a JSON object, and gives the fields that it has of
// the known ones; anything else is PEM, and gives the field plain. The error is a *RejectError.
func Parse(secret, version string, content []byte) (*Bundle, error) {
	reject := func(field, format string, args ...any) (*Bundle, error) {
		return nil, &RejectError{secret, field, fmt.Sprintf(format, args...)}
	}
	if len(content) > maxBytes {
		return reject(plain, "is larger than %d bytes", maxBytes)
	}
	content = bytes.TrimPrefix(content, []byte("\ufeff"))
	b := &Bundle{Secret: secret, Version: version, fields: make(map[string]*part)}
	object := parseObject(content)

	switch {
	case object.err != nil:
		return reject(plain, "begins as JSON, and is %v; a line break in a value is written \\n", object.err)
	case object.is && len(object.known) == 0:
		return reject(plain, "is a JSON object without any of %s", strings.Join(jsonFields, ", "))
	case !object.is:
		p, err := parsePlain(normalise(string(content)))
		if err != nil {
			return reject(plain, "%v", err)
		}
		b.fields[plain] = p
		return b, nil
	}

	for _, field := range jsonFields {
		switch raw := object.known[field]; {
		case len(raw) == 0:
		case len(raw) > 1:
			return reject(field, "appears twice")
		default:
			var text *string
			if err := json.Unmarshal(raw[0], &text); err != nil {
				return reject(field, "is not a string")
			}
			if text == nil { // null, as Terraform's jsonencode writes what is not set
				continue
			}
			p, err := parseField(field, normalise(*text))
			if err != nil {
				return reject(field, "%v", err)
			}
			b.fields[field] = p
		}
	}
	if len(b.fields) == 0 {
		return reject(plain, "has no value but null")
	}

	switch raw := object.overlap; {
	case len(raw) > 1:
		return reject(caOverlap, "appears twice")
	case len(raw) == 1 && string(raw[0]) == "false":
		b.noOverlap = true
	case len(raw) == 1:
		return reject(caOverlap, "must be false, to drop the anchors of earlier versions at once, or absent")
	}
	b.warnings = object.warnings()
	return b, nil
}
