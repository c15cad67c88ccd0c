package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sevagent/internal/appraise"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/evidence"
	"sevagent/internal/nitro"
	"sevagent/verify"
)

// appraisal holds the flags that say how evidence is appraised.
type appraisal struct {
	policy, region   string
	allowCustomRoots bool
	crls             []string
}

// reportFlags name a bare report and the time to appraise it at.
type reportFlags struct {
	report, at string
	certs      []string
	cmd        *cobra.Command // for its standard input
}

func (r *reportFlags) add(cmd *cobra.Command, report string) {
	r.cmd = cmd
	f := cmd.Flags()
	f.StringVar(&r.report, "report", "", report)
	f.StringArrayVar(&r.certs, "cert", nil, "a `FILE` with the report's VLEK or VCEK certificate,\n"+
		"PEM, DER or a certificate table; or a directory\nwith vcek.pem or vlek.pem; repeatable")
	f.StringVar(&r.at, "at", "", "verify as of this `TIME`, RFC 3339 (default: now)")
}

// evidenceFlags are the flags of sevctl evidence verify.
type evidenceFlags struct {
	appraisal
	raw                 reportFlags
	nonce, peer         string
	bind, purpose       string
	maxAge              time.Duration
	anyNonce, anyRegion bool
	out                 *output
}

