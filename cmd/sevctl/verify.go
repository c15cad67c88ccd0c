package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/spf13/cobra"

	"sevagent/internal/appraise"
	"sevagent/internal/cli"
	"sevagent/internal/cluster"
	"sevagent/internal/evidence"
	"sevagent/internal/pattern"
	"sevagent/verify"
)

// clusterOptions are the arguments and flags of sevctl verify.
type clusterOptions struct {
	cluster, profile string
	appraisal        // its region is the cluster's
	attest           bool
	out              *output
}

func clusterCommand() *cobra.Command {
	var o clusterOptions
	cmd := &cobra.Command{
		Use:   "verify CLUSTER [PROFILE] [REGION]",
		Short: "Verify that an ECS cluster is confidential",
		Long: `Verify that an ECS cluster, its Auto Scaling groups, launch templates and nodes
are those of a confidential cluster.

CLUSTER is a name or an ARN. --profile, or PROFILE, is a profile of the AWS
configuration files ("" for the default); --region, or REGION, overrides the
profile's and the environment's region.
Everything is found from the cluster, along its capacity providers and container
instances, by calls that only read: ecs:DescribeClusters, ecs:ListClusters,
ecs:DescribeCapacityProviders, ecs:ListContainerInstances,
ecs:DescribeContainerInstances, autoscaling:DescribeAutoScalingGroups,
ec2:DescribeInstances, ec2:DescribeInstanceTypes,
ec2:DescribeLaunchTemplateVersions, ec2:DescribeVolumes and ec2:DescribeImages.
If one of them is denied, the checks that need it are unknown, and the rest are
run. cloudformation:DescribeStacks, ec2:DescribeRegions and
sts:GetCallerIdentity only make advice more precise, if they are allowed.

What failed comes first. The table is as wide as the terminal, or COLUMNS.

All that is what AWS says of the nodes, and what the nodes said of themselves at
boot. With --attest, each node is asked for evidence with a fresh nonce, through
SSM Run Command: the document sevagent-evidence-CLUSTER of the cluster's stack
(ssm:SendCommand on it and on the nodes, ssm:ListCommands,
ssm:GetCommandInvocation).
The evidence is verified here, offline, as by 'sevctl evidence verify', for the
region of the cluster. It finds nodes that are not SEV-SNP guests, and keys that
are replayed; it cannot prove that a node is the one that was asked. A
compromised node may relay the nonce to any SNP guest of the region that its
attacker owns, in any account, and answer with that guest's evidence. Where
nodes have a NitroTPM, AWS signs which instance has answered.

Exit status 0 if every check passed, warnings allowed; 1 if a check failed or is
unknown, or if there is no such cluster; 2 for wrong usage or configuration; 3
if AWS could not be reached, rejects the credentials, or has no such region.

Checks:

` + checkList(),
		Example: `  sevctl verify prod
  sevctl verify prod --profile staging --region us-east-2 --format html \
    -o report.html
  sevctl verify prod --region eu-west-1 --attest --format json`,
		Args: cobra.RangeArgs(1, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.positional(cmd, append(args, "", "")); err != nil {
				return err
			}
			if err := o.check(cmd); err != nil {
				return err
			}
			return o.run(cmd)
		},
	}
	o.out = outputFlags(cmd, "table", "json", "html")
	f := cmd.Flags()
	f.StringVar(&o.profile, "profile", "", "a `PROFILE` of the AWS configuration files")
	f.StringVar(&o.region, "region", "", "the cluster's `REGION`")
	f.BoolVar(&o.attest, "attest", false, "ask every node for evidence, and verify it here")
	f.StringVar(&o.policy, "policy", appraise.AWSShared,
		"aws-shared, aws-dedicated or a `FILE`, for --attest\n")
	f.BoolVar(&o.allowCustomRoots, "allow-custom-roots", false,
		"accept a policy with its own roots, and nodes\n"+
			"attested under such, as simulators have: that\nproves nothing about hardware")
	return cmd
}

