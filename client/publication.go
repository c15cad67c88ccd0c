package client

import (
	"fmt"
	"time"
)

// SecretState is the state of a secret. In every state, the last good version stays published.
type SecretState string

// The states of a secret.
const (
	SecretCurrent     SecretState = "current"     // the current version is published
	SecretWaiting     SecretState = "waiting"     // not looked at yet, or waiting for the rest of the set
	SecretHeld        SecretState = "held"        // not valid yet; published when it is
	SecretRejected    SecretState = "rejected"    // the current version cannot be published
	SecretUnreachable SecretState = "unreachable" // a transient failure
	SecretDenied      SecretState = "denied"      // a persistent failure
	SecretMissing     SecretState = "missing"     // there is no such secret, or nothing in it
)

// SecretStates lists every state of a secret.
func SecretStates() []SecretState {
	return []SecretState{
		SecretCurrent, SecretWaiting, SecretHeld, SecretRejected, SecretUnreachable, SecretDenied, SecretMissing,
	}
}

// GuardState reports whether others have changed a published directory.
type GuardState string

// The states of a guard.
const (
	GuardOff         GuardState = "off"         // nothing is published, or it is not guarded yet
	GuardOK          GuardState = "ok"          // everything is as it was published
	GuardWarning     GuardState = "warning"     // there are foreign files, which mislead no reader
	GuardAlarm       GuardState = "alarm"       // changed in a way that cannot be repaired, such as a mount over it
	GuardQuarantined GuardState = "quarantined" // changed repeatedly; left as it is until a restart
)

// GuardStates lists every state of a guard.
func GuardStates() []GuardState {
	return []GuardState{GuardOff, GuardOK, GuardWarning, GuardAlarm, GuardQuarantined}
}

// FindingKind says what is wrong with a published file. The set is short and fixed: it labels a metric.
type FindingKind string

// The kinds of finding.
const (
	FoundContent    FindingKind = "content" // not what was published
	FoundMode       FindingKind = "mode"    // or an access control list, which the mode does not show
	FoundOwner      FindingKind = "owner"   // user or group
	FoundHardLink   FindingKind = "links"   // a second name, through which the file can be written unseen
	FoundRemoved    FindingKind = "removed"
	FoundReplaced   FindingKind = "replaced"     // by another file, or by something that is none
	FoundRetargeted FindingKind = "retargeted"   // a link leads elsewhere
	FoundExtra      FindingKind = "extra"        // a foreign name
	FoundUnreadable FindingKind = "unreadable"   // could not be read; not necessarily changed by others
	FoundMount      FindingKind = "mounted_over" // a directory, a file or a link is mounted over
	// FoundOtherDirectory: the published directory is another one, and running containers keep the one they have.
	FoundOtherDirectory FindingKind = "directory_replaced"
)

// Preflight results: whether a pending version could be published.
const (
	PreflightOK       = "ok"
	PreflightRejected = "rejected"
	PreflightUnknown  = "unknown" // the version could not be read
)

// Publication is what the agent has published and why. It never holds content of a secret other than certificates.
type Publication struct {
	// Ready reports whether a complete, valid set has been published, by this run of the agent or an earlier one.
	Ready       bool      `json:"ready"`
	Path        string    `json:"path"`
	Generation  string    `json:"generation,omitempty"`
	PublishedAt time.Time `json:"published_at,omitzero"`
	// NotAfter is when the first of Expiry ends.
	NotAfter     time.Time      `json:"not_after,omitzero"`
	Expiry       []Expiry       `json:"expiry,omitempty"`
	Certificates []Certificate  `json:"certificates"`
	Secrets      []SecretStatus `json:"secrets"`
	Warnings     []string       `json:"warnings,omitempty"`
	// Error is why the last attempt to publish failed. Empty: it did not, or there was none.
	Error string `json:"error,omitempty"`
	// CAOverlap lists the anchors that ca.crt still holds although the secret has dropped them.
	CAOverlap []Overlap        `json:"ca_overlap,omitempty"`
	Guard     GuardStatus      `json:"guard"`
	Consumers []ConsumerStatus `json:"consumers,omitempty"`
	Clock     ClockStatus      `json:"clock"`
	Cost      Cost             `json:"cost"`
}

