package evidence

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Major types of CBOR items: RFC 8949, section 3.1. Others do not stand in what this package writes and reads.
const (
	cborUint  = 0
	cborBytes = 2
	cborText  = 3
	cborArray = 4
)

// maxInteger bounds integers as in JSON, where each has one reading.
const maxInteger = 1<<53 - 1

// cborWriter writes CBOR in its deterministic form: RFC 8949, section 4.2.1.
type cborWriter []byte

func (w *cborWriter) head(major byte, n uint64) {
	switch {
	case n < 24:
		*w = append(*w, major<<5|byte(n))
	case n < 1<<8:
		*w = append(*w, major<<5|24, byte(n))
	case n < 1<<16:
		*w = binary.BigEndian.AppendUint16(append(*w, major<<5|25), uint16(n))
	case n < 1<<32:
		*w = binary.BigEndian.AppendUint32(append(*w, major<<5|26), uint32(n))
	default:
		*w = binary.BigEndian.AppendUint64(append(*w, major<<5|27), n)
	}
}

func (w *cborWriter) bytes(b []byte) {
	w.head(cborBytes, uint64(len(b)))
	*w = append(*w, b...)
}

func (w *cborWriter) text(s string) {
	w.head(cborText, uint64(len(s)))
	*w = append(*w, s...)
}

// cborReader reads what cborWriter writes, and nothing else. After the first mistake it returns zero values.
type cborReader struct {
	rest []byte
	err  error
}

// head returns the argument of the next item, which must be of the type major and at most most.
func (r *cborReader) head(major byte, most uint64) uint64 {
	if r.err == nil && (len(r.rest) == 0 || r.rest[0]>>5 != major) {
		r.err = fmt.Errorf("%d bytes from the end of the CBOR there is no item of the major type %d", len(r.rest), major)
	}
	if r.err != nil {
		return 0
	}
	n, rest := uint64(r.rest[0]&31), r.rest[1:]
	if n > 23 { // then 1, 2, 4 or 8 bytes follow; the rest are reserved, or stand for an indefinite length
		size := 1 << (n - 24)
		if n > 27 || len(rest) < size {
			r.err = errors.New("a number or length in the CBOR is indefinite, or cut off")
			return 0
		}
		n = 0
		for _, b := range rest[:size] {
			n = n<<8 | uint64(b)
		}
		rest = rest[size:]
		if size == 1 && n < 24 || size > 1 && n>>(4*size) == 0 {
			r.err = errors.New("a number or length in the CBOR is longer than it has to be")
			return 0
		}
	}
	if n > most {
		r.err = fmt.Errorf("a number or length in the CBOR is %d, and at most %d is allowed", n, most)
		return 0
	}
	r.rest = rest
	return n
}

func (r *cborReader) uint(most uint64) uint64 { return r.head(cborUint, most) }

// count reads the head of an array of n items.
func (r *cborReader) count(n uint64) {
	if got := r.head(cborArray, n); r.err == nil && got != n {
		r.err = fmt.Errorf("an array of %d items in the CBOR, want %d", got, n)
	}
}

func (r *cborReader) bytes(least, most int) []byte { return r.take(cborBytes, least, most) }

// text returns a text, whose form is the caller's to check.
func (r *cborReader) text(most int) string { return string(r.take(cborText, 0, most)) }

func (r *cborReader) take(major byte, least, most int) []byte {
	n := int(r.head(major, uint64(most)))
	if r.err == nil && (n < least || n > len(r.rest)) {
		r.err = fmt.Errorf("an item of %d bytes in the CBOR, of which %d are there, want at least %d", n, len(r.rest), least)
	}
	if r.err != nil {
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// end returns the first mistake, which may be that something follows.
func (r *cborReader) end() error {
	if r.err == nil && len(r.rest) > 0 {
		r.err = fmt.Errorf("%d bytes follow the CBOR", len(r.rest))
	}
	return r.err
}
