package attest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sevagent/internal/appraise"
)

// What can go wrong with the device. Each says what it means; Advice says what to do.
var (
	ErrNoDevice           = errors.New("the SNP guest device is missing")
	ErrNotSNPGuest        = errors.New("this machine is not an SEV-SNP guest")
	ErrInUse              = errors.New("another process holds the SNP guest device")
	ErrVMPCKDisabled      = errors.New("the kernel has destroyed its key to the secure processor (VMPCK)")
	ErrThrottled          = errors.New("the host throttles attestation requests")
	ErrNitroTPM           = errors.New("the NitroTPM gives no document, and attestation.nitrotpm requires one")
	ErrVCEKPending        = errors.New("the certificate of the VCEK that signed the report is not here yet")
	ErrReportDataMismatch = errors.New("the report does not carry the REPORT_DATA that was asked for")
	ErrQueueFull          = errors.New("too many requests are waiting")
	ErrDeadline           = errors.New("the caller's deadline cannot be met")
	ErrStopped            = errors.New("the agent is stopping")
	ErrOff                = errors.New("attestation is switched off")
	ErrNotReady           = errors.New("the node has not proved itself yet")
	errDevice             = errors.New("the SNP guest device failed")
)

// statusInvalidParam is what the firmware answers to a request for a VMPL below the sender's: AMD 56860,
// "MSG_REPORT_REQ".
const statusInvalidParam = 0x16

// FirmwareError is a status that the SEV firmware answered a request with.
type FirmwareError struct {
	// Status is the firmware's status code: AMD 56860, "Status Codes". Zero: the kernel did not return it.
	Status uint32
	// Cause is what the kernel answered.
	Cause error
}

func (e *FirmwareError) Error() string {
	if e.Status == 0 {
		return fmt.Sprintf("the SEV firmware refused the request: %v", e.Cause)
	}
	name := map[uint32]string{
		0x01: "INVALID_PLATFORM_STATE", statusInvalidParam: "INVALID_PARAM", 0x1D: "AEAD_OFLOW", 0x27: "INVALID_KEY",
	}[e.Status]
	if name == "" {
		name = "unnamed"
	}
	return fmt.Sprintf("the SEV firmware refused the request with status %#x (%s)", e.Status, name)
}

func (e *FirmwareError) Unwrap() error { return e.Cause }

// kind pairs a cause with the code of the local API and with what an operator does about it.
type kind struct {
	err          error
	code, advice string
}

var kinds = []kind{
	{ErrNotSNPGuest, "not_snp_guest",
		"launch the instance with CpuOptions AmdSevSnp=enabled on an m6a, c6a or r6a type and a UEFI AMI"},
	{ErrNoDevice, "device_missing", "load the driver with 'modprobe sev-guest' and check attestation.device"},
	{ErrInUse, "device_in_use", "stop the other program; only sevagent may use the device"},
	{ErrVMPCKDisabled, "vmpck_disabled",
		"stop and start the instance; or stop the agent, reload the driver with " +
			"'modprobe -r sev-guest; modprobe sev-guest vmpck_id=1' and start the agent: " +
			"its reports then have VMPL 1, " +
			"which the built-in policies warn of"},
	{ErrThrottled, "throttled", "wait and try again; lower attestation.rate if it lasts"},
	{ErrNitroTPM, "nitrotpm_failed", "see attestation:nitrotpm in 'sevagent status' for why; " +
		"launch from an AMI that was registered with TpmSupport v2.0, or set attestation.nitrotpm to auto"},
	{ErrVCEKPending, "vcek_pending", "the VCEK is being fetched from AMD's KDS; " +
		"allow outbound HTTPS to it or put the certificate into the cache directory"},
	{ErrReportDataMismatch, "report_data_mismatch",
		"update the kernel: 6.13 and 6.14 let concurrent requests overwrite " +
			"each other; make sure that nothing else uses the device"},
	{ErrQueueFull, "queue_full", "try again later"},
	{ErrDeadline, "deadline", "allow more time"},
	{context.DeadlineExceeded, "deadline", "allow more time"},
	{ErrStopped, "stopping", "try again once the agent has restarted"},
	{ErrNotReady, "not_ready", "wait until /readyz says that the boot gate is passed, or see there why it is not"},
	{ErrOff, "attestation_off", "set attestation.mode to enforce or warn"},
	{errDevice, "attestation_failed",
		"see 'journalctl -k' for the driver's messages; stop and start the instance if it lasts"},
}

