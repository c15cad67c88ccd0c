package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/spf13/cobra"

	"sevagent/internal/appraise"
	"sevagent/internal/cli"
	"sevagent/internal/cluster"
	"sevagent/internal/evidence"
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

CLUSTER is a name or an ARN. PROFILE is a profile of the AWS configuration files
("" for the default); REGION overrides the profile's and the environment's.
Everything is found from the cluster, along its capacity providers and container
instances, by calls that only read: ecs:DescribeClusters, ecs:ListClusters,
ecs:DescribeCapacityProviders, ecs:ListContainerInstances,
ecs:DescribeContainerInstances, autoscaling:DescribeAutoScalingGroups,
ec2:DescribeInstances, ec2:DescribeInstanceTypes,
ec2:DescribeLaunchTemplateVersions, ec2:DescribeVolumes and ec2:DescribeImages.
If one of them is denied, the checks that need it are unknown, and the rest are
run.

All that is what AWS says of the nodes, and what the nodes said of themselves at
boot. With --attest, each node is asked for evidence with a fresh nonce, through
SSM Run Command: the document sevagent-evidence-CLUSTER of the cluster's stack
(ssm:SendCommand on it and on the nodes, ssm:ListCommands,
ssm:GetCommandInvocation).
The evidence is verified here, offline, as by 'sevctl evidence verify', for the
region of the cluster. It finds nodes that are not SEV-SNP guests, and keys that
are replayed; it cannot prove that a node is the one that was asked. A
compromised node may relay the nonce to any SNP guest of the region that its
attacker owns, in any account, and answer with that guest's evidence.

Exit status 0 if every check passed, warnings allowed; 1 if a check failed or is
unknown, or if there is no such cluster; 2 for wrong usage or configuration; 3
if AWS could not be reached, rejects the credentials, or has no such region.

Checks:

