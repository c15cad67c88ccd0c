// Package evidence defines what sevagent hands to relying parties: how a request becomes the REPORT_DATA of an
// attestation report, and the JSON document that carries the report with all that is needed to check it.
//
// docs/evidence.md specifies both byte by byte. The package is pure: it neither asks the device nor appraises
// reports. It promises that a report made for one purpose, nonce, key or caller cannot be passed off as made
// for another: callers never choose REPORT_DATA, they choose what is hashed under a label.
package evidence

import (
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"strconv"
)

// Size is the length in bytes of a leaf, a node and a root (SHA-512), and of REPORT_DATA.
const Size = sha512.Size

// Labels keep the three kinds of hash apart, from each other and from everything else that is ever hashed.
// Each ends in a NUL byte.
const (
	leafLabel = "sevagent/evidence/v1/leaf\x00"
	nodeLabel = "sevagent/evidence/v1/node\x00"
	padLabel  = "sevagent/evidence/v1/pad\x00"
)

// Purpose says what a report was asked for.
type Purpose string

// The purposes. They are part of the hash.
const (
	PurposeBoot   Purpose = "boot"   // the agent's own check before the node joins the cluster
	PurposeMTLS   Purpose = "mtls"   // evidence.json beside the published certificates
	PurposeClient Purpose = "client" // a caller of the local API
)

// Bounds of a nonce in bytes: RFC 9711, section 4.1, asks for 8 to 64; below 16 it is too easily guessed.
const (
	MinNonce = 16
	MaxNonce = 64
)

// Claims is what one requester wants a report to commit to.
type Claims struct {
	Purpose Purpose
	// Nonce is the relying party's challenge, MinNonce to MaxNonce bytes.
	Nonce []byte
	// Binding is the public key whose holder the evidence speaks of.
	Binding Binding
	// Caller is who asked on the node, as the node's kernel saw it.
	Caller Caller
}

// Kinds of binding.
const (
	BindNone   = "none"
	BindClient = "client"
	BindServer = "server"
)

// Binding names a published certificate's key. The zero value and Kind "none" bind nothing.
type Binding struct {
	Kind string `json:"kind"`
	// SPKISHA256 is the SHA-256 of the certificate's SubjectPublicKeyInfo, DER.
	SPKISHA256 Hex `json:"spki_sha256,omitempty"`
}

// Caller identifies a process on the node. It is the word of the node's agent, not of the hardware.
type Caller struct {
	UID         uint32 `json:"uid"`
	ContainerID string `json:"container_id,omitempty"`
	TaskARN     string `json:"task_arn,omitempty"`
}

// Check reports what makes c unusable.
func (c Claims) Check() error {
	if n := len(c.Nonce); n < MinNonce || n > MaxNonce {
		return fmt.Errorf("nonce of %d bytes, want %d to %d", n, MinNonce, MaxNonce)
	}
	switch c.Binding.Kind {
	case "", BindNone:
		if len(c.Binding.SPKISHA256) != 0 {
			return fmt.Errorf("binding %q with a key", BindNone)
		}
	case BindClient, BindServer:
		if len(c.Binding.SPKISHA256) != 32 {
			return fmt.Errorf("binding %q with a key hash of %d bytes, want 32", c.Binding.Kind, len(c.Binding.SPKISHA256))
		}
	default:
		return fmt.Errorf("unknown binding %q", c.Binding.Kind)
	}
	return nil
}

// Leaf returns the hash that stands for c in a batch:
//
//	SHA-512(label ‖ lp(purpose) ‖ lp(nonce) ‖ lp(key) ‖ lp(uid) ‖ lp(container ID) ‖ lp(task ARN))
//
// where lp(x) is the length of x as a 32-bit big-endian number followed by x, key is the SHA-256 of the bound
// SubjectPublicKeyInfo or empty, and uid is in decimal digits.
func (c Claims) Leaf() [Size]byte {
	h := sha512.New()
	h.Write([]byte(leafLabel))
	var length [4]byte
	for _, part := range [][]byte{
		[]byte(c.Purpose), c.Nonce, c.Binding.SPKISHA256,
		strconv.AppendUint(nil, uint64(c.Caller.UID), 10), []byte(c.Caller.ContainerID), []byte(c.Caller.TaskARN),
	} {
		binary.BigEndian.PutUint32(length[:], uint32(len(part)))
		h.Write(length[:])
		h.Write(part)
	}
	return [Size]byte(h.Sum(nil))
}
