package certset

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxBytes bounds a secret, wherever it comes from. Its source may have a lower limit.
const maxBytes = 1 << 20

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
	Reading         Reading

	fields    map[string]*part // by the keys above
	noOverlap bool             // ca_overlap: false
	warnings  []string
	joined    bool // restored from files that held the anchors of several secrets
}

// Partial reports whether b was restored from files that do not say which of their anchors are its own, so that the
// secret has to be read again.
func (b *Bundle) Partial() bool { return b.joined }

// Leaf returns the certificate that belongs to the client's key in b or, without one, to the server's. Nil: b does not
// have both.
func (b *Bundle) Leaf() *x509.Certificate {
	for _, kind := range kinds {
		certs, key := b.fields[kind+"_cert"], b.fields[kind+"_key"]
		if certs == nil || key == nil {
			continue
		}
		if i := indexLeaf(certs.certs, key.key); i >= 0 {
			return certs.certs[i]
		}
	}
	return nil
}

// Parse reads the content of a secret. What begins with a brace is a JSON object, and gives the fields that it has of
// the known ones; anything else is PEM, and gives the field plain, unless how says another. The error is a
// *RejectError.
func Parse(secret, version string, content []byte, how Reading) (*Bundle, error) {
	b := &Bundle{Secret: secret, Version: version, Reading: how, fields: make(map[string]*part)}
	object, err := b.recognise(content)
	if err != nil {
		return nil, &RejectError{secret, plain, err.Error()}
	}
	if !object.is {
		field := how.As
		if err := b.parse(field, string(bytes.TrimPrefix(content, []byte("\ufeff")))); err != nil {
			return nil, &RejectError{secret, field, err.Error()}
		}
		return b, nil
	}
	used := []string{caOverlap}
	for _, field := range jsonFields {
		key := how.Fields.of(field)
		used = append(used, key)
		text, err := object.text(key)
		switch {
		case err != nil:
		case key != field && len(object.members[key]) == 0:
			err = errors.New("has no value: there is no key of the name that mtls.secrets gives it")
		case !isBlank(text):
			err = b.parse(field, text)
		case len(object.members[key]) > 0 && string(object.members[key][0]) != "null":
			b.warnings = append(b.warnings, field+": is empty, and counts as not set")
		}
		if err != nil {
			return nil, &RejectError{secret, field, err.Error()}
		}
	}
	if len(b.fields) == 0 {
		return nil, &RejectError{secret, plain, `has no value but null and ""`}
	}
	if err := b.setOverlap(object); err != nil {
		return nil, &RejectError{secret, caOverlap, err.Error()}
	}
	b.warnings = append(b.warnings, object.unknown(used)...)
	return b, nil
}

// recognise finds out whether content is a JSON object or, failing that, may be PEM.
func (b *Bundle) recognise(content []byte) (object, error) {
	if len(content) > maxBytes {
		return object{}, fmt.Errorf("is larger than %d bytes", maxBytes)
	}
	if isUTF16(content) {
		return object{}, errors.New("is UTF-16; store it as UTF-8")
	}
	if what := describeDER(content); what != "" {
		return object{}, errors.New("is not PEM, but " + what + "; store it as PEM")
	}
	var inner string
	if json.Unmarshal(content, &inner) == nil && strings.HasPrefix(strings.TrimSpace(inner), "{") {
		return object{}, errors.New("is a JSON string" + holding([]byte(inner)))
	}
	o := parseObject(bytes.TrimLeftFunc(content, isSpace))
	has := func(field string) bool { return len(o.members[b.Reading.Fields.of(field)]) > 0 }
	switch {
	case o.err != nil:
		return o, fmt.Errorf("begins as JSON, and is %w", o.err)
	case o.is && b.Reading.Validate == unverified:
		return o, errors.New("is JSON, which is always verified; validate: none in mtls.secrets is for PEM")
	case o.is && b.Reading.As != plain:
		return o, fmt.Errorf("is JSON; as: %s in mtls.secrets is for PEM", b.Reading.As)
	case o.is && !slices.ContainsFunc(jsonFields, has):
		var names []string
		for _, field := range jsonFields {
			names = append(names, b.Reading.Fields.of(field))
		}
		return o, fmt.Errorf("is a JSON object without any of %s%s", strings.Join(names, ", "), o.describe(maxNested))
	case !o.is && b.Reading.Fields != Fields{}:
		return o, errors.New("is not a JSON object, and fields in mtls.secrets is for one")
	}
	return o, nil
}

// maxNested is how deep in a JSON object we look for what should be on top.
const maxNested = 2

// parse adds a field.
func (b *Bundle) parse(field, text string) error {
	p, err := parseField(field, normalise(text), b.Reading.Validate != unverified)
	if err != nil {
		return err
	}
	b.fields[field] = p
	for _, w := range p.notes {
		if field != plain {
			w = field + ": " + w
		}
		b.warnings = append(b.warnings, w)
	}
	return nil
}

// setOverlap reads ca_overlap.
func (b *Bundle) setOverlap(o object) error {
	switch raw := o.members[caOverlap]; {
	case len(raw) > 1:
		return errors.New("appears twice")
	case len(raw) == 1 && string(raw[0]) == "false":
		b.noOverlap = true
	case len(raw) == 1:
		return errors.New("must be false, to drop the anchors of earlier versions at once, or absent")
	}
	return nil
}
