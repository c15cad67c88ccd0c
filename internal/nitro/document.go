// Package nitro verifies attestation documents that AWS's Nitro hypervisor signs: those of a node's NitroTPM, of
// enclaves and of sandboxes, which share one root and one format. It is pure, and reads no clock.
//
// A document that Verify returns was signed under the root at its Timestamp; its registers, instance and region are
// AWS's word. Its three free fields are the word of the software in the instance, and mean something only if the caller
// compares them: Binds does. What the registers say is what the instance was booted from, not what runs in it: where
// root can write to the file system, everything after the boot can be replaced and no register changes.
package nitro

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"sevagent/internal/pattern"
)

// MaxDocument bounds a document in bytes: AWS's own limit of the payload.
const MaxDocument = 16 << 10

// Kind is what a document is of.
type Kind string

// The kinds. A relying party that takes an enclave's document for a node's accepts one from anybody with an account.
const (
	// NitroTPM is of an instance itself: it has nitrotpm_pcrs, and -tpm in module_id.
	NitroTPM Kind = "nitrotpm"
	// Enclave has pcrs, and -enc in module_id.
	Enclave Kind = "enclave"
	// Sandbox is of what else has pcrs. AWS does not say what the module_id of a Nitro Sandbox is.
	Sandbox Kind = "sandbox"
)

// Register is the value of a platform configuration register: SHA-384.
type Register [48]byte

// MarshalText implements encoding.TextMarshaler: lower-case hexadecimal.
func (r Register) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, r[:]), nil }

func (r Register) String() string { return hex.EncodeToString(r[:]) }

// Document is what a document says.
type Document struct {
	Kind Kind
	// ModuleID is the signing module's name.
	ModuleID string
	// InstanceID is the EC2 instance of ModuleID; for an enclave, the parent's. Empty for a sandbox whose ModuleID has
	// none.
	InstanceID string
	// Region is that of the certificate.
	Region string
	// Timestamp is AWS's, in milliseconds.
	Timestamp time.Time
	// PCRs are the registers by number. One that is missing was not said to be zero.
	PCRs map[int]Register
	// UserData, Nonce and PublicKey are what software in the instance chose. Nil: null, or absent.
	UserData, Nonce, PublicKey []byte
}

// parsed is a document whose signature nobody has looked at.
type parsed struct {
	Document
	leaf      []byte
	bundle    [][]byte // the root first
	payload   []byte
	signature []byte
}

// The forms of module_id: AWS's documents of 2025 and 2026.
var (
	moduleID   = pattern.New(`^(i-[0-9a-f]{8,17})-(tpm|enc)[0-9a-f]{16}$`)
	instanceID = pattern.New(`^(i-[0-9a-f]{8,17})-`)
)

// protected is the COSE header {1: -35}, ES384, as a byte string: RFC 9053, section 2.1.
var protected = []byte{0x44, 0xa1, 0x01, 0x38, 0x22}

// Is reports whether data begins as a document does.
func Is(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimPrefix(data, []byte{0xd2}), append([]byte{0x84}, protected...))
}

// parse reads a COSE_Sign1 (RFC 9052, section 4.2) and its payload.
func parse(doc []byte) (*parsed, error) {
	if len(doc) > MaxDocument {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(doc), MaxDocument)
	}
	rest := bytes.TrimPrefix(doc, []byte{0xd2}) // the tag 18, which RFC and AWS's text show, and documents do not have
	rest, ok := bytes.CutPrefix(rest, append([]byte{0x84}, protected...))
	if !ok {
		return nil, errors.New("not a COSE_Sign1 signed with ES384")
	}
	if rest, ok = bytes.CutPrefix(rest, []byte{0xa0}); !ok {
		return nil, errors.New("it has unprotected headers")
	}
	r := reader{rest: rest}
	p := new(parsed)
	p.payload = r.bytes(MaxDocument, "the payload")
	p.signature = r.bytes(96, "the signature")
	if err := r.end(); err != nil {
		return nil, err
	}
	if len(p.signature) != 96 { // R and S, 48 bytes each: RFC 9053, section 2.1
		return nil, fmt.Errorf("the signature has %d bytes, want 96", len(p.signature))
	}
	return p, p.read(p.payload)
}

// maxField bounds the free fields and the certificates, in bytes: AWS's limits.
const maxField = 1024