// checkList describes the checks for the help text.
func checkList() string {
	var b strings.Builder
	for _, c := range cluster.All() {
		fmt.Fprintf(&b, "  %-19s  %s\n", c.ID, c.Title)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

var (
	clusterName = pattern.New(
		`^([A-Za-z0-9_-]{1,255}|arn:[a-z0-9-]+:ecs:[a-z0-9-]+:[0-9]{12}:cluster/[A-Za-z0-9_-]{1,255})$`)
	regionName = pattern.New(`^[a-z]{2,8}(-[a-z0-9]{1,16}){2,4}$`)
)

// positional takes CLUSTER, and PROFILE and REGION unless flags have them.
func (o *clusterOptions) positional(cmd *cobra.Command, args []string) error {
	o.cluster = args[0]
	if err := notEmpty(cmd); err != nil {
		return err
	}
	for i, value := range []*string{&o.profile, &o.region} {
		name, given := []string{"profile", "region"}[i], args[i+1]
		switch {
		case given == "" || given == *value:
		case *value != "":
			return cli.Usagef("there are two values for the %s, %s and %s: give one of them with --%[1]s",
				name, given, *value)
		default:
			*value = given
		}
	}
	return nil
}

// check reports wrong usage, and takes the region from the cluster's ARN.
func (o *clusterOptions) check(cmd *cobra.Command) error {
	if err := o.out.check(); err != nil {
		return err
	}
	if err := o.place(); err != nil {
		return err
	}
	if !o.attest && cmd.Flags().Changed("policy") {
		return cli.Usagef("--policy needs --attest")
	}
	return nil
}

// place checks the cluster and the region, which the cluster's ARN may say.
func (o *clusterOptions) place() error {
	if !clusterName.MatchString(o.cluster) {
		return cli.Usagef("%q is not the name or the ARN of a cluster, such as prod", o.cluster)
	}
	if arn := strings.Split(o.cluster, ":"); len(arn) > 3 {
		if o.region != "" && o.region != arn[3] {
			return cli.Usagef("%s is not in %s", o.cluster, o.region)
		}
		o.region = arn[3]
	}
	if o.region != "" && !regionName.MatchString(o.region) {
		return cli.Usagef("%q is not a region; regions have names such as us-east-2", o.region)
	}
	return nil
}

func (o *clusterOptions) run(cmd *cobra.Command) error {
	ctx, stderr := cmd.Context(), cmd.ErrOrStderr()
	inspector, err := o.inspector(ctx, stderr)
	if err != nil {
		return err
	}
	var verifier *verify.Verifier
	if o.attest {
		if verifier, err = o.attestVerifier(); err != nil {
			return err
		}
	}

	began := time.Now()
	snapshot, err := inspector.Inspect(ctx)
	if err != nil {
		clearProgress(stderr)
		if ctx.Err() != nil {
			return err
		}
		return cli.Unreachable(unreached(err))
	}
	r := newReport(snapshot)
	if o.attest && len(r.Checks) > 1 {
		if r.Attestation, _, err = collect(ctx, inspector, snapshot, verifier); err != nil {
			return err
		}
		r.Checks = append(r.Checks, cluster.CheckAttestation(snapshot, r.Attestation))
	}
	r.finish(inspector.Calls(), time.Since(began))
	clearProgress(stderr)

	if onScreen := o.out.format == "table" && o.out.file == ""; onScreen && len(r.Checks) == 1 {
		return r.err(true) // all there is to say
	} else if err := o.write(cmd, r); err != nil {
		return err
	} else {
		return r.err(!onScreen || !cli.IsTerminal(cmd.OutOrStdout()))
	}
}

// write writes the report in the form that was asked for.
func (o *clusterOptions) write(cmd *cobra.Command, r *clusterReport) error {
	return o.out.write(cmd, func(w io.Writer) error {
		switch o.out.format {
		case "json":
			return encode(w, r)
		case "html":
			return r.html(w)
		}
		if o.out.file != "" && o.out.file != "-" {
			return r.table(w, 0, false)
		}
		return r.table(w, cli.Width(cmd.OutOrStdout()), cli.Colours(cmd.OutOrStdout()))
	})
}

// unreached adds to an error of the first call what to do.
func unreached(err error) error {
	bad, ok := errors.AsType[*cluster.RegionError](err)
	switch {
	case !ok:
		return fmt.Errorf("%w; check the region, the credentials (aws sts get-caller-identity) and the network", err)
	case bad.Disabled:
		return fmt.Errorf("%w; enable it: 'aws account enable-region --region-name %s'", err, bad.Region)
	case bad.Near != "":
		return fmt.Errorf("%w; did you mean %s? Give it with --region", err, bad.Near)
	}
	return fmt.Errorf("%w; give the cluster's with --region, such as us-east-2", err)
}

// inspector reads the AWS configuration, which may decide the region, and prepares to ask.
func (o *clusterOptions) inspector(ctx context.Context, stderr io.Writer) (*cluster.Inspector, error) {
	var options []func(*awsconfig.LoadOptions) error
	if o.profile != "" {
		options = append(options, awsconfig.WithSharedConfigProfile(o.profile))
	}
	if o.region != "" {
		options = append(options, awsconfig.WithRegion(o.region))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if _, ok := errors.AsType[awsconfig.SharedConfigProfileNotExistError](err); ok {
		if regionName.MatchString(o.profile) {
			return nil, cli.Usagef("there is no profile %s; %[1]s looks like a region: use --region %[1]s", o.profile)
		}
		return nil, cli.Usagef("there is no profile %s in the AWS configuration; 'aws configure list-profiles' lists them",
			o.profile)
	}
	if err != nil {
		return nil, cli.Usagef("read the AWS configuration: %w", err)
	}
	if o.region = cfg.Region; o.region == "" {
		return nil, cli.Usagef(
			"no region: give --region, as in 'sevctl verify %s --region us-east-2', or set AWS_REGION or the profile's region",
			o.cluster)
	}
	cfg.Retryer = nil // cluster's own
	c := cluster.Config{AWS: cfg, Cluster: o.cluster, AllowCustomRoots: o.allowCustomRoots}
	if cli.IsTerminal(stderr) {
		c.Progress = func(api string, calls int) {
			name := o.cluster[max(0, len(o.cluster)-24):] // of an ARN, the end; one line
			fmt.Fprintf(stderr, "\r\033[K%s: %d calls, %s", name, calls, api)
		}
	}
	return cluster.New(c), nil
}

// attestVerifier returns the verifier of the nodes' evidence.
func (o *clusterOptions) attestVerifier() (*verify.Verifier, error) {
	policy, err := o.load()
	if err != nil {
		return nil, err
	}
	return o.regionVerifier(policy)
}

// regionVerifier returns a verifier of evidence that must come from the cluster's region, if the policy compares
// regions.
func (o *clusterOptions) regionVerifier(policy appraise.Policy) (*verify.Verifier, error) {
	a := o.appraisal
	if !policy.NeedsRegion() {
		a.region = ""
	}
	return a.verifierOf(policy)
}

func clearProgress(stderr io.Writer) {
	if cli.IsTerminal(stderr) {
		fmt.Fprint(stderr, "\r\033[K")
	}
}

// collect asks all nodes for evidence and verifies each answer as sevctl evidence verify does. The second result has
// what was verified, nil where there was nothing to verify.
func collect(ctx context.Context, inspector *cluster.Inspector, s *cluster.Snapshot, v *verify.Verifier) (
	[]cluster.Attestation, []*verify.Result, error) {
	answers := inspector.Collect(ctx, s.Running(), evidence.MaxDocument)
	if ctx.Err() != nil {
		return nil, nil, fmt.Errorf("ask the nodes of %s for evidence: %w", s.Name, context.Cause(ctx))
	}
	attestations, results := make([]cluster.Attestation, len(answers)), make([]*verify.Result, len(answers))
	for i, answer := range answers {
		attestations[i], results[i] = attestation(v, answer)
	}
	return attestations, results, nil
}

// attestation verifies one node's answer.
func attestation(verifier *verify.Verifier, answer cluster.Answer) (cluster.Attestation, *verify.Result) {
	out := cluster.Attestation{ID: answer.ID, Status: cluster.Fail, Nonce: answer.Hex()}
	if answer.Err != nil {
		out.Reason = answer.Err.Error()
		if answer.Unasked {
			out.Status = cluster.Unknown // that says nothing of the node
		}
		return out, nil
	}
	r, err := verifier.Document(answer.Document, verify.Want{Nonce: answer.Nonce, Purpose: verify.PurposeClient})
	if r.Verdict.Report == nil {
		out.Reason = "what it sent is not evidence: " + err.Error()
		return out, nil
	}
	out.Measurement, out.TCB = r.Report.Measurement.String(), r.Report.ReportedTCB
	out.ReportID, out.Roots = r.Report.ReportID.String(), r.Verdict.Roots
	if n := r.NitroTPM; n != nil && n.Check == verify.Verified && n.InstanceID == answer.ID {
		out.Signed, out.Image = true, n.Image.String()
	}
	if v := r.Verdict; v.Code != "" || v.Reason != "" {
		out.Reason = fmt.Sprintf("%s: %s", cmp.Or(v.Code, "verdict"), v.Reason)
	}

	switch {
	case err != nil: // a verdict that is no verdict, such as unsupported_report_version, is not a pass either
	case r.Nonce != verify.Verified:
		out.Reason = "the nonce was not verified"
	case r.Instance != nil && r.Instance.ID != answer.ID:
		out.Reason = fmt.Sprintf("its evidence says that it is the instance %s", r.Instance.ID)
	case r.NitroTPM != nil && r.NitroTPM.InstanceID != answer.ID:
		out.Reason = fmt.Sprintf("AWS has signed that the instance %s has answered", r.NitroTPM.InstanceID)
	case !askedByRoot(r):
		// A container elsewhere, with the socket of a genuine node, could answer for a node that is not genuine.
		out.Reason = fmt.Sprintf(
			"its evidence was requested by %s, and not by the node's root through Run Command", r.Caller)
	case r.Verdict.Status == appraise.Warned:
		out.Status = cluster.Warn
	case r.Verdict.Roots == appraise.RootsCustom:
		out.Status = cluster.Warn
		out.Reason = "verified with roots that are not AMD's: this proves nothing about real hardware"
	default:
		out.Status = cluster.Pass
	}
	return out, r
}

// askedByRoot reports whether root on the node asked, outside of any container, and for the nonce alone.
func askedByRoot(r *verify.Result) bool {
	return r.Purpose == evidence.PurposeClient && r.Binding.Kind == evidence.BindNone &&
		r.Caller.String() == evidence.HostCaller(0).String()
}

// err is the reason for exit status 1: an unknown check is no more a pass than a failed one. It names the checks,
// unless the table with them stands above it.
func (r *clusterReport) err(named bool) error {
	var parts []string
	for _, outcome := range []struct {
		status cluster.Status
		word   string
	}{{cluster.Fail, "failed"}, {cluster.Unknown, "unknown"}} {
		var ids []string
		for _, c := range r.Checks {
			if c.Status == outcome.status {
				ids = append(ids, c.ID)
			}
		}
		if len(ids) == 0 {
			continue
		}
		text := fmt.Sprintf("%d %s", len(ids), outcome.word)
		if named {
			text += " (" + strings.Join(ids, ", ") + ")"
		}
		parts = append(parts, text)
	}
	switch {
	case parts == nil:
		return nil
	case len(r.Checks) == 1: // there is no such cluster, or no more
		text, advice := r.Checks[0].Detail, r.Checks[0].Advice
		if r.ARN != "" {
			text = fmt.Sprintf("cluster %s in %s is %s", r.Cluster, r.Region, text)
		}
		return fmt.Errorf("%s; %s", text, strings.ToLower(advice[:1])+strings.TrimSuffix(advice[1:], "."))
	}
	return fmt.Errorf("verify cluster %s in %s: of %d checks, %s", r.Cluster, r.Region, len(r.Checks),
		strings.Join(parts, ", "))
}