// Expiry is the end of a published file's use.
type Expiry struct {
	File   string `json:"file"`   // client.crt, server.crt, ca.crt or cert-N.pem
	Secret string `json:"secret"` // that gives it
	// Subject, NotBefore and NotAfter are those of the certificate that ends it: of client.crt and server.crt the first to
	// expire of those that the chain needs, from the leaf to the anchor; of anchors the last.
	Subject   string    `json:"subject"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

// Expired is the last stage of an Expiry.
const Expired = 5

// Stage returns how urgent a renewal is at the time now, from 0, not yet, to Expired. It grows when a third, a tenth
// and a hundredth of the certificate's life are left, but at most 30, 14 and 3 days, and an hour before the end.
func (e Expiry) Stage(now time.Time) int {
	const day = 24 * time.Hour
	left, life := e.NotAfter.Sub(now), e.NotAfter.Sub(e.NotBefore)
	switch {
	case left < 0:
		return Expired
	case left < min(life/3, time.Hour):
		return 4
	case left < min(life/100, 3*day):
		return 3
	case left < min(life/10, 14*day):
		return 2
	case left < min(life/3, 30*day):
		return 1
	}
	return 0
}

// Left returns the time until the end in words, such as "12 days", "21 hours" or "40 minutes".
func (e Expiry) Left(now time.Time) string {
	const day = 24 * time.Hour
	switch left := e.NotAfter.Sub(now); {
	case left >= 2*day:
		return fmt.Sprintf("%d days", left/day)
	case left >= 2*time.Hour:
		return fmt.Sprintf("%d hours", left/time.Hour)
	case left >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", left/time.Minute)
	}
	return "a minute"
}

// GenerationOf returns the current generation of a consumer's directory or, with an empty name, of the node's own.
// Empty: there is none.
func (p *Publication) GenerationOf(consumer string) string {
	if consumer == "" {
		return p.Generation
	}
	for _, c := range p.Consumers {
		if c.Name == consumer {
			return c.Generation
		}
	}
	return ""
}

// ConsumerStatus is the state of a consumer's directory.
type ConsumerStatus struct {
	Name        string      `json:"name"`
	Path        string      `json:"path"`
	Generation  string      `json:"generation,omitempty"`
	PublishedAt time.Time   `json:"published_at,omitzero"`
	Files       []string    `json:"files"`             // published there
	Missing     []string    `json:"missing,omitempty"` // configured for it, but given by no secret
	Error       string      `json:"error,omitempty"`
	Guard       GuardStatus `json:"guard"`
}

// Overlap is an anchor that ca.crt holds for a while after the secret has dropped it.
type Overlap struct {
	Subject string    `json:"subject"`
	SHA256  string    `json:"sha256"` // of the certificate
	Until   time.Time `json:"until"`
}

// Certificate is one certificate in one published file.
type Certificate struct {
	File       string    `json:"file"`
	Subject    string    `json:"subject"`
	SANs       []string  `json:"sans,omitempty"` // with their type, as in URI:spiffe://example.org/node
	Issuer     string    `json:"issuer"`
	Serial     string    `json:"serial"` // hex
	NotBefore  time.Time `json:"not_before"`
	NotAfter   time.Time `json:"not_after"`
	SHA256     string    `json:"sha256"`      // of the certificate
	SPKISHA256 string    `json:"spki_sha256"` // of its SubjectPublicKeyInfo
	Secret     string    `json:"secret"`
	Version    string    `json:"version"`
}

// SecretStatus is the state of one secret.
type SecretStatus struct {
	Name  string      `json:"name"`
	State SecretState `json:"state"`
	// Published is the version that is published, Version the current one. Empty: none, or not known yet.
	Published   string    `json:"published_version,omitempty"`
	Version     string    `json:"version,omitempty"`
	Pending     string    `json:"pending_version,omitempty"`
	LastChecked time.Time `json:"last_checked,omitzero"` // the last time the source answered
	NextCheck   time.Time `json:"next_check,omitzero"`
	HeldUntil   time.Time `json:"held_until,omitzero"`
	// Preflight reports whether the pending version could be published.
	Preflight *Preflight `json:"preflight,omitempty"`
	// Error is the reason of any state but current, and Next what to do about it, where its source says that.
	Error string `json:"error,omitempty"`
	Next  string `json:"next,omitempty"`
	// Issue is there if the certificates are issued for a key that was made on this node.
	Issue *IssueStatus `json:"issue,omitempty"`
}

// IssueState is how far a certificate that is issued for this node has come.
type IssueState string

// The states of an issuance.
const (
	IssueIdle    IssueState = "idle"    // published, and not due
	IssueOrdered IssueState = "ordered" // the authority has not answered yet, or not with a certificate
	IssueReady   IssueState = "ready"   // issued, and not published yet
	IssueFailing IssueState = "failing" // the authority cannot be reached, or refuses
	IssueRefused IssueState = "refused" // issued, and cannot be used
)

// IssueStates lists every state of an issuance.
func IssueStates() []IssueState {
	return []IssueState{IssueIdle, IssueOrdered, IssueReady, IssueFailing, IssueRefused}
}

// IssueStatus is the state of certificates that are issued for a key made on this node.
type IssueStatus struct {
	From      string     `json:"from"`      // acm-pca, acme or spiffe
	Authority string     `json:"authority"` // ARN, URL of the directory, or socket
	State     IssueState `json:"state"`
	// Serial, in hexadecimal, Issued and NotAfter are those of the published certificate.
	Serial   string    `json:"serial,omitempty"`
	Issued   time.Time `json:"issued,omitzero"`
	NotAfter time.Time `json:"not_after,omitzero"`
	// RenewAt is when the next certificate is ordered. Zero: the authority decides.
	RenewAt time.Time `json:"renew_at,omitzero"`
	// Issuances counts those of the last 24 hours, and of this run of the agent at most.
	Issuances int `json:"issuances_24h"`
	// Evidence reports whether the certificate carries attestation evidence (RFC 9999).
	Evidence bool `json:"evidence"`
}

// Preflight reports in advance whether the version labelled AWSPENDING could be published.
type Preflight struct {
	Version string    `json:"version"`
	At      time.Time `json:"at"`
	Result  string    `json:"result"` // PreflightOK, PreflightRejected or PreflightUnknown
	Reason  string    `json:"reason,omitempty"`
}

// GuardStatus reports whether others have changed a published directory.
type GuardStatus struct {
	State GuardState `json:"state"`
	// Immutable reports whether the files have the attribute that keeps even a container's root from changing them.
	Immutable bool `json:"immutable"`
	// Findings are the changes found the last time that there were any, at At.
	Findings []Finding `json:"findings,omitempty"`
	At       time.Time `json:"at,omitzero"`
	// Repairs counts the generations that were published to undo changes, since the agent started.
	Repairs int    `json:"repairs"`
	Error   string `json:"error,omitempty"` // of the last repair
}

// Finding is one difference between a published directory and what was published there.
type Finding struct {
	Path   string      `json:"path"` // below the directory; "." for itself
	What   FindingKind `json:"what"`
	Detail string      `json:"detail"` // names and modes; never content
	// Warning reports whether the finding misleads no reader.
	Warning bool `json:"warning,omitempty"`
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s: %s", f.Path, f.What, f.Detail) }

// ClockStatus compares the node's clock with that of the service that holds the secrets.
type ClockStatus struct {
	// SkewSeconds is how far the node's clock is ahead; negative: behind. It is exact to about a second.
	SkewSeconds float64   `json:"skew_seconds"`
	Checked     time.Time `json:"checked,omitzero"`
	Error       string    `json:"error,omitempty"` // empty: the clock is right enough
}

// Cost estimates what polling costs one node in a month of 30 days, if each secret is rotated once.
type Cost struct {
	CallsPerMonth int     `json:"calls_per_month"` // of Secrets Manager
	USDPerMonth   float64 `json:"usd_per_month"`   // for these calls
	// CertificatesPerMonth counts those that mtls.issue orders, at the present certificates' lives. What one costs is a
	// matter of its authority.
	CertificatesPerMonth int `json:"certificates_per_month,omitempty"`
}

// RefreshRequest is the body of a request to refresh, which may be empty.
type RefreshRequest struct {
	// Renew names a source of mtls.issue that is to order a new certificate. Empty: secrets are looked at, and nothing is
	// ordered that is not due.
	Renew string `json:"renew,omitempty"`
}

// Refresh is the outcome of a refresh.
type Refresh struct {
	Changed    bool           `json:"changed"`
	Generation string         `json:"generation,omitempty"` // current now
	Previous   string         `json:"previous,omitempty"`   // current before, if Changed
	Secrets    []SecretStatus `json:"secrets"`
}
