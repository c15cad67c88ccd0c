// The verifier of the conformance kit in Go: README.md has the contract. It is not shipped: operators have sevctl.
package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"sevagent/internal/appraise"
	"sevagent/verify"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// Exit statuses of the contract.
const (
	accepted = 0
	usage    = 2
	refused  = 10
)

// run verifies one document, or the evidence that a certificate carries.
func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("verify", flag.ContinueOnError)
	flags.SetOutput(stderr)
	rootsFile := flags.String("roots", "", "trust anchors, PEM")
	region := flags.String("region", "", "the EC2 region that the evidence must come from")
	anyRegion := flags.Bool("any-region", false, "accept evidence of any region")
	var want verify.Want
	flags.Func("nonce", "the nonce that was sent, hexadecimal", func(s string) (err error) {
		want.Nonce, err = hex.DecodeString(s)
		return err
	})
	flags.Func("at", "the time to verify for, RFC 3339", func(s string) (err error) {
		want.Now, err = time.Parse(time.RFC3339, s)
		return err
	})
	if flags.Parse(args) != nil {
		return usage
	}
	if len(want.Nonce) == 0 || (*region == "") != *anyRegion || flags.NArg() != 1 {
		fmt.Fprintln(stderr,
			"usage: verify -roots ROOTS.pem -nonce HEX (-region REGION | -any-region) [-at TIME] DOCUMENT")
		return usage
	}
	roots, rootsErr := os.ReadFile(*rootsFile)
	document, err := os.ReadFile(flags.Arg(0))
	if err := errors.Join(rootsErr, err); err != nil {
		fmt.Fprintln(stderr, err)
		return usage
	}
	verifier, err := verify.New(verify.Config{Policy: policy(roots, *region), Region: *region, AllowCustomRoots: true})
	if err != nil {
		fmt.Fprintln(stderr, err)
		return usage
	}
	if bytes.HasPrefix(document, []byte{0x30}) { // a certificate is a SEQUENCE
		cert, parseErr := x509.ParseCertificate(document)
		if parseErr != nil {
			fmt.Fprintln(stdout, "refused malformed")
			fmt.Fprintf(stderr, "%q\n", parseErr)
			return refused
		}
		_, err = verifier.Certificate(cert, want)
	} else {
		_, err = verifier.Document(document, want)
	}
	if err == nil {
		fmt.Fprintln(stdout, "accepted")
		return accepted
	}
	rejection, ok := errors.AsType[*verify.Rejection](err)
	if !ok || codes[rejection.Code] == "" {
		fmt.Fprintf(stderr, "%q\n", err)
		return usage
	}
	fmt.Fprintln(stdout, "refused", codes[rejection.Code])
	fmt.Fprintf(stderr, "%q\n", err)
	return refused
}

// policy has the contract's roots and no rule but that of the region: the contract leaves the rest of a genuine report
// to a policy.
func policy(roots []byte, region string) verify.Policy {
	p := appraise.Policy{Name: "conformance", RootsPEM: roots}
	if region != "" {
		p.CSPID = appraise.Rule[string]{Mode: appraise.Enforce, Value: "node"}
	}
	return verify.PolicyOf(p)
}

// codes are the contract's, by those of package verify.
var codes = map[string]string{
	verify.CodeDocumentMalformed:    "malformed",
	verify.CodeDocumentContradicts:  "malformed",
	verify.CodeDocumentForeign:      "profile",
	verify.CodeDocumentOlder:        "profile",
	verify.CodeDocumentNewer:        "profile",
	verify.CodeNitroTPMMalformed:    "nitrotpm",
	verify.CodeNitroTPMKind:         "nitrotpm",
	verify.CodeNitroTPMChain:        "nitrotpm",
	verify.CodeNitroTPMSignature:    "nitrotpm",
	verify.CodeNitroTPMExpired:      "nitrotpm",
	verify.CodeNitroTPMFromFuture:   "nitrotpm",
	verify.CodeNitroTPMBinding:      "nitrotpm",
	verify.CodeNitroTPMRegion:       "nitrotpm",
	verify.CodeNitroTPMInstance:     "nitrotpm",
	verify.CodeNonceMismatch:        "nonce",
	verify.CodeExtensionMissing:     "malformed",
	verify.CodeBindingMismatch:      "binding",
	verify.CodeReportDataMismatch:   "report_data",
	verify.CodeReportMalformed:      "report",
	verify.CodeUnsupportedVersion:   "report",
	appraise.CodeUnsupportedProduct: "product",
	verify.CodeCertificateMissing:   "certificate",
	verify.CodeCertificateMalformed: "certificate",
	verify.CodeSignatureInvalid:     "signature",
	verify.CodeChainInvalid:         "chain",
	verify.CodeCertificateExpired:   "expired",
	verify.CodeCertificateNotYet:    "expired",
	verify.CodeCertificateMismatch:  "mismatch",
	verify.CodePolicyRejected:       "region", // the one rule of the policy
}
