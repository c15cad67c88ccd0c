package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Commands: TPM 2.0 Library, part 2, table "TPM_CC"; the last is AWS's.
const (
	ccUndefine      command = 0x122
	ccDefine        command = 0x12a
	ccWrite         command = 0x137
	ccRead          command = 0x14e
	ccGetCapability command = 0x17a
	ccNSM           command = 0x20000001
)

type command uint32

func (c command) String() string {
	switch c {
	case ccUndefine:
		return "NV_UndefineSpace"
	case ccDefine:
		return "NV_DefineSpace"
	case ccWrite:
		return "NV_Write"
	case ccRead:
		return "NV_Read"
	case ccGetCapability:
		return "GetCapability"
	case ccNSM:
		return "the NSM request"
	}
	return fmt.Sprintf("command %#x", uint32(c))
}

// The index in NV memory through which request and answer go. It is always the same, in the owner's range: what a
// killed agent has left is found and removed, for it survives a reboot.
const (
	index     = 0x01a5e7a6
	indexSize = 8192
	// indexAttributes are AUTHREAD and AUTHWRITE: part 2, "TPMA_NV".
	indexAttributes = 0x00040004
)

const (
	handleOwner    = 0x40000001 // TPM_RH_OWNER
	handlePassword = 0x40000009 // TPM_RS_PW
	algSHA256      = 0x000b
	tagPlain       = 0x8001 // TPM_ST_NO_SESSIONS
	tagSessions    = 0x8002 // TPM_ST_SESSIONS

	// maxResponse is the kernel's TPM_BUFSIZE. Older kernels drop what a shorter read leaves.
	maxResponse = 4096
	// maxChunk bounds the data of one NV_Read or NV_Write, where the TPM does not bound it more.
	maxChunk = 2048
)

// connection is an open TPM: a command is written, its answer read.
type connection struct {
	io.ReadWriter
	password []byte // of the index
	chunk    int    // the most data of one command
}

// attempts is how often a command is repeated that the TPM puts off, firstPause the pause before the second, which
// doubles up to maxPause: 1.6 s in all.
const (
	attempts   = 10
	firstPause = 5 * time.Millisecond
	maxPause   = 500 * time.Millisecond
)

