package nitrotpm

import (
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"slices"
)

// Codes of commands: TPM 2.0 Library, part 2, table "TPM_CC", and AWS's own.
const (
	ccEvictControl     = 0x120
	ccNVUndefine       = 0x122
	ccNVDefine         = 0x12a
	ccCreatePrimary    = 0x131
	ccNVWrite          = 0x137
	ccNVRead           = 0x14e
	ccFlushContext     = 0x165
	ccNVReadPublic     = 0x169
	ccReadPublic       = 0x173
	ccStartAuthSession = 0x176
	ccGetCapability    = 0x17a
	ccGetRandom        = 0x17b
	ccNSM              = 0x20000001
)

// Codes of answers: the same, table "TPM_RC".
const (
	rcBadTag       = 0x01e
	rcCommandSize  = 0x142
	rcUnknown      = 0x143
	rcAuthSize     = 0x144
	rcAuthMissing  = 0x125
	rcNVRange      = 0x146
	rcNVAuth       = 0x149
	rcNVUnwritten  = 0x14a
	rcNVSpace      = 0x14b
	rcNVDefined    = 0x14c
	rcRetry        = 0x922
	rcLockout      = 0x921
	rcSessions     = 0x905
	rcAttributes   = 0x082
	rcHash         = 0x083
	rcValue        = 0x084
	rcHandle       = 0x08b
	rcAuthFail     = 0x08e
	rcSize         = 0x095
	rcSymmetric    = 0x096
	rcInsufficient = 0x09a
	rcBadAuth      = 0x0a2
	// Of the kernel's resource manager: linux, drivers/char/tpm/tpm-dev-common.c and tpm2-space.c.
	rcManagerUnknown = 0xb0143

	ofParameter = 0x040 // added to a code, with its number in bits 8 to 11
	ofSession   = 0x800
)

func parameter(rc uint32, number int) uint32 { return rc | ofParameter | uint32(number)<<8 }
func handleRC(number int) uint32             { return rcHandle | uint32(number)<<8 }
func sessionRC(rc uint32, number int) uint32 { return rc | ofSession | uint32(number)<<8 }

const (
	tagPlain    = 0x8001 // TPM_ST_NO_SESSIONS
	tagSessions = 0x8002 // TPM_ST_SESSIONS

	maxCommand = 4096 // TPM_BUFSIZE of the kernel
	maxIndex   = 8192
	maxNV      = 2048 // TPM_PT_NV_BUFFER_MAX
	maxTries   = 32   // wrong passwords until lockout
)

// command is one command with its parts.
type command struct {
	code    uint32
	handles []uint32
	params  reader
	auths   []*authorisation
}

// rule says how a command is made: its handles, and how many of them have to be authorised, the first ones.
type rule struct {
	handles, auths int
	do             func(t *TPM, c *command, out *writer) uint32
	// answered has a handle before the parameters of its answer.
	answered bool
}

// makeRules is a function since one of the commands lists them.
func makeRules() map[uint32]rule {
	return map[uint32]rule{
		ccEvictControl:     {2, 1, (*TPM).evictControl, false},
		ccNVUndefine:       {2, 1, (*TPM).nvUndefine, false},
		ccNVDefine:         {1, 1, (*TPM).nvDefine, false},
		ccCreatePrimary:    {1, 1, (*TPM).createPrimary, true},
		ccNVWrite:          {2, 1, (*TPM).nvWrite, false},
		ccNVRead:           {2, 1, (*TPM).nvRead, false},
		ccFlushContext:     {0, 0, (*TPM).flushContext, false},
		ccNVReadPublic:     {1, 0, (*TPM).nvReadPublic, false},
		ccReadPublic:       {1, 0, (*TPM).readPublic, false},
		ccStartAuthSession: {2, 0, (*TPM).startAuthSession, true},
		ccGetCapability:    {0, 0, (*TPM).getCapability, false},
		ccGetRandom:        {0, 0, (*TPM).getRandom, false},
		ccNSM:              {2, 1, (*TPM).nsm, false},
	}
}

func failure(rc uint32) []byte {
	out := writer{}
	out.u16(tagPlain)
	out.u32(10)
	out.u32(rc)
	return out
}

