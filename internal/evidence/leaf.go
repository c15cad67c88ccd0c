// Package evidence defines what sevagent hands to relying parties: how a request becomes the REPORT_DATA of an
// attestation report, and the JSON document that carries the report with all that is needed to check it.
//
// docs/evidence.md specifies both byte by byte. The package is pure: it neither asks the device nor appraises
// reports. It promises that a report made for one purpose, nonce, key, caller or instance cannot be passed off as made
// for another: callers never choose REPORT_DATA, they choose what is hashed under a label.
package evidence

import (
	"cmp"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"sevagent/internal/pattern"
)

// Size is the length in bytes of a leaf, a node and a root (SHA-512), and of REPORT_DATA.
const Size = sha512.Size

// Labels keep the three kinds of hash apart, from each other and from everything else that is ever hashed.
// Each ends in a NUL byte.
const (
	leafLabel = "sevagent/evidence/v2/leaf\x00"
	nodeLabel = "sevagent/evidence/v2/node\x00"
	padLabel  = "sevagent/evidence/v2/pad\x00"
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
	// Caller is who asked on the node, as the node's agent saw it.
	Caller Caller
	// Instance is the EC2 instance that the node says it is; the zero value: it does not know.
	Instance Instance
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

// kind returns the kind of binding, which is BindNone for the zero value.
func (b Binding) kind() string { return cmp.Or(b.Kind, BindNone) }

// CallerKind says where on the node a caller runs.
type CallerKind string

// The kinds of callers. Host is a positive finding: whatever is not recognised is unknown.
const (
	CallerHost      CallerKind = "host"
	CallerContainer CallerKind = "container"
	CallerUnknown   CallerKind = "unknown"
)

// Caller identifies a process on the node. It is the word of the node's agent, not of the hardware.
type Caller struct {
	Kind CallerKind `json:"kind"`
	// UID is nil for an unknown caller, which must not pass for anyone.
	UID *uint32 `json:"uid,omitempty"`
	// ContainerID and TaskARN are a container's: the first always, the second if the node knows the task.
	ContainerID string `json:"container_id,omitempty"`
	TaskARN     string `json:"task_arn,omitempty"`
}

// HostCaller returns a process of the node that is in no container.
func HostCaller(uid uint32) Caller { return Caller{Kind: CallerHost, UID: &uid} }

// ContainerCaller returns a process in a container. An empty taskARN means that no task is known.
func ContainerCaller(uid uint32, containerID, taskARN string) Caller {
	return Caller{Kind: CallerContainer, UID: &uid, ContainerID: containerID, TaskARN: taskARN}
}

// uid returns the user in decimal digits, or nothing.
func (c Caller) uid() string {
	if c.UID == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*c.UID), 10)
}

// String describes c in one line. Different callers have different descriptions.
func (c Caller) String() string {
	text := string(c.Kind)
	for _, part := range [][2]string{{"uid", c.uid()}, {"container", c.ContainerID}, {"task", c.TaskARN}} {
		if part[1] != "" {
			text += " " + part[0] + " " + part[1]
		}
	}
	return text
}

// Instance is the EC2 instance that a node says it is, by the metadata service that it asks. It tells the nodes of one
// fleet apart; the hardware does not vouch for it.
type Instance struct {
	ID        string `json:"id"`
	Region    string `json:"region"`
	AccountID string `json:"account_id"`
}

// Check reports what makes c unusable. Everything in c has one of the forms that docs/evidence.md lists.
func (c Claims) Check() error {
	switch c.Purpose {
	case PurposeBoot, PurposeMTLS, PurposeClient:
	default:
		return fmt.Errorf("unknown purpose %q", c.Purpose)
	}
	if n := len(c.Nonce); n < MinNonce || n > MaxNonce {
		return fmt.Errorf("nonce of %d bytes, want %d to %d", n, MinNonce, MaxNonce)
	}
	if err := c.Binding.check(); err != nil {
		return err
	}
	if err := c.Caller.check(); err != nil {
		return err
	}
	if c.Instance == (Instance{}) {
		return nil
	}
	return c.Instance.Check()
}

func (b Binding) check() error {
	switch b.kind() {
	case BindNone:
		if len(b.SPKISHA256) != 0 {
			return fmt.Errorf("binding %q with a key", BindNone)
		}
	case BindClient, BindServer:
		if len(b.SPKISHA256) != 32 {
			return fmt.Errorf("binding %q with a key hash of %d bytes, want 32", b.Kind, len(b.SPKISHA256))
		}
	default:
		return fmt.Errorf("unknown binding %q", b.Kind)
	}
	return nil
}