// otherHost is the advice where the host is at fault.
const otherHost = "stop and start the instance, so that it moves to another host"

// rejections has what an operator does about a verdict, by its code.
var rejections = map[string]string{
	appraise.CodeReportMalformed: otherHost + "; report it to AWS if it comes back",
	appraise.CodeCertificateMissing: otherHost + "; for reports that a VCEK signs, attestation.kds says where its " +
		"certificate comes from",
	appraise.CodeCertificateMalformed: otherHost + "; report it to AWS if it comes back",
	appraise.CodeCertificateMismatch:  otherHost + "; report it to AWS if it comes back",
	appraise.CodeCertificateExpired:   "check the clock with 'timedatectl'; if it is right, " + otherHost,
	appraise.CodeCertificateNotYet:    "wait until the clock is synchronized, or check it with 'timedatectl'",
	appraise.CodeSignatureInvalid: "the report was changed on its way: " + otherHost +
		", and trust nothing that this one has run if it comes back",
	appraise.CodeChainInvalid: "the report does not lead to the policy's roots: see what attestation.policy names; " +
		"if it has AMD's roots, " + otherHost,
	appraise.CodePolicyRejected: "compare the report with the policy that attestation.policy names: " +
		"'sevctl policy explain' shows its rules",
	appraise.CodeUnsupportedVersion: "update sevagent: this version does not know the report's version",
	appraise.CodeUnsupportedProduct: "update sevagent, or the policy, to one that knows the processor",
	appraise.CodeReportDataMismatch: "update the kernel: 6.13 and 6.14 let concurrent requests overwrite " +
		"each other; make sure that nothing else uses the device",
	appraise.CodeVerificationPanicking: "update sevagent; if it comes back, report it with the archive of " +
		"'sudo sevagent bundle'",
}

// VerdictAdvice says what an operator does about a verdict of this code, or "".
func VerdictAdvice(code string) string { return rejections[code] }

// Code returns the stable code of the local API for an error of this package.
func Code(err error) string {
	if r, ok := errors.AsType[*appraise.Rejection](err); ok {
		return r.Code
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.code
		}
	}
	if _, ok := errors.AsType[*FirmwareError](err); ok {
		return "firmware_error"
	}
	return "attestation_failed"
}

// Advice says what an operator does about an error of this package, or "".
func Advice(err error) string {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.advice
		}
	}
	if f, ok := errors.AsType[*FirmwareError](err); ok {
		if f.Status == statusInvalidParam {
			return "the agent asked for a VMPL below the one that the guest may speak for: " +
				"if the driver was loaded with " +
				"vmpck_id, restart the agent, which reads it; under an SVSM set attestation.transport to configfs"
		}
		return otherHost + "; report the status to AWS if it comes back"
	}
	if r, ok := errors.AsType[*appraise.Rejection](err); ok {
		return VerdictAdvice(r.Code)
	}
	return ""
}

// Permanent reports whether asking again cannot help until someone acts. A certificate that is not valid yet becomes
// so: at boot the clock may be behind, until it is synchronized.
func Permanent(err error) bool {
	switch Code(err) {
	case "not_ready", "throttled", "vcek_pending", "queue_full", "deadline", "stopping",
		"nitrotpm_failed", "firmware_error", "attestation_failed", "report_data_mismatch", appraise.CodeCertificateNotYet:
		return false
	}
	return true
}

// RetryAfter is how long a caller should wait before it asks again; zero where waiting does not help.
func RetryAfter(err error) time.Duration {
	switch Code(err) {
	case "throttled", "vcek_pending", "nitrotpm_failed", appraise.CodeCertificateNotYet:
		return 10 * time.Second
	case "not_ready", "queue_full", "deadline", "stopping", "report_data_mismatch":
		return time.Second
	}
	return 0
}