// execute executes a command that came through f.
func (t *TPM) execute(f *file, raw []byte) []byte {
	in := reader{rest: raw}
	tag, size, code := in.u16(), in.u32(), in.u32()
	if size != uint32(len(raw)) {
		return failure(rcCommandSize)
	}
	r, known := t.rules[code]
	unlisted := code == ccNSM && (t.shows(FaultForeign) || t.shows(FaultUnlisted))
	if f.managed && (!known || unlisted || code == ccNSM && t.shows(FaultManager)) {
		return failure(rcManagerUnknown)
	}
	if !known || code == ccNSM && t.shows(FaultForeign) {
		return failure(rcUnknown)
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	t.commands = append(t.commands, code)
	c := &command{code: code}
	for range r.handles {
		c.handles = append(c.handles, in.u32())
	}
	if in.short {
		return failure(rcInsufficient)
	}
	for i, handle := range c.handles {
		if !t.exists(handle) {
			return failure(handleRC(i + 1))
		}
	}
	switch tag {
	case tagPlain:
		if r.auths > 0 {
			return failure(rcAuthMissing)
		}
	case tagSessions:
		area := reader{rest: in.take(int(in.u32()))}
		for len(area.rest) > 0 && len(c.auths) < 3 {
			c.auths = append(c.auths, readAuthorisation(&area))
		}
		if in.short || area.short || len(area.rest) > 0 || len(c.auths) < r.auths {
			return failure(rcAuthSize)
		}
	default:
		return failure(rcBadTag)
	}
	if argument, ok := t.has(FaultCode); ok {
		var wanted, rc uint32
		if _, err := fmt.Sscanf(argument, "%x %x", &wanted, &rc); err != nil || wanted == code {
			return failure(rc)
		}
	}
	params, rc := t.authorise(c, r.auths, in.rest)
	if rc != 0 {
		return failure(rc)
	}
	c.params.rest = params

	var out writer
	rc = r.do(t, c, &out)
	if rc == 0 && c.params.short {
		rc = rcInsufficient
	}
	if rc == 0 && len(c.params.rest) > 0 {
		rc = rcSize
	}
	if rc != 0 {
		return failure(rc)
	}
	return t.answer(f, c, r, tag, out)
}

// answer puts an answer together, with the sessions' HMACs.
func (t *TPM) answer(f *file, c *command, r rule, tag uint16, out writer) []byte {
	var handle writer
	if r.answered {
		handle, out = out[:4:4], out[4:]
		if f.managed && c.code == ccStartAuthSession {
			f.sessions[binary.BigEndian.Uint32(handle)] = true
		}
	}
	body := handle
	if tag == tagSessions {
		for _, a := range c.auths {
			a.renew()
		}
		for _, a := range c.auths {
			if a.session != nil && a.attributes&encrypts != 0 && len(out) >= 2 {
				n := int(binary.BigEndian.Uint16(out))
				a.session.cipher(out[2:2+n], a.value, a.session.nonceTPM, a.nonceCaller, true)
			}
		}
		body.u32(uint32(len(out)))
		body = append(body, out...)
		for _, a := range c.auths {
			t.closeAuthorisation(a, c.code, out, &body)
		}
	} else {
		body = append(body, out...)
	}
	var whole writer
	whole.u16(tag)
	whole.u32(uint32(10 + len(body)))
	whole.u32(0)
	return append(whole, body...)
}

// authorise verifies the authorisations, and returns the parameters, decrypted.
func (t *TPM) authorise(c *command, needed int, params []byte) ([]byte, uint32) {
	for i, a := range c.auths {
		var protected bool // a wrong password counts towards lockout
		if i < needed {
			a.value = t.authValue(c.handles[i])
			x := t.indices[c.handles[i]]
			protected = x != nil && x.attributes&nvNoDA == 0
			if x != nil && t.retry() {
				return nil, rcRetry
			}
			if protected && t.tries >= maxTries {
				return nil, rcLockout
			}
		}
		if a.handle == rsPassword {
			if i >= needed {
				return nil, sessionRC(rcHandle, i+1)
			}
			if !hmac.Equal(trim(a.hmac), a.value) {
				return nil, t.denied(protected, i)
			}
			continue
		}
		if a.session = t.sessions[a.handle]; a.session == nil {
			return nil, sessionRC(rcValue, i+1)
		}
	}
	for i, a := range c.auths {
		if a.session == nil || a.bare() {
			continue
		}
		want := a.session.hmac(a.value, t.cpHash(a.session, c, params), a.nonceCaller, a.session.nonceTPM,
			otherNonces(c.auths, i), a.attributes)
		if !hmac.Equal(want, a.hmac) {
			x := (*index)(nil)
			if i < needed {
				x = t.indices[c.handles[i]]
			}
			return nil, t.denied(x != nil && x.attributes&nvNoDA == 0, i)
		}
	}
	for i, a := range c.auths {
		if a.session == nil || a.attributes&decrypts == 0 {
			continue
		}
		if len(params) < 2 {
			return nil, sessionRC(rcAttributes, i+1)
		}
		params = slices.Clone(params)
		n := int(binary.BigEndian.Uint16(params))
		if n > len(params)-2 {
			return nil, parameter(rcSize, 1)
		}
		a.session.cipher(params[2:2+n], a.value, a.nonceCaller, a.session.nonceTPM, false)
	}
	return params, 0
}

func (t *TPM) denied(protected bool, i int) uint32 {
	if !protected {
		return sessionRC(rcBadAuth, i+1)
	}
	t.tries++
	return sessionRC(rcAuthFail, i+1)
}

// retry reports whether this use of an index gives RETRY.
func (t *TPM) retry() bool {
	argument, ok := t.has(FaultRetry)
	if !ok {
		return false
	}
	var n int
	fmt.Sscan(argument, &n)
	if t.retried >= n {
		t.retried = 0
		return false
	}
	t.retried++
	return true
}

// reader reads big-endian fields. After the end it returns zeros.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.short, r.rest = true, nil
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) sized() []byte { return r.take(int(r.u16())) }

// writer writes big-endian fields.
type writer []byte

func (w *writer) u16(n uint16)   { *w = binary.BigEndian.AppendUint16(*w, n) }
func (w *writer) u32(n uint32)   { *w = binary.BigEndian.AppendUint32(*w, n) }
func (w *writer) sized(b []byte) { w.u16(uint16(len(b))); *w = append(*w, b...) }