// read reads the payload.
func (p *parsed) read(payload []byte) error {
	r := reader{rest: payload}
	seen := make(map[string]bool)
	r.items(majorMap, 32, "the payload", func() {
		key := r.text(64, "a key")
		if seen[key] {
			r.fail("the key %.32q stands twice", key)
		}
		seen[key] = true
		switch key {
		case "module_id":
			p.ModuleID = r.text(128, key)
		case "digest":
			if got := r.text(16, key); r.err == nil && got != "SHA384" {
				r.fail("digest is %q, want SHA384", got)
			}
		case "timestamp":
			const year10000 = 253402300800000
			n := r.uint(key)
			if r.err == nil && (n == 0 || n >= year10000) {
				r.fail("timestamp is %d", n)
			}
			p.Timestamp = time.UnixMilli(int64(n)).UTC()
		case "nitrotpm_pcrs", "pcrs":
			p.registers(&r, key)
		case "certificate":
			p.leaf = r.bytes(maxField, key)
		case "cabundle":
			r.items(majorArray, 8, key, func() { p.bundle = append(p.bundle, r.bytes(maxField, "a certificate")) })
		case "public_key":
			p.PublicKey = r.optional(maxField, key)
		case "user_data":
			p.UserData = r.optional(maxField, key)
		case "nonce":
			p.Nonce = r.optional(maxField, key)
		default: // AWS may add some
			r.skip(maxDepth)
		}
	})
	if err := r.end(); err != nil {
		return err
	}
	for _, key := range []string{"module_id", "digest", "timestamp", "certificate", "cabundle"} {
		if !seen[key] {
			return fmt.Errorf("no %s", key)
		}
	}
	if len(p.PCRs) == 0 || len(p.bundle) == 0 {
		return errors.New("no registers, or no certificates above that of the signer")
	}
	return p.kind(seen["nitrotpm_pcrs"], seen["pcrs"])
}

func (p *parsed) registers(r *reader, key string) {
	p.PCRs = make(map[int]Register)
	r.items(majorMap, 32, key, func() {
		i := r.uint("a register's number")
		value := r.bytes(64, "a register")
		if r.err != nil {
			return
		}
		if _, twice := p.PCRs[int(i&31)]; twice || i > 31 {
			r.fail("%s has the register %d twice, or there is none of this number", key, i)
		} else if len(value) != len(Register{}) {
			r.fail("PCR%d has %d bytes, want %d", i, len(value), len(Register{}))
		} else {
			p.PCRs[int(i)] = Register(value)
		}
	})
}

// kind says what the document is of: two marks that have to agree.
func (p *parsed) kind(tpm, enclave bool) error {
	form := moduleID.FindStringSubmatch(p.ModuleID)
	switch {
	case tpm && enclave:
		return errors.New("it has both nitrotpm_pcrs and pcrs")
	case tpm && (form == nil || form[2] != "tpm"), enclave && form != nil && form[2] == "tpm":
		return fmt.Errorf("its registers are not of the kind that module_id %.64q says", p.ModuleID)
	case tpm:
		p.Kind = NitroTPM
	case form != nil:
		p.Kind = Enclave
	default:
		p.Kind = Sandbox
		if strings.ContainsFunc(p.ModuleID, func(r rune) bool { return r <= ' ' || r > '~' }) || p.ModuleID == "" {
			return fmt.Errorf("module_id is %.64q", p.ModuleID)
		}
	}
	if id := instanceID.FindStringSubmatch(p.ModuleID); id != nil {
		p.InstanceID = id[1]
	}
	return nil
}

// The report and its REPORT_DATA: AMD publication 56860, "ATTESTATION_REPORT Structure".
const (
	reportSize       = 0x4A0
	reportDataOffset = 0x050
)

// Binding returns the user_data and nonce of a document that goes with an attestation report, all 1184 bytes of it with
// the signature: docs/evidence.md. Public_key is null. The document commits to the report and not the other way round:
// the report of an evil guest can name any document, but a measured agent only ever names its own report.
func Binding(report []byte) (userData, nonce [64]byte) {
	if len(report) != reportSize {
		panic(fmt.Sprintf("nitro: a report of %d bytes", len(report)))
	}
	return hash("sevagent/nitrotpm/v1", report), [64]byte(report[reportDataOffset:])
}

// Binds reports why the document was not made for an attestation report, or nil.
func (d *Document) Binds(report []byte) error {
	userData, nonce := Binding(report)
	switch {
	case d.Kind != NitroTPM:
		return &Error{CodeKind, fmt.Sprintf("it is the document of %v, and of no node", d.Kind)}
	case !bytes.Equal(d.UserData, userData[:]):
		return &Error{CodeBinding, "its user_data is not for this attestation report"}
	case !bytes.Equal(d.Nonce, nonce[:]):
		return &Error{CodeBinding, "its nonce is not this report's REPORT_DATA"}
	case d.PublicKey != nil:
		return &Error{CodeBinding, "it has a public_key: it was made for something else"}
	}
	return nil
}

// String says what the document is of, in words.
func (k Kind) String() string {
	switch k {
	case NitroTPM:
		return "an instance's NitroTPM"
	case Enclave:
		return "an enclave"
	}
	return "a sandbox"
}

// Image returns one digest of what the instance was booted from: SHA-256 over PCR4, PCR7 and PCR12, none of which says
// enough alone. It reports false if one of them is missing.
func (d *Document) Image() (digest [32]byte, ok bool) {
	data := []byte("sevagent/image/v1\x00")
	for _, i := range []int{4, 7, 12} {
		value, there := d.PCRs[i]
		if !there {
			return digest, false
		}
		data = append(binary.BigEndian.AppendUint32(data, uint32(len(value))), value[:]...)
	}
	return sha256.Sum256(data), true
}

// hash is SHA-512 over a label, which a NUL ends, and a part with its length before it.
func hash(label string, part []byte) [64]byte {
	data := binary.BigEndian.AppendUint32([]byte(label+"\x00"), uint32(len(part)))
	return sha512.Sum512(append(data, part...))
}