func evidenceCommand() *cobra.Command {
	var o evidenceFlags
	cmd := &cobra.Command{
		Use:   "verify FILE|DIR|-",
		Short: "Verify evidence offline",
		Long: `Verify evidence offline, against AMD's embedded roots and a policy. Evidence is
a document (FILE, or - for standard input), or all documents *.json of a
directory, one line each.

Verification needs the nonce that the evidence was asked for with, and the
region that it must come from. --any-nonce accepts a replay, as of
evidence.json beside published certificates, whose nonce the node chose;
--any-region accepts evidence of every region. A nonce that consists of
hexadecimal digits alone is read as hexadecimal, any other as base64url.

FILE may also be a certificate, PEM or DER, that carries evidence in its
extension id-pe-cmw. The evidence must bind the certificate's own key, and the
node chose its nonce: give --any-nonce.

FILE may also be a bare attestation document of a NitroTPM, an enclave or a
sandbox, as nitro-tpm-attest prints it; the kind is named. Its certificates live
three hours: with --nonce it must be valid now, with --any-nonce at its own
time, and --max-age bounds its age by AWS's clock. The same goes for the
document of a NitroTPM that evidence has beside the report. Its registers say
what the instance was booted from, not what runs in it.

With --report, a bare attestation report that another tool made is verified.
What REPORT_DATA means is that tool's: --nonce requires it to be the nonce
padded with zeros, and without --nonce and --region neither is checked.

A pass says that an AMD processor signed the report and that the report commits
to what the document claims. It does not say that the node is one of yours: a
compromised node may relay a nonce to any SNP guest of the region that its
attacker owns, in any account. --peer-cert ties evidence to the key that you
talk to. Revocation is checked only with --crl: AMD's list is a download, and
nothing here uses the network.

Exit status 0 if all evidence is acceptable, 1 if not, 2 for wrong usage.`,
		Example: `  sevctl evidence verify evidence.json --region us-east-2 \
    --nonce 00112233445566778899aabbccddeeff --peer-cert peer.pem
  sevctl evidence verify collected/ --any-nonce --max-age 24h --region us-east-2
  sevctl evidence verify peer.pem --any-nonce --region us-east-2
  sevctl evidence verify nitrotpm.cbor --any-nonce --any-region --max-age 1h
  sevctl evidence verify --report report.bin --cert vlek.pem`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	f := cmd.Flags()
	f.StringVar(&o.nonce, "nonce", "", "the `NONCE` that was asked for, hexadecimal or\nbase64url")
	f.BoolVar(&o.anyNonce, "any-nonce", false, "accept evidence for any nonce: it may be a replay")
	f.StringVar(&o.region, "region", "", "the EC2 `REGION` that the evidence must come from")
	f.BoolVar(&o.anyRegion, "any-region", false, "accept evidence of any region")
	f.StringVar(&o.peer, "peer-cert", "",
		"a `FILE` with the peer's certificate, PEM or DER: the\nevidence must bind its key")
	f.StringVar(&o.bind, "bind", "", "the `KIND` of certificate whose key the evidence must\n"+
		"bind: client or server")
	f.StringVar(&o.purpose, "purpose", "", "the `PURPOSE` that the evidence must have been made\n"+
		"for: client, mtls or boot")
	f.DurationVar(&o.maxAge, "max-age", 0, "refuse evidence older than this `DURATION`, such as\n"+
		"24h, by the node's clock, which is the node's word")
	f.StringVar(&o.policy, "policy", appraise.AWSShared, "aws-shared, aws-dedicated or a `FILE`\n")
	f.StringArrayVar(&o.crls, "crl", nil, "a `FILE` with AMD's revocation list, PEM or DER:\n"+
		"refuse what it lists or does not cover; repeatable")
	f.BoolVar(&o.allowCustomRoots, "allow-custom-roots", false,
		"accept a policy with its own roots, as simulators\nhave: such evidence proves nothing about hardware")
	o.raw.add(cmd, "a `FILE` with an attestation report of another tool,\n"+
		"- for standard input: raw, hexadecimal, base64,\nwith its certificate table, in an Azure HCL report")
	o.out = outputFlags(cmd, "text", "json")
	return cmd
}

func (o *evidenceFlags) run(cmd *cobra.Command, args []string) error {
	want, err := o.want(cmd, args)
	if err != nil {
		return err
	}
	verifier, err := o.verifier()
	if err != nil {
		return err
	}
	if len(args) == 1 {
		if info, err := os.Stat(args[0]); err == nil && info.IsDir() {
			return o.directory(cmd, args[0], verifier, want)
		}
	}

	var r *verify.Result
	if o.raw.report != "" {
		r, err = o.raw.verify(verifier, want.Now, want.Nonce)
	} else {
		r, err = verifyFile(cmd.InOrStdin(), args[0], verifier, want)
	}
	if err != nil {
		return err
	}
	print := func(w io.Writer) error { return text(w, r) }
	if o.out.format == "json" {
		print = func(w io.Writer) error { return encode(w, r) }
	}
	if err := o.out.write(cmd, print); err != nil {
		return err
	}
	if err := r.Verdict.Err(); err != nil {
		return fmt.Errorf("verify evidence: %w", err)
	}
	return nil
}

// want checks the flags, and returns what they require of evidence.
func (o *evidenceFlags) want(cmd *cobra.Command, args []string) (w verify.Want, err error) {
	bare := o.raw.report != ""
	if (len(args) == 1) == bare {
		return w, cli.Usagef(
			"give either a FILE or --report, as in 'sevctl evidence verify evidence.json --nonce HEX --region R'")
	}
	if len(args) == 1 && args[0] == "" {
		return w, cli.Usagef("FILE is empty; is a variable of the shell not set?")
	}
	if err := notEmpty(cmd); err != nil {
		return w, err
	}
	if err := o.out.check(); err != nil {
		return w, err
	}
	switch {
	case o.nonce != "" && o.anyNonce:
		return w, cli.Usagef("give either --nonce or --any-nonce")
	case o.region != "" && o.anyRegion:
		return w, cli.Usagef("give either --region or --any-region")
	case !bare && o.nonce == "" && !o.anyNonce:
		if err := foreign(args[0]); err != nil {
			return w, err
		}
		return w, cli.Usagef("--nonce is missing: give the nonce that was asked for, or --any-nonce to accept a replay")
	case bare && (o.peer != "" || o.bind != "" || o.purpose != "" || o.maxAge != 0):
		return w, cli.Usagef(
			"--peer-cert, --bind, --purpose and --max-age are for documents; a bare report has no such claims")
	case !bare && o.raw.certs != nil:
		return w, cli.Usagef("--cert needs --report; a document has its certificates")
	case cmd.Flags().Changed("max-age") && o.maxAge <= 0:
		return w, cli.Usagef("--max-age is %v, want a positive duration such as 24h", o.maxAge)
	}
	w = verify.Want{AnyNonce: o.nonce == "", Binding: o.bind, Purpose: verify.Purpose(o.purpose), MaxAge: o.maxAge}
	switch w.Binding {
	case "", verify.BindClient, verify.BindServer:
	default:
		return w, cli.Usagef("--bind is %q, want client or server", o.bind)
	}
	switch w.Purpose {
	case "", verify.PurposeClient, verify.PurposeMTLS, verify.PurposeBoot:
	default:
		return w, cli.Usagef("--purpose is %q, want client, mtls or boot", o.purpose)
	}
	if o.nonce != "" {
		least := evidence.MinNonce
		if bare {
			least = 1
		}
		if w.Nonce, err = parseNonce(o.nonce); err != nil {
			return w, err
		}
		if n := len(w.Nonce); n < least || n > evidence.MaxNonce {
			return w, cli.Usagef("--nonce has %d bytes, want %d to %d", n, least, evidence.MaxNonce)
		}
	}
	if o.peer != "" {
		if w.Key, err = peerKey(o.peer); err != nil {
			return w, err
		}
	}
	if w.Now, err = o.raw.time(); err != nil {
		return w, err
	}
	policy, err := o.load()
	if err != nil {
		return w, err
	}
	if !bare && policy.NeedsRegion() && o.region == "" && !o.anyRegion {
		return w, cli.Usagef("--region is missing: give the region that evidence must come from, or --any-region")
	}
	return w, nil
}

// notEmpty refuses a flag whose value is empty, as that of a shell variable that is not set.
func notEmpty(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			if v == "" {
				err = cli.Usagef("--%s is empty; is a variable of the shell not set?", f.Name)
			}
		}
	})
	return err
}

