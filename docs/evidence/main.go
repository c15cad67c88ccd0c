// The verifier of the conformance kit in Go: README.md has the contract. It is not shipped: operators have sevctl.
package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/evidence"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// Exit statuses of the contract.
const (
	accepted = 0
	usage    = 2
	refused  = 10
)

// run verifies one document.
func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("verify", flag.ContinueOnError)
	flags.SetOutput(stderr)
	rootsFile := flags.String("roots", "", "trust anchors, PEM")
	nonceText := flags.String("nonce", "", "the nonce that was sent, hexadecimal")
	region := flags.String("region", "", "the EC2 region that the evidence must come from")
	anyRegion := flags.Bool("any-region", false, "accept evidence of any region")
	at := time.Now()
	flags.Func("at", "the time to verify for, RFC 3339", func(s string) (err error) {
		at, err = time.Parse(time.RFC3339, s)
		return err
	})
	if flags.Parse(args) != nil {
		return usage
	}
	nonce, err := hex.DecodeString(*nonceText)
	if err != nil || len(nonce) < evidence.MinNonce || (*region == "") != *anyRegion || flags.NArg() != 1 {
		fmt.Fprintln(stderr, "usage: verify -roots ROOTS.pem -nonce HEX (-region REGION | -any-region) [-at TIME] DOCUMENT")
		return usage
	}
	roots, err := os.ReadFile(*rootsFile)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return usage
	}
	document, err := os.ReadFile(flags.Arg(0))
	if err != nil {
		fmt.Fprintln(stderr, err)
		return usage
	}
	policy := appraise.Policy{Name: "conformance", RootsPEM: roots}
	if *region != "" {
		policy.CSPID = appraise.Rule[string]{Mode: appraise.Enforce, Value: "node"}
	}
	verifier, err := appraise.New(appraise.Config{Policy: policy, Region: *region})
	if err != nil {
		fmt.Fprintln(stderr, err)
		return usage
	}
	code, reason := verify(verifier, document, nonce, at)
	if code == "" {
		fmt.Fprintln(stdout, "accepted")
		return accepted
	}
	fmt.Fprintln(stdout, "refused", code)
	fmt.Fprintf(stderr, "%q\n", reason)
	return refused
}

// verify returns the code and the reason of a refusal.
func verify(v *appraise.Verifier, document, nonce []byte, at time.Time) (code string, reason error) {
	d, err := evidence.Parse(document)
	switch {
	case errors.Is(err, evidence.ErrOlder), errors.Is(err, evidence.ErrProfile):
		return "profile", err
	case errors.Is(err, evidence.ErrNitroTPM):
		return "nitrotpm", err
	case errors.Is(err, evidence.ErrReportData):
		return "report_data", err
	case err != nil:
		return "malformed", err
	case !bytes.Equal(d.Nonce, nonce):
		return "nonce", errors.New("eat_nonce is another nonce")
	}
	certs, err := d.Certs()
	if err != nil {
		return "malformed", err
	}
	// The first is the signing key's. Appraise would look for it among all, as in a host's certificate table.
	verdict := v.Appraise(at, d.Report, certs[:min(len(certs), 1)])
	if verdict.Err() == nil {
		return "", nil
	}
	return codes[verdict.Code], verdict.Err()
}

// codes are the contract's, by those of a verdict.
var codes = map[string]string{
	appraise.CodeReportMalformed:      "report",
	appraise.CodeUnsupportedVersion:   "report",
	appraise.CodeUnsupportedProduct:   "product",
	appraise.CodeCertificateMissing:   "certificate",
	appraise.CodeCertificateMalformed: "certificate",
	appraise.CodeSignatureInvalid:     "signature",
	appraise.CodeChainInvalid:         "chain",
	appraise.CodeCertificateExpired:   "expired",
	appraise.CodeCertificateNotYet:    "expired",
	appraise.CodeCertificateMismatch:  "mismatch",
	appraise.CodePolicyRejected:       "region", // the one rule of the policy above
}
