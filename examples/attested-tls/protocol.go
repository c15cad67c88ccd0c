// Package attestedtls holds what the two example programs share: messages of bounded size, and the nonce that ties
// evidence to one TLS connection. docs/attested-tls.md explains the exchange, and what it proves.
//
// After the handshake, in which both have proved that they hold a private key, four messages follow:
//
//	server to client   the document of the enclave that it runs in, for this connection and its key; or empty
//	server to client   a random number of NonceSize bytes
//	client to server   an evidence document, bound to the client's key and over Nonce(connection, random)
//	server to client   Accepted, or why not
//
// A server that relies on the evidence in the client's certificate needs no other: its second message is then empty,
// and Accepted, or why not, follows at once.
//
// # Why the nonce is derived
//
// If the random number itself were the nonce, evidence would be fresh but would not say for which connection it was
// made. An attacker with a copy of the client's key, to whom the real client connects as to a relying party, could pass
// the server's random number on to that client and its evidence back to the server, and be taken for a guest. Here the
// nonce is a hash that also covers keying material exported from the connection (RFC 8446, section 7.5), as RFC 9266
// does for channel bindings. Both ends of one TLS connection compute the same value, nobody else can, and two
// connections never share it, even if the attacker is an end of both: evidence made in one is worthless in the other.
//
// The derivation does not stop an attacker who has a copy of the key and may also ask an agent that publishes it: such
// an attacker chooses the nonce. The node controls who may use an agent's socket.
package attestedtls

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// Timeout bounds the whole exchange at each end, handshake included. An agent answers or refuses within 30 seconds.
const Timeout = 40 * time.Second

// NonceSize is the length of the server's random number in bytes.
const NonceSize = 32

// Accepted is the server's answer to evidence that it relies on. Any other answer is the reason of a refusal.
const Accepted = "accepted"

// MaxMessage bounds a message in bytes; it is the limit of an evidence document, too.
const MaxMessage = 256 << 10

const (
	exporterLabel = "EXPORTER-sevagent-attested-tls"
	nonceLabel    = "sevagent/attested-tls/v1\x00"
	enclaveLabel  = "sevagent/attested-tls/enclave/v1\x00"
	keyLabel      = "sevagent/attested-tls/enclave-key/v1\x00"
)

// Nonce returns the nonce to ask the agent for in this connection: SHA-256 over a label, and the server's random
// number and 32 bytes of exported keying material, each after its length as a 32-bit big-endian number. It fails if the
// exporter is not unique to the connection: before TLS 1.3 without extended master secret.
func Nonce(state tls.ConnectionState, random []byte) ([]byte, error) {
	if len(random) != NonceSize {
		return nil, fmt.Errorf("derive the nonce: the random number has %d bytes, want %d", len(random), NonceSize)
	}
	exported, err := state.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("derive the nonce: %w", err)
	}
	return hash(nonceLabel, random, exported), nil
}

// EnclaveFields returns user_data and nonce of an enclave's document: the key of the server's certificate, and the
// connection. The exported keying material alone is fresh for both ends, since each has a share in the key exchange.
func EnclaveFields(state tls.ConnectionState, spki []byte) (userData, nonce []byte, err error) {
	exported, err := state.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, nil, fmt.Errorf("derive the enclave's nonce: %w", err)
	}
	return hash(keyLabel, spki), hash(enclaveLabel, exported), nil
}

// hash is SHA-256 over a label and parts, each after its length as a 32-bit big-endian number.
func hash(label string, parts ...[]byte) []byte {
	h := sha256.New()
	h.Write([]byte(label))
	for _, part := range parts {
		binary.Write(h, binary.BigEndian, uint32(len(part)))
		h.Write(part)
	}
	return h.Sum(nil)
}

// WriteMessage writes a message after its length, a 32-bit big-endian number.
func WriteMessage(w io.Writer, message []byte) error {
	if len(message) > MaxMessage {
		return fmt.Errorf("write a message: %d bytes, at most %d are allowed", len(message), MaxMessage)
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...))
	return err
}

// ReadMessage reads a message that WriteMessage wrote.
func ReadMessage(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, fmt.Errorf("read a message: %w", err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > MaxMessage {
		return nil, fmt.Errorf("read a message: %d bytes, at most %d are allowed", n, MaxMessage)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, fmt.Errorf("read a message: %w", err)
	}
	return message, nil
}
