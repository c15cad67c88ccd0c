package tpm

import (
	"errors"
	"fmt"
)

// Major types of CBOR: RFC 8949, section 3.1.
const (
	majorBytes = 2
	majorText  = 3
	majorMap   = 5
)

// encodeRequest makes {"Attestation": {"user_data": …, "nonce": …, "public_key": null}}, as AWS's library does
// (aws-nitro-enclaves-nsm-api, Request).
func encodeRequest(userData, nonce [64]byte) []byte {
	text := func(out []byte, s string) []byte { return append(append(out, majorText<<5|byte(len(s))), s...) }
	bytes := func(out []byte, b [64]byte) []byte { return append(append(out, majorBytes<<5|24, 64), b[:]...) }
	out := text([]byte{majorMap<<5 | 1}, "Attestation")
	out = bytes(text(append(out, majorMap<<5|3), "user_data"), userData)
	out = bytes(text(out, "nonce"), nonce)
	return append(text(out, "public_key"), 0xf6) // null
}

// parseAnswer reads the beginning of {"Attestation": {"document": …}} or {"Error": …}, and whatever follows it. need
// is how many bytes the whole has; with less than that there is no document yet.
func parseAnswer(data []byte) (document []byte, need int, err error) {
	r := reader{data: data}
	r.mapOfOne()
	switch kind := r.text(); kind {
	case "Attestation":
		r.mapOfOne()
		if name := r.text(); r.err == nil && name != "document" {
			r.err = fmt.Errorf("it has %.32q", name)
		}
		n := r.head(majorBytes)
		need = r.at + n
		if r.err == nil && n > 0 && need <= len(data) {
			document = data[r.at:need:need]
		} else if r.err == nil && n == 0 {
			r.err = errors.New("the document is empty")
		}
	case "Error":
		if name := r.text(); r.err == nil {
			return nil, 0, &RefusedError{Name: name}
		}
	default:
		if r.err == nil {
			r.err = fmt.Errorf("it is %.32q", kind)
		}
	}
	if r.err != nil {
		return nil, 0, fmt.Errorf("read the answer to %v: %w: %w", ccNSM, r.err, ErrMalformed)
	}
	return document, need, nil
}

// reader reads heads of CBOR. After the first mistake it returns zero values. All that it reads is in the first chunk
// of an answer, which is never shorter than 64 bytes.
type reader struct {
	data []byte
	at   int
	err  error
}

// head reads the head of an item of a major type, and returns its length.
func (r *reader) head(major byte) (n int) {
	if r.err == nil && r.at+3 > len(r.data) {
		r.err = errors.New("it is cut off")
	}
	if r.err != nil {
		return 0
	}
	first := r.data[r.at]
	r.at++
	switch n = int(first & 31); {
	case first>>5 != major || n > 25:
		r.err = fmt.Errorf("the byte %#x begins no item of the major type %d with a length", first, major)
		return 0
	case n == 24:
		n = int(r.data[r.at])
		r.at++
	case n == 25:
		n = int(r.data[r.at])<<8 | int(r.data[r.at+1])
		r.at += 2
	}
	return n
}

// mapOfOne reads the head of a map with one entry, or of one without a length: AWS writes both.
func (r *reader) mapOfOne() {
	if r.err == nil && r.at < len(r.data) && r.data[r.at] == majorMap<<5|31 {
		r.at++
		return
	}
	if n := r.head(majorMap); r.err == nil && n != 1 {
		r.err = fmt.Errorf("a map of %d entries, want one", n)
	}
}

func (r *reader) text() string {
	n := r.head(majorText)
	if r.err == nil && (n > 32 || r.at+n > len(r.data)) {
		r.err = fmt.Errorf("a text of %d bytes", n)
	}
	if r.err != nil {
		return ""
	}
	s := string(r.data[r.at : r.at+n])
	r.at += n
	return s
}