// do executes a command, again if the TPM asks for that, and returns the parameters of its answer.
func (c *connection) do(ctx context.Context, code command, handles []uint32, password, params []byte) ([]byte, error) {
	pause := firstPause
	for i := 1; ; i++ {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("%v: %w", code, err)
		}
		out, err := c.once(code, handles, password, params)
		if e, ok := errors.AsType[*CommandError](err); !ok || !e.again() || i == attempts {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; %w", context.Cause(ctx), err)
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// once executes a command: part 1, "Command/Response Structure". Without handles it is sent without authorisation.
func (c *connection) once(code command, handles []uint32, password, params []byte) ([]byte, error) {
	be := binary.BigEndian
	tag := uint16(tagPlain)
	var body []byte
	for _, handle := range handles {
		body = be.AppendUint32(body, handle)
	}
	if len(handles) > 0 { // one session: a password, without nonce and attributes
		tag = tagSessions
		body = be.AppendUint32(body, uint32(9+len(password)))
		body = be.AppendUint32(body, handlePassword)
		body = append(body, 0, 0, 0)
		body = sized(body, password)
	}
	body = append(body, params...)
	request := be.AppendUint16(nil, tag)
	request = be.AppendUint32(request, uint32(10+len(body)))
	request = be.AppendUint32(request, uint32(code))
	request = append(request, body...)

	if _, err := c.Write(request); err != nil {
		return nil, fmt.Errorf("%v: send the command: %w", code, deviceError(err))
	}
	answer := make([]byte, maxResponse)
	n, err := c.Read(answer)
	if err != nil {
		return nil, fmt.Errorf("%v: read the answer: %w", code, deviceError(err))
	}
	answer = answer[:n]
	if n < 10 || be.Uint32(answer[2:]) != uint32(n) {
		return nil, fmt.Errorf("%v: the answer of %d bytes is not of its length: %w", code, n, ErrMalformed)
	}
	if rc := be.Uint32(answer[6:]); rc != 0 {
		return nil, &CommandError{Command: code.String(), Code: rc, command: code, handles: handles}
	}
	if be.Uint16(answer) != tag {
		return nil, fmt.Errorf("%v: the answer has the tag %#x: %w", code, be.Uint16(answer), ErrMalformed)
	}
	if answer = answer[10:]; tag == tagPlain {
		return answer, nil
	}
	if len(answer) < 4 || uint64(be.Uint32(answer)) > uint64(len(answer)-4) {
		return nil, fmt.Errorf("%v: the answer is cut off: %w", code, ErrMalformed)
	}
	return answer[4 : 4+be.Uint32(answer)], nil
}

// sized appends a TPM2B: a length of 16 bits, and the bytes.
func sized(out, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
}

// capability returns up to count values of a list, from the one of a number on. Properties come as pairs.
func (c *connection) capability(ctx context.Context, kind, from uint32, count int) ([]uint32, error) {
	var params []byte
	for _, n := range []uint32{kind, from, uint32(count)} {
		params = binary.BigEndian.AppendUint32(params, n)
	}
	out, err := c.do(ctx, ccGetCapability, nil, nil, params)
	if err != nil {
		return nil, err
	}
	width := 1
	if kind == capProperties {
		width = 2
	}
	if len(out) < 9 || binary.BigEndian.Uint32(out[1:]) != kind ||
		uint64(binary.BigEndian.Uint32(out[5:]))*uint64(4*width) != uint64(len(out)-9) {
		return nil, fmt.Errorf("%v: the list is not of its length: %w", ccGetCapability, ErrMalformed)
	}
	var values []uint32
	for out = out[9:]; len(out) > 0; out = out[4:] {
		values = append(values, binary.BigEndian.Uint32(out))
	}
	return values, nil
}

// Capabilities and properties: part 2, "TPM_CAP" and "TPM_PT".
const (
	capHandles    = 1
	capCommands   = 2
	capProperties = 6

	propertyVendor = 0x106 // TPM_PT_VENDOR_STRING_1, and 2 after it
	propertyChunk  = 0x12c // TPM_PT_NV_BUFFER_MAX; 0x10d is that of other commands
)

// probe finds out whether the TPM is AWS's, by its name or by its command, and how much data a command takes. It
// changes nothing in the TPM, which may be anyone's.
func (c *connection) probe(ctx context.Context) error {
	vendor, err := c.capability(ctx, capProperties, propertyVendor, 2)
	if err != nil {
		return err
	}
	nitro := len(vendor) == 4 && vendor[0] == propertyVendor && vendor[1] == 0x4e697472 && vendor[3] == 0x6f54504d
	if !nitro { // "Nitr" and "oTPM"
		commands, err := c.capability(ctx, capCommands, uint32(ccNSM), 1)
		if err != nil {
			return err
		}
		if len(commands) == 0 || commands[0] != uint32(ccNSM) {
			return ErrNotNitro
		}
	}
	chunk, err := c.capability(ctx, capProperties, propertyChunk, 1)
	if err != nil {
		return err
	}
	c.chunk = 1024
	if len(chunk) == 2 && chunk[0] == propertyChunk {
		c.chunk = max(64, min(int(chunk[1]), maxChunk))
	}
	return nil
}

// undefine removes the index. That there is none is no error.
func (c *connection) undefine(ctx context.Context) error {
	_, err := c.do(ctx, ccUndefine, []uint32{handleOwner, index}, nil, nil)
	if e, ok := errors.AsType[*CommandError](err); ok && e.base() == rcHandle {
		return nil
	}
	return err
}

// define makes the index, after it has removed one that a killed agent has left.
func (c *connection) define(ctx context.Context) error {
	be := binary.BigEndian
	public := be.AppendUint32(nil, index) // TPMS_NV_PUBLIC
	public = be.AppendUint16(public, algSHA256)
	public = be.AppendUint32(public, indexAttributes)
	public = sized(public, nil)
	public = be.AppendUint16(public, indexSize)
	params := sized(sized(nil, c.password), public)
	_, err := c.do(ctx, ccDefine, []uint32{handleOwner}, nil, params)
	if e, ok := errors.AsType[*CommandError](err); ok && e.Code == rcNVDefined {
		if err := c.undefine(ctx); err != nil {
			return err
		}
		_, err = c.do(ctx, ccDefine, []uint32{handleOwner}, nil, params)
	}
	if errors.Is(err, ErrNVSpace) {
		if there, listing := c.capability(ctx, capHandles, 0x01000000, 32); listing == nil {
			return fmt.Errorf("%w; its indices: %#x", err, there)
		}
	}
	return err
}

// ask has the hypervisor answer a request.
func (c *connection) ask(ctx context.Context, request []byte) (document []byte, err error) {
	handles := []uint32{index, index}
	be := binary.BigEndian
	for at := 0; at < len(request); at += c.chunk {
		part := request[at:min(at+c.chunk, len(request))]
		params := be.AppendUint16(sized(nil, part), uint16(at))
		if _, err := c.do(ctx, ccWrite, handles, c.password, params); err != nil {
			return nil, err
		}
	}
	if _, err := c.do(ctx, ccNSM, handles, c.password, nil); err != nil {
		return nil, err
	}
	// What follows the answer is the rest of the request, or rubbish: the answer's own CBOR says where it ends.
	var answer []byte
	for need := c.chunk; len(answer) < need; {
		n := min(c.chunk, need-len(answer))
		params := be.AppendUint16(be.AppendUint16(nil, uint16(n)), uint16(len(answer)))
		out, err := c.do(ctx, ccRead, handles, c.password, params)
		if err != nil {
			return nil, err
		}
		if len(out) != 2+n || int(be.Uint16(out)) != n {
			return nil, fmt.Errorf("%v: %d bytes, want %d: %w", ccRead, len(out)-2, n, ErrMalformed)
		}
		answer = append(answer, out[2:]...)
		if document, need, err = parseAnswer(answer); err != nil {
			return nil, err
		}
	}
	return document, nil
}

// exchange makes one document over an open TPM. The index is removed whatever happens in between.
func (c *connection) exchange(ctx context.Context, request []byte) (document []byte, err error) {
	if err := c.define(ctx); err != nil {
		return nil, err
	}
	document, err = c.ask(ctx, request)
	// Without a deadline, for it is one command: what stays fills the TPM's memory.
	if undone := c.undefine(context.WithoutCancel(ctx)); undone != nil && err == nil {
		return nil, undone
	}
	return document, err
}
