// Package source is where secrets come from: the contract between the rotator and whatever has the versions of a
// secret, and the source for local files. The agent brings the source for Secrets Manager.
package source

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"time"

	"sevagent/client"
)

// Source gives the versions of one secret. Its errors say what was tried on what, and are *Error where their kind is
// known. It need not be safe for concurrent use.
type Source interface {
	// Describe returns which version is current, without touching the content. It is called at every poll and should
	// be cheap.
	Describe(ctx context.Context) (Version, error)
	// Fetch returns the content of a version that Describe has just named, and fails with Moved if that version has
	// lost its staging label since: with both, the service can verify that they still agree.
	Fetch(ctx context.Context, versionID string, label Label) (Secret, error)
}

// Issuing is a Source that makes its versions itself, with keys that nothing else has.
type Issuing interface {
	Source
	// Published says which version is published, with the certificate of its key: after a publication, and after a
	// restart that has found it in the directory. What is published need not be kept.
	Published(version string, leaf *x509.Certificate)
	// Refused says why a version cannot be published as it is.
	Refused(version string, reason error)
	// Renew asks for a new version although none is due.
	Renew()
	// Status is safe for concurrent use.
	Status() client.IssueStatus
}

// Secret is the content of a secret. It is a closure so that nothing can print it by accident: no format verb, log
// handler or JSON encoder looks inside a function. The bytes belong to the Secret; callers do not change them.
type Secret func() []byte

// NewSecret returns a Secret that holds content.
func NewSecret(content []byte) Secret {
	return func() []byte { return content }
}

// Label is a staging label of Secrets Manager.
type Label string

// The staging labels in use.
const (
	Current Label = "AWSCURRENT"
	Pending Label = "AWSPENDING"
)

// Version describes a secret. Version IDs are opaque: they differ or not, and none is newer than another, since a
// roll-back moves the label to an older version.
type Version struct {
	// Current is the ID of the version labelled AWSCURRENT. Empty: the secret has no value yet.
	Current string
	// Pending is the ID of the version labelled AWSPENDING. Empty: none, or the current one.
	Pending string
	// NextRotation is when the secret is due to be rotated. Zero: unknown.
	NextRotation time.Time
	// Date is the service's clock when it answered, to a second. Zero: it has none.
	Date time.Time
	// Next is when the source wants to be described again. Zero: as the caller likes.
	Next time.Time
}

// Kind says what a failure calls for.
type Kind string

// The kinds of failure.
const (
	// Transient failures go away by themselves: throttling (HTTP 400 at Secrets Manager, so that the code tells it and
	// not the status), timeouts, 5xx. They are retried with backoff.
	Transient Kind = "transient"
	// Persistent failures need someone to act: access denied, no such secret, scheduled for deletion, KMS refused.
	// They are retried ever more slowly.
	Persistent Kind = "persistent"
	// Moved means that the version to fetch is not current any more: describe again, at once.
	Moved Kind = "label_moved"
)

// Error is a failure that its Source has classified. Any other error counts as Transient.
type Error struct {
	Kind Kind
	Err  error
	// Advice is what to do about it. Empty: Err says so, or nothing is known.
	Advice string
	// Missing reports whether there is no such secret, or nothing in it.
	Missing bool
	// Date and Next are as those of a Version.
	Date, Next time.Time
}

func (e *Error) Error() string {
	if e.Advice != "" {
		return e.Err.Error() + "; " + e.Advice
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// BootTries is how often a service that has not answered yet is asked again at a steady pace, within a second or so,
// before anything is published: for half a minute if attempts fail at once. It costs nothing, and the node waits.
const BootTries = 60

// Answered reports whether a failure is the answer of the service that has the secret. If not, the service was not
// reached: at boot the network, the region or the role's credentials may be late.
func Answered(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Kind != Transient || !e.Date.IsZero())
}

// Advise adds to an error what to do about it, which Explain tells from the cause.
func Advise(err error, advice string) error { return &advised{err, advice} }

type advised struct {
	error
	text string
}

func (a *advised) Error() string  { return a.error.Error() + "; " + a.text }
func (a *advised) Unwrap() error  { return a.error }
func (a *advised) advice() string { return a.text }
func (e *Error) advice() string   { return e.Advice }

// Explain returns the text of a failure without the advice of its source, and that advice.
func Explain(err error) (cause, advice string) {
	type adviser interface {
		advice() string
		Unwrap() error
	}
	cause = err.Error()
	for a := adviser(nil); errors.As(err, &a); err = a.Unwrap() {
		if advice = a.advice(); advice != "" {
			return strings.Replace(cause, "; "+advice, "", 1), advice
		}
	}
	return cause, ""
}

// IsMissing reports whether err says that there is no such secret, or nothing in it.
func IsMissing(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Missing
}

// KindOf returns the kind of a failure.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Transient
}