// load reads the policy of the flags.
func (a *appraisal) load() (appraise.Policy, error) {
	policy, err := config.LoadPolicy(a.policy)
	if err != nil {
		return policy, cli.Usage(err)
	}
	if policy.RootsPEM != nil && !a.allowCustomRoots {
		return policy, cli.Usagef(
			"policy %s has its own roots; give --allow-custom-roots to accept them, as for a simulator", a.policy)
	}
	return policy, nil
}

// verifier returns a verifier for the policy, the region and the revocation lists of the flags. Without a region, any
// is accepted.
func (a *appraisal) verifier() (*verify.Verifier, error) {
	policy, err := a.load()
	if err != nil {
		return nil, err
	}
	return a.verifierOf(policy)
}

// verifierOf is verifier for a policy that has been loaded.
func (a *appraisal) verifierOf(policy appraise.Policy) (*verify.Verifier, error) {
	if a.region != "" && !policy.NeedsRegion() {
		return nil, cli.Usagef("--region cannot be checked: policy %s does not compare the region of evidence", a.policy)
	}
	c := verify.Config{
		Policy: verify.PolicyOf(policy), Region: a.region, AnyRegion: a.region == "", AllowCustomRoots: a.allowCustomRoots,
	}
	for _, file := range a.crls {
		list, err := readInput(nil, file, maxRevocationList)
		if err != nil {
			return nil, err
		}
		c.RevocationLists = append(c.RevocationLists, list)
	}
	v, err := verify.New(c)
	if err != nil {
		return nil, cli.Usage(err)
	}
	return v, nil
}

// maxRevocationList bounds a revocation list in bytes.
const maxRevocationList = 4 << 20

