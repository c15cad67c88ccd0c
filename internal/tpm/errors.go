package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"sevagent/internal/nitro"
)

// What can go wrong with the TPM. Each says what it means; Advice says what to do.
var (
	ErrAbsent    = errors.New("this machine has no TPM")
	ErrNotNitro  = errors.New("the TPM is not a NitroTPM: it does not know AWS's command for attestation documents")
	ErrDenied    = errors.New("the agent may not open the TPM")
	ErrBusy      = errors.New("another process has the TPM open")
	ErrInUse     = errors.New("another agent uses the TPM")
	ErrNVSpace   = errors.New("the TPM has no room for another NV index")
	ErrOwner     = errors.New("the TPM's owner hierarchy has a password")
	ErrLockout   = errors.New("the TPM is locked after wrong passwords")
	ErrPutOff    = errors.New("the TPM kept putting the command off")
	ErrPassword  = errors.New("the NV index is not the agent's: something else has replaced it")
	ErrMalformed = errors.New("the TPM's answer is malformed")
	ErrEcho      = errors.New("the document does not carry what was asked for")
	ErrSlow      = errors.New("the TPM is too slow")
	ErrQueueFull = errors.New("too many requests for documents are waiting")
	ErrStopped   = errors.New("the agent is stopping")
)

// Codes of answers: TPM 2.0 Library, part 2, table "TPM_RC". A code with bit 7 set has a number of a handle, session
// or parameter beside it.
const (
	rcUnknown   = 0x143
	rcNVSpace   = 0x14b
	rcNVDefined = 0x14c
	rcHandle    = 0x08b
	rcAuthFail  = 0x08e
	rcSize      = 0x095
	rcBadAuth   = 0x0a2
	rcLockout   = 0x921
)

// putOff are the codes after which a command has to be repeated: YIELDED, TESTING, NV_RATE, RETRY and NV_UNAVAILABLE.
var putOff = []uint32{0x908, 0x90a, 0x920, 0x922, 0x923}

// CommandError is an answer of the TPM other than success.
type CommandError struct {
	// Command is the TPM's name for it.
	Command string
	// Code is the response code, with the layer that it came from in bits 16 to 19: 0xb is the kernel's resource
	// manager.
	Code uint32

	command command
	handles []uint32
}

func (e *CommandError) Error() string {
	if cause := e.Unwrap(); cause != nil {
		return fmt.Sprintf("%s: the TPM answered %#x: %v", e.Command, e.Code, cause)
	}
	return fmt.Sprintf("%s: the TPM answered %#x", e.Command, e.Code)
}

// base is the code without its layer and without the number of what it is about.
func (e *CommandError) base() uint32 {
	if e.Code&0x80 != 0 {
		return e.Code & 0xbf
	}
	return e.Code & 0xffff
}

func (e *CommandError) again() bool { return slices.Contains(putOff, e.base()) }

// Unwrap returns what the code means for this command, if that is known.
func (e *CommandError) Unwrap() error {
	switch owner := len(e.handles) > 0 && e.handles[0] == handleOwner; {
	case e.again():
		return ErrPutOff
	case e.base() == rcUnknown, e.command == ccDefine && e.base() == rcSize: // 2048 is the largest index of others
		return ErrNotNitro
	case e.base() == rcNVSpace:
		return ErrNVSpace
	case e.base() == rcLockout:
		return ErrLockout
	case e.base() == rcAuthFail, e.base() == rcBadAuth:
		if owner {
			return ErrOwner
		}
		return ErrPassword
	}
	return nil
}

// RefusedError is the hypervisor's refusal of a request.
type RefusedError struct {
	// Name is AWS's: InvalidArgument, InvalidOperation, BufferTooSmall, InputTooLarge, InternalError and others.
	Name string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the hypervisor refused the request: %.32q", e.Name)
}

// deviceError gives the errors of opening, reading and writing their meaning.
func deviceError(err error) error {
	for _, e := range []struct{ errno, meaning error }{
		{unix.ENOENT, ErrAbsent}, {unix.ENXIO, ErrAbsent}, {unix.ENODEV, ErrAbsent},
		{unix.EBUSY, ErrBusy}, {unix.EACCES, ErrDenied}, {unix.EPERM, ErrDenied},
	} {
		if errors.Is(err, e.errno) {
			return fmt.Errorf("%w: %w", err, e.meaning)
		}
	}
	return err
}

// kind pairs a cause with its code for programs and with what an operator does about it.
type kind struct {
	err          error
	code, advice string
}

var kinds = []kind{
	{ErrAbsent, "nitrotpm_absent",
		"register the AMI with --boot-mode uefi and --tpm-support v2.0, which no instance gets otherwise"},
	{ErrNotNitro, "nitrotpm_foreign", "this is no EC2 instance with a NitroTPM; set attestation.nitrotpm to off"},
	{ErrDenied, "nitrotpm_denied", "run the agent as root, with DeviceAllow= for /dev/tpmrm0 and /dev/tpm0 in its unit"},
	{ErrBusy, "nitrotpm_busy", "stop what keeps /dev/tpm0 open, or have it use /dev/tpmrm0: 'fuser -v /dev/tpm0' lists it"},
	{ErrInUse, "nitrotpm_in_use", "stop the other agent"},
	{ErrNVSpace, "nitrotpm_nv_space",
		"list the NV indices with 'tpm2_getcap handles-nv-index' and remove those that killed programs have left " +
			"with 'tpm2_nvundefine'; AWS's nitro-tpm-attest leaves one each time that it is killed"},
	{ErrOwner, "nitrotpm_owner",
		"remove the password with 'tpm2_changeauth -c owner -p PASSWORD'; without the owner there is no document"},
	{ErrLockout, "nitrotpm_lockout", "end it with 'tpm2_dictionarylockout --clear-lockout', or wait"},
	{ErrPutOff, "nitrotpm_put_off", "try again later"},
	{ErrPassword, "nitrotpm_password", fmt.Sprintf("find the program that uses the NV index %#x", index)},
	{ErrMalformed, "nitrotpm_malformed_answer", "report it, with the version of the kernel"},
	{ErrEcho, "nitrotpm_echo", "find the program that uses the TPM at the same time"},
	{ErrSlow, "nitrotpm_slow", "try again later; restart the instance if it lasts"},
	{context.DeadlineExceeded, "deadline", "allow more time"},
	{ErrQueueFull, "queue_full", "try again later"},
	{ErrStopped, "stopping", "try again once the agent has restarted"},
}

// Code returns a stable code for an error of this package.
func Code(err error) string {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.code
		}
	}
	if _, ok := errors.AsType[*RefusedError](err); ok {
		return "nitrotpm_refused"
	}
	if code := nitro.Code(err); code != "" {
		return code
	}
	return "nitrotpm_failed"
}

// Advice says what an operator does about an error of this package, or "".
func Advice(err error) string {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.advice
		}
	}
	switch nitro.Code(err) {
	case nitro.CodeExpired, nitro.CodeFromFuture, nitro.CodeTooOld:
		return "check the clock with 'timedatectl'"
	}
	return ""
}