func (c Caller) check() error {
	switch c.Kind {
	case CallerUnknown:
		if c.UID != nil || c.ContainerID != "" || c.TaskARN != "" {
			return errors.New("unknown caller with a uid, a container or a task")
		}
		return nil
	case CallerHost:
		if c.ContainerID != "" || c.TaskARN != "" {
			return errors.New("caller on the host with a container or a task")
		}
	case CallerContainer:
		if !containerID.MatchString(c.ContainerID) || len(c.ContainerID) != 64 {
			return fmt.Errorf("container ID %q is not 64 hexadecimal digits", c.ContainerID)
		}
		if c.TaskARN != "" && !ValidTaskARN(c.TaskARN) {
			return fmt.Errorf("%q is not the ARN of an ECS task", c.TaskARN)
		}
	default:
		return fmt.Errorf("unknown kind of caller %q", c.Kind)
	}
	if c.UID == nil {
		return fmt.Errorf("caller of kind %q without a uid", c.Kind)
	}
	return nil
}

// Patterns of what the leaf commits to as text. They have no counted repetitions, which take long to compile, at every
// start of every command: lengths are checked separately.
var (
	containerID = pattern.New(`^[0-9a-f]+$`)
	// taskARN has the cluster's name (the long form, since 2018) or not.
	taskARN    = pattern.New(`^arn:aws(?:-[a-z]+)*:ecs:[a-z0-9-]+:[0-9]+:task/(?:[A-Za-z0-9_-]+/)?[0-9a-f-]+$`)
	instanceID = pattern.New(`^i-[0-9a-f]+$`)
	region     = pattern.New(`^[a-z]+(?:-[a-z]+)+-[0-9]+$`)
	accountID  = pattern.New(`^[0-9]+$`)
)

const (
	maxTaskARN = 400 // a cluster's name has at most 255 characters
	maxRegion  = 32
)

// ValidTaskARN reports whether s has the form of an ECS task's ARN.
func ValidTaskARN(s string) bool { return len(s) <= maxTaskARN && taskARN.MatchString(s) }

// Check reports what of i does not have the form that EC2 gives it.
func (i Instance) Check() error {
	switch digits := len(i.ID) - len("i-"); {
	case !instanceID.MatchString(i.ID) || digits < 8 || digits > 17:
		return fmt.Errorf("instance ID %q is not i- and 8 to 17 hexadecimal digits", i.ID)
	case !region.MatchString(i.Region) || len(i.Region) > maxRegion:
		return fmt.Errorf("%q is not the name of a region", i.Region)
	case !accountID.MatchString(i.AccountID) || len(i.AccountID) != 12:
		return fmt.Errorf("account ID %q is not 12 digits", i.AccountID)
	}
	return nil
}

// Leaf returns the hash that stands for c in a batch:
//
//	SHA-512(label ‖ lp(purpose) ‖ lp(nonce) ‖ lp(binding kind) ‖ lp(key)
//	        ‖ lp(caller kind) ‖ lp(uid) ‖ lp(container ID) ‖ lp(task ARN)
//	        ‖ lp(instance ID) ‖ lp(region) ‖ lp(account ID))
//
// where lp(x) is the length of x as a 32-bit big-endian number followed by x, key is the SHA-256 of the bound
// SubjectPublicKeyInfo or empty, and uid is in decimal digits. What is absent is empty.
func (c Claims) Leaf() [Size]byte {
	h := sha512.New()
	h.Write([]byte(leafLabel))
	var length [4]byte
	for _, part := range [][]byte{
		[]byte(c.Purpose), c.Nonce, []byte(c.Binding.kind()), c.Binding.SPKISHA256,
		[]byte(c.Caller.Kind), []byte(c.Caller.uid()), []byte(c.Caller.ContainerID), []byte(c.Caller.TaskARN),
		[]byte(c.Instance.ID), []byte(c.Instance.Region), []byte(c.Instance.AccountID),
	} {
		binary.BigEndian.PutUint32(length[:], uint32(len(part)))
		h.Write(length[:])
		h.Write(part)
	}
	return [Size]byte(h.Sum(nil))
}