// verifyFile verifies the document in a file, or in stdin if file is "-", the evidence that a certificate in it
// carries, or a bare document of a Nitro hypervisor.
func verifyFile(stdin io.Reader, file string, v *verify.Verifier, want verify.Want) (*verify.Result, error) {
	data, err := readInput(stdin, file, evidence.MaxDocument)
	if err != nil {
		return nil, err
	}
	if document := nitroDocument(data); document != nil {
		r, _ := v.NitroDocument(document, want)
		return r, nil
	}
	// A document begins with a brace, even if a certificate follows it.
	if cert := firstCert(data); cert != nil && !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		r, _ := v.Certificate(cert, want)
		return r, nil
	}
	r, err := v.Document(data, want)
	if rejection, ok := errors.AsType[*verify.Rejection](err); ok && rejection.Code == verify.CodeDocumentForeign {
		r.Verdict.Reason += whatElse(data)
	}
	return r, nil
}

// foreign reports that a file is not evidence of ours, which matters more than the missing nonce.
func foreign(file string) error {
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	v, err := verify.New(verify.Config{AnyRegion: true})
	if err != nil {
		return err
	}
	r, err := verifyFile(nil, file, v, verify.Want{AnyNonce: true})
	if err != nil {
		return err
	}
	switch r.Verdict.Code {
	case verify.CodeDocumentForeign, verify.CodeExtensionMissing:
		return fmt.Errorf("verify evidence: %w", r.Verdict.Err())
	}
	return nil
}

// whatElse says what to do with data that is not an evidence document.
func whatElse(data []byte) string {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return reportInJSON(bytes.TrimSpace(data))
	}
	if _, _, err := findReport(data); err == nil {
		return "; it is an attestation report: give it to --report, and its certificate to --cert"
	}
	return ""
}

// verify verifies a bare report, at the time now. The tool that made it may have put its nonce into REPORT_DATA as it
// stands; without a nonce, REPORT_DATA is not checked.
func (raw *reportFlags) verify(v *verify.Verifier, now time.Time, nonce []byte) (*verify.Result, error) {
	data, err := readInput(raw.cmd.InOrStdin(), raw.report, maxReportFile)
	if err != nil {
		return nil, err
	}
	report, table, err := findReport(data)
	if err != nil {
		return nil, fmt.Errorf("read the report: %s: %w", raw.report, err)
	}
	var certs [][]byte
	for _, path := range raw.certs {
		more, err := readCerts(path)
		if err != nil {
			return nil, err
		}
		certs = append(certs, more...)
	}
	// The certificates that were given by name come first.
	r, _ := v.Report(report, append(certs, table...),
		verify.WantReport{ReportData: nonce, AnyReportData: len(nonce) == 0, Now: now})
	return r, nil
}

// time is when to appraise.
func (raw *reportFlags) time() (time.Time, error) {
	if raw.at == "" {
		return time.Now(), nil
	}
	at, err := time.Parse(time.RFC3339, raw.at)
	if err != nil {
		return at, cli.Usagef("--at is not a time such as 2026-01-31T12:00:00Z: %w", err)
	}
	return at, nil
}

