package mtls

import (
	"context"
	"errors"
	"time"
)

// Source is where the versions of one secret come from. Its errors say what was tried on what, and are *SourceError
// where their kind is known. It need not be safe for concurrent use.
type Source interface {
	// Describe tells which version is current, without touching the content. It is called at every poll and
	// should be cheap.
	Describe(ctx context.Context) (Version, error)
	// Fetch returns the content of a version that Describe has just named, and fails with LabelMoved when that
	// version has lost its staging label since: passing both lets the service check that they still agree.
	Fetch(ctx context.Context, versionID string, label Label) (Secret, error)
}

// Label is a staging label of Secrets Manager.
type Label string

// The labels that matter here.
const (
	LabelCurrent Label = "AWSCURRENT"
	LabelPending Label = "AWSPENDING"
)

// Version is what Describe tells about a secret. Version IDs are opaque: they are compared with "differs", never
// with "newer", since a roll-back moves the label to an older version.
type Version struct {
	// Current is the ID of the version labelled AWSCURRENT. Empty: the secret has no value yet.
	Current string
	// Pending is the ID of the version labelled AWSPENDING. Empty: none, or the current one.
	Pending string
	// NextRotation is when the secret is due to be rotated. Zero: unknown.
	NextRotation time.Time
	// Date is the service's clock when it answered, to a second. Zero: it has none.
	Date time.Time
}

// Kind tells how a failure of a Source is to be met.
type Kind string

// The kinds of failure.
const (
	// Transient failures go away by themselves: throttling (HTTP 400 at Secrets Manager, so it is told by code,
	// not by status), timeouts, 5xx. They are retried with backoff.
	Transient Kind = "transient"
	// Persistent failures need someone to act: access denied, no such secret, scheduled for deletion, KMS
	// refused. They are retried ever more slowly.
	Persistent Kind = "persistent"
	// LabelMoved means that the version to fetch is not current any more: describe again, at once.
	LabelMoved Kind = "label_moved"
)

// SourceError is a failure of a Source, classified by it. Any other error counts as Transient.
type SourceError struct {
	Kind Kind
	Err  error
	// Date is as that of a Version.
	Date time.Time
}

func (e *SourceError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *SourceError) Unwrap() error { return e.Err }

func kindOf(err error) Kind {
	if e, ok := errors.AsType[*SourceError](err); ok {
		return e.Kind
	}
	return Transient
}
