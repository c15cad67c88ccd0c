package main

import (
	"bytes"
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
	"golang.org/x/sys/unix"

	"sevagent/internal/appraise"
	"sevagent/internal/atomicfile"
	"sevagent/internal/cli"
	"sevagent/internal/cluster"
	"sevagent/internal/evidence"
)

// clusterOptions are the flags of sevctl verify.
type clusterOptions struct {
	output, file string
	attest       bool
	evidence     verifyOptions // policy and allowCustomRoots; the rest is set for each node
}

func clusterCommand() *cobra.Command {
	var o clusterOptions
	cmd := &cobra.Command{
		Use:   "verify CLUSTER [PROFILE] [REGION]",
		Short: "Verify that an ECS cluster is confidential",
		Long: `Verify that an ECS cluster, its Auto Scaling groups, launch templates and nodes are as a confidential cluster is to be.

CLUSTER is a name or an ARN. PROFILE is one of the AWS configuration files' ("" for the default); REGION overrides the
profile's and the environment's. Everything is found from the cluster, along its capacity providers and container
instances. What is asked is only read: ecs:DescribeClusters, ecs:ListClusters, ecs:DescribeCapacityProviders,
ecs:ListContainerInstances, ecs:DescribeContainerInstances, autoscaling:DescribeAutoScalingGroups, ec2:DescribeInstances,
ec2:DescribeInstanceTypes, ec2:DescribeLaunchTemplateVersions, ec2:DescribeVolumes and ec2:DescribeImages. If one of them
is denied, the checks that need it are unknown and the rest go on.

All that is what AWS says of the nodes, and what the nodes said of themselves at boot. With --attest, each node is asked
for evidence with a fresh nonce, through SSM Run Command (ssm:SendCommand, ssm:ListCommands, ssm:GetCommandInvocation),
and the evidence is verified here, offline, as by 'sevctl evidence verify', for the region of the cluster.

Exit status 0 if every check passed, warnings allowed; 1 if one failed or is unknown, since what could not be asked is not
as it should be until shown, or if there is no such cluster; 2 for wrong usage or configuration; 3 if AWS could not be reached, knows not
who asks, or has no such region.`,
		Example: `  sevctl verify prod
  sevctl verify prod staging-account us-east-2 --output html -o report.html
  sevctl verify prod "" eu-west-1 --attest --output json`,
		Args: cobra.RangeArgs(1, 3),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, append(args, "", "")) },
	}
	f := cmd.Flags()
	f.StringVar(&o.output, "output", "table", "table, json or html")
	f.StringVarP(&o.file, "file", "o", "", "write to a file instead of standard output")
	f.BoolVar(&o.attest, "attest", false, "ask every node for evidence, and verify it here")
	f.StringVar(&o.evidence.policy, "policy", appraise.AWSShared, "with --attest: a built-in policy (aws-shared, aws-dedicated) or a policy file")
	f.BoolVar(&o.evidence.allowCustomRoots, "allow-custom-roots", false, "accept a policy with roots of its own, and nodes attested under such, as simulators have: that proves nothing about hardware")
	return cmd
}

var (
	clusterName = regexp.MustCompile(`^([A-Za-z0-9_-]{1,255}|arn:[a-z0-9-]+:ecs:[a-z0-9-]+:[0-9]{12}:cluster/[A-Za-z0-9_-]{1,255})$`)
	regionName  = regexp.MustCompile(`^[a-z]{2,8}(-[a-z0-9]{1,16}){2,4}$`)
)