` + checkList(),
		Example: `  sevctl verify prod
  sevctl verify prod staging-account us-east-2 --format html -o report.html
  sevctl verify prod "" eu-west-1 --attest --format json`,
		Args: cobra.RangeArgs(1, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			args = append(args, "", "")
			o.cluster, o.profile, o.region = args[0], args[1], args[2]
			if err := o.check(cmd); err != nil {
				return err
			}
			return o.run(cmd)
		},
	}
	o.out = outputFlags(cmd, "table", "json", "html")
	f := cmd.Flags()
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
	clusterName = regexp.MustCompile(
		`^([A-Za-z0-9_-]{1,255}|arn:[a-z0-9-]+:ecs:[a-z0-9-]+:[0-9]{12}:cluster/[A-Za-z0-9_-]{1,255})$`)
	regionName = regexp.MustCompile(`^[a-z]{2,8}(-[a-z0-9]{1,16}){2,4}$`)
)

// check reports wrong usage, and takes the region from the cluster's ARN.
func (o *clusterOptions) check(cmd *cobra.Command) error {
	if err := o.out.check(); err != nil {
		return err
	}
	if !clusterName.MatchString(o.cluster) {
		return cli.Usagef("%q is not the name or the ARN of a cluster", o.cluster)
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
	if !o.attest && cmd.Flags().Changed("policy") {
		return cli.Usagef("--policy needs --attest")
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
		return cli.Unreachable(fmt.Errorf(
			"%w; check the region, the credentials (aws sts get-caller-identity) and the network", err))
	}
	r := newReport(snapshot)
	if o.attest && len(r.Checks) > 1 {
		if r.Attestation, err = collect(ctx, inspector, snapshot, verifier); err != nil {
			return err
		}
		r.Checks = append(r.Checks, cluster.CheckAttestation(snapshot, r.Attestation))
	}
	r.finish(inspector.Calls(), time.Since(began))
	clearProgress(stderr)

	err = o.out.write(cmd, func(w io.Writer) error {
		switch o.out.format {
		case "json":
			return encode(w, r)
		case "html":
			return r.html(w)
		default:
			return r.table(w, o.out.file == "" && coloured(cmd.OutOrStdout()))
		}
	})
	if err != nil {
		return err
	}
	return r.err()
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
	if err != nil {
		return nil, cli.Usagef("read the AWS configuration: %w", err)
	}
	if o.region = cfg.Region; o.region == "" {
		return nil, cli.Usagef("no region: give REGION, or set AWS_REGION or the profile's region")
	}
	cfg.Retryer = nil // cluster's own
	c := cluster.Config{AWS: cfg, Cluster: o.cluster, AllowCustomRoots: o.allowCustomRoots}
	if cli.IsTerminal(stderr) {
		c.Progress = func(api string, calls int) {
			fmt.Fprintf(stderr, "\r\033[K%s: %d calls, %s", o.cluster, calls, api)
		}
	}
	return cluster.New(c), nil
}

// attestVerifier returns the verifier of the nodes' evidence, which must come from the cluster's region if the policy
// compares regions.
func (o *clusterOptions) attestVerifier() (*verify.Verifier, error) {
	policy, err := o.load()
	if err != nil {
		return nil, err
	}
	a := o.appraisal
	if !policy.NeedsRegion() {
		a.region = ""
	}
	return a.verifier()
}

func clearProgress(stderr io.Writer) {
	if cli.IsTerminal(stderr) {
		fmt.Fprint(stderr, "\r\033[K")
	}
}

// collect asks all nodes for evidence and verifies each answer as sevctl evidence verify does.
func collect(ctx context.Context, inspector *cluster.Inspector, s *cluster.Snapshot, v *verify.Verifier) (
	[]cluster.Attestation, error) {
	answers := inspector.Collect(ctx, s.Running(), evidence.MaxDocument)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("ask the nodes of %s for evidence: %w", s.Name, context.Cause(ctx))
	}
	results := make([]cluster.Attestation, 0, len(answers))
	for _, answer := range answers {
		results = append(results, attestation(v, answer))
	}
	return results, nil
}

// attestation verifies one node's answer.
func attestation(verifier *verify.Verifier, answer cluster.Answer) cluster.Attestation {
	out := cluster.Attestation{ID: answer.ID, Status: cluster.Fail, Nonce: answer.Hex()}
	if answer.Err != nil {
		out.Reason = answer.Err.Error()
		if answer.Unasked {
			out.Status = cluster.Unknown // that says nothing of the node
		}
		return out
	}
	r, err := verifier.Document(answer.Document, verify.Want{Nonce: answer.Nonce, Purpose: verify.PurposeClient})
	if r.Verdict.Report == nil {
		out.Reason = "what it sent is not evidence: " + err.Error()
		return out
	}
	out.Measurement, out.TCB = r.Report.Measurement.String(), r.Report.ReportedTCB
	out.ReportID, out.Roots = r.Report.ReportID.String(), r.Verdict.Roots
	if v := r.Verdict; v.Code != "" || v.Reason != "" {
		out.Reason = fmt.Sprintf("%s: %s", cmp.Or(v.Code, "verdict"), v.Reason)
	}

	switch {
	case err != nil: // a verdict that is no verdict, such as unsupported_report_version, is not a pass either
	case r.Nonce != verify.Verified:
		out.Reason = "the nonce was not verified"
	case r.Instance != nil && r.Instance.ID != answer.ID:
		out.Reason = fmt.Sprintf("its evidence says that it is the instance %s", r.Instance.ID)
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
	return out
}

// askedByRoot reports whether root on the node asked, outside of any container, and for the nonce alone.
func askedByRoot(r *verify.Result) bool {
	return r.Purpose == evidence.PurposeClient && r.Binding.Kind == evidence.BindNone &&
		r.Caller.String() == evidence.HostCaller(0).String()
}

// coloured follows no-color.org.
func coloured(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && cli.IsTerminal(w)
}

// err is the reason for exit status 1: an unknown check is no more a pass than a failed one.
func (r *clusterReport) err() error {
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
		if len(ids) > 0 {
			parts = append(parts, fmt.Sprintf("%d %s (%s)", len(ids), outcome.word, strings.Join(ids, ", ")))
		}
	}
	if parts == nil {
		return nil
	}
	text := fmt.Sprintf("of %d checks, %s", len(r.Checks), strings.Join(parts, ", "))
	if len(r.Checks) == 1 {
		text = r.Checks[0].Detail + "; " + r.Checks[0].Advice
	}
	return errors.New("verify cluster " + r.Cluster + " in " + r.Region + ": " + text)
}
