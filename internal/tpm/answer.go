package tpm

import (
	"bytes"
	"errors"
	"fmt"
)

// encode is the request for a document: CBOR, as aws-nitro-enclaves-nsm-api has it. Nobody but the agent chooses any of
// the fields.
func encode(userData, nonce [64]byte) []byte {
	var b bytes.Buffer
	text := func(s string) { b.WriteByte(0x60 | byte(len(s))); b.WriteString(s) }
	value := func(v [64]byte) { b.Write([]byte{0x58, byte(len(v))}); b.Write(v[:]) }
	b.WriteByte(0xa1)
	text("Attestation")
	b.WriteByte(0xa3)
	text("user_data")
	value(userData)
	text("nonce")
	value(nonce)
	text("public_key")
	b.WriteByte(0xf6) // null
	return b.Bytes()
}

// decode finds the document in the beginning of an answer: where it starts, and its size. What follows it in the index
// is what was there before.
func decode(answer []byte) (start, size int, err error) {
	rest, ok := entry(answer, "Attestation")
	if !ok {
		if rest, ok = entry(answer, "Error"); ok && len(rest) > 0 && rest[0]>>5 == 3 {
			n := int(rest[0] & 0x1f)
			if n < 24 && len(rest) > n {
				return 0, 0, fmt.Errorf("the NitroTPM refuses to make a document: %q", rest[1:1+n])
			}
		}
		return 0, 0, errors.New("the answer of the NitroTPM is none to a request for a document")
	}
	rest, ok = entry(rest, "document")
	start = len(answer) - len(rest) + 3
	if !ok || len(rest) < 3 || rest[0] != 0x59 { // bytes, with their length in two more
		return 0, 0, errors.New("the answer of the NitroTPM has no document where one was expected")
	}
	size = int(rest[1])<<8 | int(rest[2])
	if start+size > indexSize {
		return 0, 0, fmt.Errorf("a document of %d bytes is larger than the index", size)
	}
	return start, size, nil
}

// entry returns what follows the first key of a map, if that is key.
func entry(data []byte, key string) (value []byte, ok bool) {
	if len(data) < 2+len(key) || data[0] != 0xa1 && data[0] != 0xbf || data[1] != 0x60|byte(len(key)) {
		return nil, false
	}
	return bytes.CutPrefix(data[2:], []byte(key))
}