// readInput reads a file or, if that is "-" and stdin not nil, standard input. It refuses more than max bytes.
func readInput(stdin io.Reader, file string, max int64) ([]byte, error) {
	in := stdin
	if file != "-" || stdin == nil {
		f, err := os.Open(file)
		if err != nil {
			return nil, cli.Usagef("read evidence: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, max+1))
	if err != nil {
		return nil, cli.Usagef("read %s: %w", file, err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("read %s: more than %d bytes", file, max)
	}
	return data, nil
}

// text writes a result for people. It marks what nothing vouches for because the evidence is refused.
func text(w io.Writer, r *verify.Result) error {
	var b bytes.Buffer
	v := r.Verdict
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name, cli.Visible(fmt.Sprintf(format, args...)))
	}
	row("verdict", "%s%s", v.Status, because(v))
	row("policy", "%s", v.Policy)
	row("roots", "%s", v.Roots)
	if v.Roots == appraise.RootsCustom {
		row("", "these are not AMD's roots: this proves nothing about real hardware")
	}
	row("nonce", "%s", inWords(r.Nonce))
	row("region", "%s", inWords(r.Region))
	if r.Binding != nil {
		row("peer key", "%s", inWords(r.Key))
		if v.Err() != nil {
			row("", "nothing vouches for the following lines, because the evidence is refused")
		}
		row("purpose", "%s", r.Purpose)
		row("binding", "%s %s", r.Binding.Kind, r.Binding.SPKISHA256)
		row("caller", "%s", r.Caller)
		if r.Instance != nil {
			row("instance", "%s %s %s", r.Instance.ID, r.Instance.Region, r.Instance.AccountID)
		}
	}
	reportText(row, r)
	nitroText(row, r)
	for _, rule := range v.Rules {
		fmt.Fprintf(&b, "  %-4s  %s\n", rule.Status,
			cli.Visible(fmt.Sprintf("%s: %s (want %s)", rule.Rule, rule.Observed, rule.Required)))
	}
	_, err := b.WriteTo(w)
	return err
}

// reportText writes what a report says. Until it is genuine, its maker can have made that up.
func reportText(row func(name, format string, args ...any), r *verify.Result) {
	v := r.Verdict
	if v.Report == nil {
		return
	}
	verified := ""
	if !v.Genuine() {
		verified = " (not verified)"
	}
	row("report", "version %d, VMPL %d, TCB %s%s", r.Report.Version, r.Report.VMPL, r.Report.ReportedTCB, verified)
	row("measurement", "%s", r.Report.Measurement)
	row("report data", "%s", r.Report.ReportData)
	row("report ID", "%s", r.Report.ReportID)
	row("chip ID", "%s", r.Report.ChipID)
	signer := v.Signer
	if v.CSPID != "" {
		signer += " " + v.CSPID
	}
	if !v.NotAfter.IsZero() {
		signer += ", certificate valid until " + v.NotAfter.UTC().Format(time.RFC3339)
	}
	row("signed by", "%s%s", signer, verified)
}

// nitroText writes what a document of a Nitro hypervisor says, if it is genuine.
func nitroText(row func(name, format string, args ...any), r *verify.Result) {
	n := r.NitroTPM
	switch {
	case n == nil:
		return
	case n.Kind == "":
		row("nitrotpm", "not genuine")
		return
	case r.Binding == nil:
		row("nitrotpm", "the document of %v", nitro.Kind(n.Kind))
	default:
		row("nitrotpm", "%s", inWords(n.Check))
	}
	if zero := make([]byte, 48); n.Kind == verify.EnclaveDocument && bytes.Equal(n.PCRs[0], zero) {
		row("", "PCR0 is zero: an enclave in debug mode, of which nothing is measured")
	}
	row("module", "%s %s, signed by AWS at %s", n.ModuleID, n.Region, n.Timestamp.Format(time.RFC3339))
	for _, i := range []int{0, 1, 2, 4, 7, 8, 12} {
		value, ok := n.PCRs[i]
		if ok && (n.Kind != verify.NitroTPMDocument || nitro.Meaningless(uint32(i)) == "") {
			row(fmt.Sprintf("PCR%d", i), "%s", value)
		}
	}
	if n.Image != nil {
		row("booted from", "%s (PCR4, PCR7, PCR12)", n.Image)
	}
	for _, f := range []struct {
		name  string
		value *evidence.Hex
	}{{"user data", n.UserData}, {"its nonce", n.Nonce}, {"public key", n.PublicKey}} {
		if f.value != nil {
			row(f.name, "%s", *f.value)
		}
	}
}

// inWords spells the outcome of a comparison for people.
func inWords(c verify.Check) string { return strings.ReplaceAll(string(c), "_", " ") }

// because is why a verdict is not a pass, in parentheses.
func because(v *appraise.Verdict) string {
	if v.Code == "" {
		return ""
	}
	return fmt.Sprintf(" (%s: %s)", v.Code, v.Reason)
}