func (o *clusterOptions) run(cmd *cobra.Command, args []string) error {
	name, profile, region := args[0], args[1], args[2]
	var write func(*verifyReport, io.Writer) error
	switch o.output {
	case "table":
		colour := o.file == "" && coloured(cmd.OutOrStdout())
		write = func(r *verifyReport, w io.Writer) error { return r.table(w, colour) }
	case "json":
		write = (*verifyReport).json
	case "html":
		write = (*verifyReport).html
	default:
		return cli.Usagef("--output is %q, want table, json or html", o.output)
	}
	if !clusterName.MatchString(name) {
		return cli.Usagef("%q is not the name or the ARN of a cluster", name)
	}
	if arn := strings.Split(name, ":"); len(arn) > 3 {
		if region != "" && region != arn[3] {
			return cli.Usagef("%s is not in %s", name, region)
		}
		region = arn[3]
	}
	if region != "" && !regionName.MatchString(region) {
		return cli.Usagef("%q is not a region; regions are named as us-east-2 is", region)
	}
	if !o.attest && cmd.Flags().Changed("policy") {
		return cli.Usagef("--policy goes with --attest")
	}
	ctx := cmd.Context()
	inspector, region, err := o.inspector(ctx, name, profile, region, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	o.evidence.region = region
	if o.attest {
		if _, err := o.evidence.verifier(); err != nil { // a mistake in the policy, before AWS is asked
			return err
		}
	}
	began := time.Now()
	snapshot, err := inspector.Inspect(ctx)
	if err != nil {
		clearProgress(cmd.ErrOrStderr())
		if ctx.Err() != nil {
			return err
		}
		return cli.Unreachable(fmt.Errorf("%w; check the region, the credentials (aws sts get-caller-identity) and the network", err))
	}
	r := newVerifyReport(snapshot)
	if o.attest && len(r.Checks) > 1 {
		r.Attestation, err = o.collect(ctx, inspector, snapshot)
		if err != nil {
			return err
		}
		r.Checks = append(r.Checks, cluster.CheckAttestation(snapshot, r.Attestation))
	}
	r.finish(inspector.Calls(), time.Since(began))
	clearProgress(cmd.ErrOrStderr())

	var b bytes.Buffer
	if err := write(r, &b); err != nil {
		return err
	}
	if o.file != "" {
		err = atomicfile.Write(o.file, b.Bytes(), 0o644)
	} else {
		_, err = b.WriteTo(cmd.OutOrStdout())
	}
	if err != nil {
		return err
	}
	return r.err()
}

// inspector finds out who asks and where, and prepares to ask.
func (o *clusterOptions) inspector(ctx context.Context, name, profile, region string, stderr io.Writer) (*cluster.Inspector, string, error) {
	var options []func(*awsconfig.LoadOptions) error
	if profile != "" {
		options = append(options, awsconfig.WithSharedConfigProfile(profile))
	}
	if region != "" {
		options = append(options, awsconfig.WithRegion(region))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, "", cli.Usagef("read the AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		return nil, "", cli.Usagef("no region: give REGION, or set AWS_REGION or the profile's region")
	}
	cfg.Retryer = nil // cluster's own
	c := cluster.Config{AWS: cfg, Cluster: name, AllowCustomRoots: o.evidence.allowCustomRoots}
	if isTerminal(stderr) {
		c.Progress = func(api string, calls int) { fmt.Fprintf(stderr, "\r\033[K%s: %d calls, %s", name, calls, api) }
	}
	return cluster.New(c), cfg.Region, nil
}

func clearProgress(stderr io.Writer) {
	if isTerminal(stderr) {
		fmt.Fprint(stderr, "\r\033[K")
	}
}

// collect asks all nodes for evidence and verifies each answer as sevctl evidence verify does.
func (o *clusterOptions) collect(ctx context.Context, inspector *cluster.Inspector, s *cluster.Snapshot) ([]cluster.Attestation, error) {
	verifier, err := o.evidence.verifier()
	if err != nil {
		return nil, err
	}
	answers := inspector.Collect(ctx, s.Running(), evidence.MaxDocument)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("ask the nodes of %s for evidence: %w", s.Name, context.Cause(ctx))
	}
	results := make([]cluster.Attestation, 0, len(answers))
	for _, answer := range answers {
		results = append(results, o.judge(verifier, answer))
	}
	return results, nil
}

func (o *clusterOptions) judge(verifier *appraise.Verifier, answer cluster.Answer) cluster.Attestation {
	out := cluster.Attestation{ID: answer.ID, Status: cluster.Fail, Nonce: answer.Hex()}
	if answer.Err != nil {
		out.Reason = answer.Err.Error()
		if answer.Unasked {
			out.Status = cluster.Unknown // that says nothing of the node
		}
		return out
	}
	one := o.evidence
	one.nonce = out.Nonce
	r, err := one.verifyDocument(bytes.NewReader(answer.Document), verifier, time.Now(), "-")
	if err != nil {
		out.Reason = "what it sent is not evidence: " + strings.TrimPrefix(err.Error(), "-: ")
		return out
	}
	out.Measurement, out.TCB, out.ReportID = r.Report.Measurement.String(), r.Report.ReportedTCB, r.Report.ReportID.String()
	out.Roots = string(r.Verdict.Roots)
	// A verdict that is no verdict, such as unsupported_report_version, is not a pass.
	switch v := r.Verdict; v.Status {
	case appraise.Pass:
		out.Status = cluster.Pass
	case appraise.Warned:
		out.Status = cluster.Warn
	}
	if r.Nonce != "verified" && out.Status != cluster.Fail {
		out.Status, out.Reason = cluster.Fail, "the nonce was not verified"
	}
	if out.Status != cluster.Fail && !askedByRoot(r) {
		// A container somewhere else, with the socket of a genuine node, could answer for a node that is none.
		out.Status = cluster.Fail
		out.Reason = fmt.Sprintf("its evidence was asked for by uid %d, container %q, and not by the node's root through Run Command", r.Caller.UID, r.Caller.ContainerID)
		return out
	}
	if v := r.Verdict; v.Code != "" || v.Reason != "" {
		out.Reason = fmt.Sprintf("%s: %s", cmp.Or(v.Code, "verdict"), v.Reason)
	}
	if out.Status == cluster.Pass && r.Verdict.Roots == appraise.RootsCustom {
		out.Status, out.Reason = cluster.Warn, "verified with roots that are not AMD's: nothing here speaks of real hardware"
	}
	return out
}

// askedByRoot: did root on the node ask, outside any container, and for nothing but the nonce?
func askedByRoot(r *result) bool {
	return r.Purpose == evidence.PurposeClient && r.Binding.Kind == evidence.BindNone &&
		r.Caller.UID == 0 && r.Caller.ContainerID == "" && r.Caller.TaskARN == ""
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// coloured follows no-color.org.
func coloured(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

// err is what makes the exit status: an unknown check is no more a pass than a failed one.
func (r *verifyReport) err() error {
	var parts []string
	for _, status := range []cluster.Status{cluster.Fail, cluster.Unknown} {
		var ids []string
		for _, c := range r.Checks {
			if c.Status == status {
				ids = append(ids, c.ID)
			}
		}
		if len(ids) > 0 {
			word := "failed"
			if status == cluster.Unknown {
				word = "unknown"
			}
			parts = append(parts, fmt.Sprintf("%d %s (%s)", len(ids), word, strings.Join(ids, ", ")))
		}
	}
	if parts == nil {
		return nil
	}
	text := fmt.Sprintf("verify cluster %s in %s: of %d checks, %s", r.Cluster, r.Region, len(r.Checks), strings.Join(parts, ", "))
	if len(r.Checks) == 1 {
		text = fmt.Sprintf("verify cluster %s in %s: %s; %s", r.Cluster, r.Region, r.Checks[0].Detail, r.Checks[0].Advice)
	}
	return errors.New(text)
}
