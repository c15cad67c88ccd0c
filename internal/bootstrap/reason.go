package bootstrap

import (
	"errors"
	"strings"
	"unicode"
)

// stepError is the failure of a step.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// failed adds the step to an error. A nil error stays nil.
func failed(step string, err error) error {
	if err == nil {
		return nil
	}
	return &stepError{step, err}
}

// advised is an error with advice, which a person reads in the journal; a stack's event has no room for it.
type advised struct {
	error
	advice string
}

func (a advised) Error() string { return a.error.Error() + "; " + a.advice }
func (a advised) Unwrap() error { return a.error }

func withoutAdvice(err error) string {
	text := err.Error()
	if a, ok := errors.AsType[advised](err); ok {
		text = strings.Replace(text, "; "+a.advice, "", 1)
	}
	return text
}

// maxUniqueID is in characters: AWS CloudFormation API Reference, SignalResource, UniqueId.
const maxUniqueID = 64

// failureID is the UniqueId of a FAILURE. SignalResource has no field for a reason; a stack's event shows the UniqueId:
//
//	Received FAILURE signal with UniqueId 9abcdef0:proof: attestation:gate: no device
//
// It names the end of the instance's ID, the step, and as much of the error's end, where the cause is, as fits.
func failureID(instance string, err error) string {
	step := "bootstrap"
	if s, ok := errors.AsType[*stepError](err); ok {
		step, err = s.step, s.err
	}
	text := withoutAdvice(err)
	if len(instance) > 8 {
		instance = instance[len(instance)-8:]
	}
	head := printable(instance + ":" + step + ": ")
	if len(head) > maxUniqueID/2 {
		head = head[:maxUniqueID/2]
	}
	return head + shortCause(printable(text), maxUniqueID-len(head))
}

// shortCause returns at most room bytes of an error's text. Errors here read from what was tried to the cause, with ":
// " between: the parts at the end are kept, and only a last part that is too long by itself is cut. What matters of an
// AWS error is in the middle: "AccessDenied: User: arn:…".
func shortCause(text string, room int) string {
	if _, api, ok := strings.Cut(text, apiError); ok {
		return cut(api, room)
	}
	rest := text
	for len(rest) > room {
		_, after, ok := strings.Cut(rest, ": ")
		if !ok {
			return cut(rest, room)
		}
		rest = after
	}
	return rest
}

func cut(text string, room int) string {
	if len(text) <= room {
		return text
	}
	return strings.TrimRight(text[:max(room-3, 0)], " :") + "..."
}

// printable makes one line of printable ASCII, in which a byte is a character and can be cut off: which other
// characters the API accepts in a UniqueId, and how it counts them, is not documented.
func printable(text string) string {
	text = strings.Map(func(c rune) rune {
		switch {
		case unicode.IsSpace(c) || unicode.IsControl(c):
			return ' '
		case c == '…':
			return '~'
		case c > unicode.MaxASCII:
			return '?'
		}
		return c
	}, text)
	line := strings.Join(strings.Fields(text), " ")
	if strings.HasSuffix(text, " ") && line != "" {
		line += " " // of a head, to which more is added
	}
	return line
}
