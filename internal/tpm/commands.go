package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Numbers of TPM 2.0, Part 2, and AWS's vendor command.
const (
	tagNone  = 0x8001 // TPM_ST_NO_SESSIONS
	tagAuth  = 0x8002 // TPM_ST_SESSIONS
	owner    = 0x40000001
	password = 0x40000009 // TPM_RS_PW

	nvUndefineSpace = 0x122
	nvDefineSpace   = 0x12A
	nvWrite         = 0x137
	nvRead          = 0x14E
	nsmRequest      = 0x20000001

	// index is the agent's own, in the owner's range. It is fixed, so that what a killed agent has left is found.
	index = 0x01805E7A
	// indexSize is room for a request and its answer.
	indexSize = 8192
	// indexAttributes are TPMA_NV_AUTHWRITE and TPMA_NV_AUTHREAD.
	indexAttributes = 0x00040004
	algSHA256       = 0x000B

	// chunk is what one NV command carries, and any TPM's buffer has room for.
	chunk = 1024
	// maxMessage bounds a command and an answer: the kernel's TPM_BUFSIZE.
	maxMessage = 4096
)

// Error is what a TPM answered to a command that it did not execute.
type Error struct {
	Command string
	Code    uint32 // TPM_RC
}

func (e *Error) Error() string {
	name := map[uint32]string{
		0x143: "TPM_RC_COMMAND_CODE", 0x14B: "TPM_RC_NV_SPACE", 0x14C: "TPM_RC_NV_DEFINED", 0x921: "TPM_RC_LOCKOUT",
		0x922: "TPM_RC_RETRY", 0x920: "TPM_RC_NV_RATE", 0x923: "TPM_RC_NV_UNAVAILABLE", 0x90A: "TPM_RC_TESTING",
		0x908: "TPM_RC_YIELDED", 0x98E: "TPM_RC_AUTH_FAIL", 0x9A2: "TPM_RC_BAD_AUTH", 0x2D5: "TPM_RC_SIZE",
	}[e.code()]
	if name != "" {
		name = " (" + name + ")"
	}
	return fmt.Sprintf("the TPM refused %s with %#x%s", e.Command, e.Code, name)
}

// code is the answer without the layer that gave it: the kernel's resource manager answers for itself.
func (e *Error) code() uint32 { return e.Code &^ 0xF0000 }

func codeIs(err error, codes ...uint32) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	for _, c := range codes {
		if e.code() == c {
			return true
		}
	}
	return false
}

// Some answers ask for the same command again: at the first use of an index, while the TPM tests itself, or where its
// memory is busy.
const (
	maxTries  = 50
	tryPause  = 5 * time.Millisecond
	tryLimit  = 100 * time.Millisecond
	rcYielded = 0x908
	rcTesting = 0x90A
	rcNVRate  = 0x920
	rcRetry   = 0x922
	rcNVAway  = 0x923
)

// session is an open TPM, with the password of the index.
type session struct {
	io.ReadWriter
	secret []byte
}

// run executes a command until it is not put off, and returns the parameters of the answer.
func (s *session) run(name string, command []byte) (parameters []byte, err error) {
	for try := range maxTries {
		parameters, err = s.once(name, command)
		if !codeIs(err, rcYielded, rcTesting, rcNVRate, rcRetry, rcNVAway) {
			return parameters, err
		}
		time.Sleep(min(tryLimit, tryPause<<min(try, 10)))
	}
	return nil, err
}

func (s *session) once(name string, command []byte) ([]byte, error) {
	if _, err := s.Write(command); err != nil {
		return nil, fmt.Errorf("send %s: %w", name, err)
	}
	answer := make([]byte, maxMessage) // a shorter buffer would lose the rest, with older kernels
	n, err := s.Read(answer)
	if err != nil {
		return nil, fmt.Errorf("read the answer to %s: %w", name, err)
	}
	answer = answer[:n]
	if n < 10 || binary.BigEndian.Uint32(answer[2:]) != uint32(n) {
		return nil, fmt.Errorf("the answer to %s has %d bytes, and not the size that it says", name, n)
	}
	if code := binary.BigEndian.Uint32(answer[6:]); code != 0 {
		return nil, &Error{name, code}
	}
	rest := answer[10:]
	if binary.BigEndian.Uint16(answer) != tagAuth {
		return rest, nil
	}
	if len(rest) < 4 || binary.BigEndian.Uint32(rest) > uint32(len(rest)-4) {
		return nil, fmt.Errorf("the answer to %s has parameters beyond its end", name)
	}
	return rest[4:][:binary.BigEndian.Uint32(rest)], nil
}

// message is a command in the making.
type message struct{ bytes.Buffer }

func (m *message) add(values ...any) *message {
	for _, v := range values {
		if b, ok := v.([]byte); ok {
			m.Write(b)
			continue
		}
		binary.Write(m, binary.BigEndian, v) // of integers: cannot fail
	}
	return m
}

// sized adds bytes after their length.
func (m *message) sized(b []byte) *message { return m.add(uint16(len(b)), b) }

// command encodes a command that is authorised by a password.
func command(code uint32, handles []uint32, auth []byte, parameters *message) []byte {
	var body message
	for _, h := range handles {
		body.add(h)
	}
	area := new(message).add(uint32(password), uint16(0), uint8(0)).sized(auth)
	body.add(uint32(area.Len()), area.Bytes())
	if parameters != nil {
		body.add(parameters.Bytes())
	}
	return new(message).add(uint16(tagAuth), uint32(10+body.Len()), code, body.Bytes()).Bytes()
}

func (s *session) undefine() error {
	_, err := s.run("NV_UndefineSpace", command(nvUndefineSpace, []uint32{owner, index}, nil, nil))
	return err
}

func (s *session) define() error {
	public := new(message).add(uint32(index), uint16(algSHA256), uint32(indexAttributes), uint16(0), uint16(indexSize))
	parameters := new(message).sized(s.secret).sized(public.Bytes())
	_, err := s.run("NV_DefineSpace", command(nvDefineSpace, []uint32{owner}, nil, parameters))
	return err
}

func (s *session) write(data []byte) error {
	for offset := 0; offset < len(data); offset += chunk {
		part := data[offset:min(offset+chunk, len(data))]
		parameters := new(message).sized(part).add(uint16(offset))
		if _, err := s.run("NV_Write", command(nvWrite, []uint32{index, index}, s.secret, parameters)); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) request() error {
	_, err := s.run("the NSM request", command(nsmRequest, []uint32{index, index}, s.secret, nil))
	return err
}

func (s *session) read(offset, size int) ([]byte, error) {
	parameters := new(message).add(uint16(size), uint16(offset))
	answer, err := s.run("NV_Read", command(nvRead, []uint32{index, index}, s.secret, parameters))
	if err != nil {
		return nil, err
	}
	if len(answer) != 2+size || int(binary.BigEndian.Uint16(answer)) != size {
		return nil, fmt.Errorf("NV_Read gave %d bytes, want %d", len(answer)-2, size)
	}
	return answer[2:], nil
}
