package nitrotpm

import (
	"errors"
	"math"
	"time"

	"sevagent/internal/sim/simnitro"
)

// maxField bounds user_data, nonce and public_key, in bytes: AWS's limit.
const maxField = 1024

// nsm is AWS's vendor command: it reads a request from an index, and writes the answer over it.
func (t *TPM) nsm(c *command, _ *writer) uint32 {
	x, rc := t.opened(c)
	if rc != 0 {
		return rc
	}
	if x.attributes&nvWritten == 0 {
		return rcNVUnwritten
	}
	answer := t.answerNSM(x.data)
	if len(answer) > len(x.data) {
		answer = answerError("BufferTooSmall")
	}
	if t.shows(FaultGarbage) {
		answer = []byte{math.MaxUint8}
	}
	x.write(answer, 0) // and what followed the request stays
	return 0
}

// Heads of CBOR: RFC 8949, section 3.1.
const (
	cborBytes = 2
	cborText  = 3
	cborMap   = 5
	cborNull  = 0xf6
)

func cborHead(out []byte, major byte, n int) []byte {
	switch {
	case n < 24:
		return append(out, major<<5|byte(n))
	case n < 1<<8:
		return append(out, major<<5|24, byte(n))
	}
	return append(out, major<<5|25, byte(n>>8), byte(n))
}

func text(out []byte, s string) []byte { return append(cborHead(out, cborText, len(s)), s...) }

func answerError(name string) []byte { return text(text([]byte{cborMap<<5 | 1}, "Error"), name) }

// answerNSM is the answer to a request of aws-nitro-enclaves-nsm-api: {"Attestation": {...}}.
func (t *TPM) answerNSM(request []byte) []byte {
	if name, ok := t.has(FaultError); ok {
		return answerError(name)
	}
	r := cborReader{rest: request}
	if r.head(cborMap) != 1 || r.text() != "Attestation" {
		return answerError("InvalidOperation")
	}
	f := t.Fields
	for n := r.head(cborMap); n > 0 && r.err == nil; n-- {
		field, value := r.text(), r.optional()
		switch field {
		case "user_data":
			f.UserData = value
		case "nonce":
			f.Nonce = value
		case "public_key":
			f.PublicKey = value
		default:
			r.err = errMalformed
		}
	}
	if r.err != nil {
		return answerError("InvalidArgument")
	}
	if max(len(f.UserData), len(f.Nonce), len(f.PublicKey)) > maxField {
		return answerError("InputTooLarge")
	}
	switch {
	case t.shows(FaultEcho):
		f.UserData = random(len(f.UserData))
	case t.shows(FaultNonce):
		f.Nonce = random(len(f.Nonce))
	case t.shows(FaultKey):
		f.PublicKey = random(65)
	case t.shows(FaultEnclave):
		f.Map, f.Suffix = simnitro.MapEnclave, "-enc0000000000000000"
	}
	if f.Time.IsZero() {
		f.Time = time.Now()
	}
	document, err := t.Sign(f)
	if err != nil {
		return answerError("InternalError")
	}
	out := text([]byte{cborMap<<5 | 1}, "Attestation")
	out = text(append(out, cborMap<<5|1), "document")
	return append(cborHead(out, cborBytes, len(document)), document...)
}

var errMalformed = errors.New("malformed")

// cborReader reads the CBOR of a request. After the first mistake it returns zero values.
type cborReader struct {
	rest []byte
	err  error
}

func (r *cborReader) head(major byte) int {
	if r.err != nil || len(r.rest) < 3 || r.rest[0]>>5 != major {
		r.err = errMalformed
		return 0
	}
	n, size := int(r.rest[0]&31), 1
	switch n {
	case 24:
		n, size = int(r.rest[1]), 2
	case 25:
		n, size = int(r.rest[1])<<8|int(r.rest[2]), 3
	default:
		if n > 23 {
			r.err = errMalformed
		}
	}
	r.rest = r.rest[size:]
	return n
}

func (r *cborReader) string(major byte) []byte {
	n := r.head(major)
	if r.err != nil || n > len(r.rest) {
		r.err = errMalformed
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return append([]byte{}, b...)
}

func (r *cborReader) text() string { return string(r.string(cborText)) }

// optional reads a byte string, or null, which is nil.
func (r *cborReader) optional() []byte {
	if r.err == nil && len(r.rest) > 0 && r.rest[0] == cborNull {
		r.rest = r.rest[1:]
		return nil
	}
	return r.string(cborBytes)
}
