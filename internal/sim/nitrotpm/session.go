package nitrotpm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"hash"
	"slices"
)

// Algorithms: TPM 2.0 Library, part 2, table "TPM_ALG_ID".
const (
	algRSA    = 0x0001
	algAES    = 0x0006
	algSHA256 = 0x000b
	algSHA384 = 0x000c
	algSHA512 = 0x000d
	algNull   = 0x0010
	algCFB    = 0x0043
)

func hasher(alg uint16) func() hash.Hash {
	switch alg {
	case algSHA256:
		return sha256.New
	case algSHA384:
		return sha512.New384
	case algSHA512:
		return sha512.New
	}
	return nil
}

func digest(alg uint16, parts ...[]byte) []byte {
	h := hasher(alg)()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// Attributes of a session: part 2, "TPMA_SESSION".
const (
	continues = 0x01
	decrypts  = 0x20
	encrypts  = 0x40
)

const rsPassword = 0x40000009 // TPM_RS_PW

// session is an HMAC session.
type session struct {
	handle   uint32
	alg      uint16
	keyBits  int // of AES-CFB for parameters; zero: none
	key      []byte
	nonceTPM []byte
}

// authorisation is one session, or a password, of one command.
type authorisation struct {
	handle      uint32
	nonceCaller []byte
	attributes  byte
	hmac        []byte

	session *session // nil: a password
	value   []byte   // of the entity that it authorises
}

func readAuthorisation(r *reader) *authorisation {
	return &authorisation{handle: r.u32(), nonceCaller: r.sized(), attributes: r.u8(), hmac: r.sized()}
}

// bare reports whether a session has no key and the caller has left the HMAC out, which is allowed then.
func (a *authorisation) bare() bool { return len(a.hmac)+len(a.session.key)+len(a.value) == 0 }

// renew takes a new nonce for the answer.
func (a *authorisation) renew() {
	if a.session != nil {
		a.session.nonceTPM = random(len(a.session.nonceTPM))
	}
}

// closeAuthorisation writes an authorisation's part of the answer.
func (t *TPM) closeAuthorisation(a *authorisation, code uint32, params []byte, out *writer) {
	if a.session == nil {
		out.sized(nil)
		*out = append(*out, a.attributes|continues)
		out.sized(nil)
		return
	}
	s := a.session
	rpHash := digest(s.alg, binary.BigEndian.AppendUint32(make([]byte, 4), code), params)
	out.sized(s.nonceTPM)
	*out = append(*out, a.attributes)
	if len(a.hmac) == 0 { // as in the command
		out.sized(nil)
	} else {
		out.sized(s.hmac(a.value, rpHash, s.nonceTPM, a.nonceCaller, nil, a.attributes))
	}
	if a.attributes&continues == 0 {
		delete(t.sessions, s.handle)
	}
}

// cpHash is the digest of a command's parameters: part 1, "cpHash".
func (t *TPM) cpHash(s *session, c *command, params []byte) []byte {
	parts := [][]byte{binary.BigEndian.AppendUint32(nil, c.code)}
	for _, handle := range c.handles {
		parts = append(parts, t.name(handle))
	}
	return digest(s.alg, append(parts, params)...)
}

// otherNonces are the TPM's nonces of further sessions that decrypt or encrypt; the first session's HMAC covers them.
func otherNonces(auths []*authorisation, i int) (nonces []byte) {
	if i > 0 {
		return nil
	}
	var decrypting *authorisation
	for _, a := range auths[1:] {
		if a.session != nil && a.attributes&decrypts != 0 {
			nonces = append(nonces, a.session.nonceTPM...)
			decrypting = a
		}
	}
	for _, a := range auths[1:] {
		if a.session != nil && a.attributes&encrypts != 0 && a != decrypting {
			nonces = append(nonces, a.session.nonceTPM...)
		}
	}
	return nonces
}

// hmac is an authorisation's: part 1, "HMAC Computation".
func (s *session) hmac(value, parameters, newer, older, others []byte, attributes byte) []byte {
	mac := hmac.New(hasher(s.alg), slices.Concat(s.key, value))
	for _, part := range [][]byte{parameters, newer, older, others, {attributes}} {
		mac.Write(part)
	}
	return mac.Sum(nil)
}

// cipher encrypts or decrypts a parameter in place: part 1, "CFB Mode Parameter Encryption".
func (s *session) cipher(data, value, newer, older []byte, encrypt bool) {
	if s.keyBits == 0 {
		return
	}
	derived := kdfa(s.alg, slices.Concat(s.key, value), "CFB", newer, older, s.keyBits+128)
	block, err := aes.NewCipher(derived[:s.keyBits/8])
	if err != nil {
		panic(err)
	}
	iv := derived[s.keyBits/8:]
	if encrypt {
		//lint:ignore SA1019 the TPM's own mode
		cipher.NewCFBEncrypter(block, iv).XORKeyStream(data, data)
	} else {
		//lint:ignore SA1019 the TPM's own mode
		cipher.NewCFBDecrypter(block, iv).XORKeyStream(data, data)
	}
}

// kdfa derives a key: part 1, "KDFa".
func kdfa(alg uint16, key []byte, label string, u, v []byte, bits int) (out []byte) {
	for i := uint32(1); len(out)*8 < bits; i++ {
		mac := hmac.New(hasher(alg), key)
		mac.Write(binary.BigEndian.AppendUint32(nil, i))
		mac.Write(append([]byte(label), 0))
		mac.Write(u)
		mac.Write(v)
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(bits)))
		out = mac.Sum(out)
	}
	return out[:bits/8]
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func trim(value []byte) []byte { return bytes.TrimRight(value, "\x00") }

func (t *TPM) startAuthSession(c *command, out *writer) uint32 {
	nonceCaller, salted, kind := c.params.sized(), c.params.sized(), c.params.u8()
	s := new(session)
	switch c.params.u16() {
	case algNull:
	case algAES:
		s.keyBits = int(c.params.u16())
		if s.keyBits != 128 && s.keyBits != 256 || c.params.u16() != algCFB {
			return parameter(rcSymmetric, 4)
		}
	default:
		return parameter(rcSymmetric, 4)
	}
	s.alg = c.params.u16()
	switch {
	case c.params.short:
		return rcInsufficient
	case hasher(s.alg) == nil:
		return parameter(rcHash, 5)
	case kind != 0: // TPM_SE_HMAC
		return parameter(rcValue, 3)
	case len(nonceCaller) < 16 || len(nonceCaller) > hasher(s.alg)().Size():
		return parameter(rcSize, 1)
	case c.handles[1] != rhNull:
		return handleRC(2)
	case len(t.sessions) >= 64: // TPM_PT_ACTIVE_SESSIONS_MAX
		return rcSessions
	}
	s.nonceTPM = random(hasher(s.alg)().Size())
	if c.handles[0] != rhNull {
		o := t.objects[c.handles[0]]
		if o == nil {
			return handleRC(1)
		}
		salt, err := rsa.DecryptOAEP(sha256.New(), nil, o.key, salted, []byte("SECRET\x00"))
		if err != nil {
			return parameter(rcValue, 2)
		}
		s.key = kdfa(s.alg, salt, "ATH", s.nonceTPM, nonceCaller, hasher(s.alg)().Size()*8)
	}
	for s.handle = 0x02000000; t.sessions[s.handle] != nil; s.handle++ {
	}
	t.sessions[s.handle] = s
	out.u32(s.handle)
	out.sized(s.nonceTPM)
	return 0
}
