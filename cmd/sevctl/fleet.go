package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/appraise"
	"sevagent/internal/cli"
	"sevagent/internal/cluster"
	"sevagent/internal/config"
	"sevagent/internal/evidence"
	"sevagent/internal/pattern"
	"sevagent/verify"
)

// fleetFlags are the flags of sevctl policy pin --from-fleet.
type fleetFlags struct {
	clusterOptions
	notAfter string
}

func (o *fleetFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.cluster, "from-fleet", "", "an ECS `CLUSTER`, name or ARN: pin what its\nnodes show")
	f.StringVar(&o.policy, "policy", appraise.AWSShared,
		"aws-shared, aws-dedicated or a `FILE`: what the\nnodes of --from-fleet must meet, and the pins join\n")
	f.StringVar(&o.notAfter, "not-after", "", "the last `DAY` on which what --from-fleet pins is\n"+
		"accepted, such as 2027-12-31 (default: no end)")
	f.BoolVar(&o.allowCustomRoots, "allow-custom-roots", false,
		"accept a --policy with roots of its own, as\nsimulators have: that proves nothing about hardware")
}

// check reports flags that do not go together.
func (o *fleetFlags) check(cmd *cobra.Command) error {
	if err := notEmpty(cmd); err != nil {
		return err
	}
	excluded, instead := []string{"report", "cert", "at", "nitrotpm", "profile"}, "cannot be given with --from-fleet"
	if o.cluster == "" {
		excluded, instead = []string{"policy", "not-after", "allow-custom-roots"}, "needs --from-fleet"
	}
	for _, name := range excluded {
		if !cmd.Flags().Changed(name) {
			continue
		}
		if name == "profile" {
			instead += "; give the policy's profile as --policy, and that of the AWS configuration in AWS_PROFILE"
		}
		return cli.Usagef("--%s %s", name, instead)
	}
	if _, err := time.Parse(time.DateOnly, o.notAfter); o.notAfter != "" && err != nil {
		return cli.Usagef("--not-after %s is not a day, such as 2027-12-31", o.notAfter)
	}
	return nil
}

// pin asks the nodes of the cluster and writes a policy that pins what those show whose evidence passes.
func (o *fleetFlags) pin(cmd *cobra.Command, file string) error {
	ctx, stderr := cmd.Context(), cmd.ErrOrStderr()
	if err := o.place(); err != nil {
		return err
	}
	base, policy, err := o.base()
	if err != nil {
		return err
	}
	inspector, err := o.inspector(ctx, stderr)
	if err != nil {
		return err
	}
	verifier, err := o.regionVerifier(policy)
	if err != nil {
		return err
	}
	snapshot, err := inspector.Inspect(ctx)
	if err != nil {
		clearProgress(stderr)
		if ctx.Err() != nil {
			return err
		}
		return cli.Unreachable(unreached(err))
	}
	if r := newReport(snapshot); len(r.Checks) == 1 { // there is no such cluster, or no more
		clearProgress(stderr)
		return r.err(true)
	}
	nodes, results, err := collect(ctx, inspector, snapshot, verifier)
	clearProgress(stderr)
	if err != nil {
		return err
	}

	check := cluster.CheckAttestation(snapshot, nodes)
	pins := newPins(snapshot)
	for i := range nodes {
		pins.add(&nodes[i], results[i])
	}
	for _, refused := range pins.refused {
		cli.Fprintf(stderr, "refused: %s\n", refused)
	}
	if len(pins.measurements.names) == 0 {
		return fmt.Errorf("pin from the fleet %s in %s: no node passed, so nothing was pinned; "+
			"see 'sevctl verify %[1]s --attest'", o.cluster, o.region)
	}
	text := pins.text(base, o, time.Now())
	at := file
	if at == "" || at == "-" {
		at = o.policy // whose folder the name of its roots starts from
	}
	if _, err := config.ParsePolicy(at, text, os.ReadFile); err != nil {
		return fmt.Errorf("pin from the fleet %s: the policy would not load where it is to be written: %w", o.cluster, err)
	}
	if err := cli.WriteOutput(ctx, file, cmd.OutOrStdout(), text); err != nil {
		return err
	}
	switch n := len(pins.refused); {
	case n > 0:
		return fmt.Errorf("pin from the fleet %s in %s: %d of %d nodes were refused; the policy has what the others show",
			o.cluster, o.region, n, len(nodes))
	case check.Status == cluster.Unknown:
		return fmt.Errorf("pin from the fleet %s in %s: %s; the policy has what the nodes that were found show",
			o.cluster, o.region, check.Detail)
	}
	return nil
}

// base returns the policy that the nodes must meet, and its text, which the pins join.
func (o *fleetFlags) base() (text []byte, policy appraise.Policy, err error) {
	if policy, err = o.load(); err != nil {
		return nil, policy, err
	}
	builtin, err := appraise.Builtin(policy.Profile)
	if err != nil {
		return nil, policy, err
	}
	for name, set := range map[string]bool{
		"chip_ids":    policy.ChipIDs.Mode != "" || len(policy.ChipIDs.Value) > 0,
		"measurement": policy.Measurement.Mode != "" || len(policy.Measurement.Value) > 0,
		"nitrotpm": policy.NitroTPM.Mode != builtin.NitroTPM.Mode || len(policy.NitroTPM.InstanceIDs) > 0 ||
			len(policy.NitroTPM.PCRs) > 0,
	} {
		if set {
			return nil, policy, cli.Usagef("--policy %s has %s already, and --from-fleet writes that; give one without",
				o.policy, name)
		}
	}
	text = fmt.Appendf(nil, "profile: %s\n", policy.Profile)
	if policy.Name != policy.Profile {
		if text, err = os.ReadFile(o.policy); err != nil {
			return nil, policy, cli.Usagef("read the policy: %w", err)
		}
		text = append(bytes.TrimRight(text, "\n"), '\n')
	}
	policy.Pinned.Mode = "" // the pins are made here
	return text, policy, nil
}

// pins are what nodes contribute to a policy.
type pins struct {
	images       map[string]string // AMIs by node
	chips        groups
	measurements groups
	boots        groups
	second       map[string]*verify.NitroTPM // by image: one of the documents with these registers
	without      []string                    // nodes without a NitroTPM
	refused      []string                    // nodes that contribute nothing, and why
}

// groups has the nodes of each value, in the order in which values were first seen.
type groups struct {
	values []string
	names  map[string][]string
}

func (g *groups) add(value, node string) {
	if g.names == nil {
		g.names = make(map[string][]string)
	}
	if g.names[value] == nil {
		g.values = append(g.values, value)
	}
	g.names[value] = append(g.names[value], node)
}

func newPins(s *cluster.Snapshot) *pins {
	p := &pins{images: make(map[string]string), second: make(map[string]*verify.NitroTPM)}
	for _, n := range s.Nodes {
		if n.Instance != nil && imageID.MatchString(n.Instance.ImageID) {
			p.images[n.ID] = n.Instance.ImageID
		}
	}
	return p
}

var (
	imageID = pattern.New(`^ami-[0-9a-f]{8,17}$`)
	nodeID  = pattern.New(`^m?i-[0-9a-f]{8,17}$`)
)

// add adds what a node shows, or why it is refused.
func (p *pins) add(node *cluster.Attestation, r *verify.Result) {
	refuse := func(reason string) { p.refused = append(p.refused, node.ID+": "+reason) }
	second := (*verify.NitroTPM)(nil)
	if r != nil {
		second = r.NitroTPM
	}
	switch {
	case !node.Accepted() || r == nil:
		refuse(node.Reason)
		return
	case !nodeID.MatchString(node.ID):
		refuse("that is not the ID of an instance")
		return
	case second != nil && second.Image == nil:
		refuse("the document of its NitroTPM lacks PCR4, PCR7 or PCR12")
		return
	case second != nil && zero(second.PCRs[4]):
		refuse("its PCR4 is zero: nothing has measured what it was booted from")
		return
	case second != nil && !zero(second.PCRs[12]):
		refuse("its PCR12 is not zero: it was booted with a command line or credentials from outside its image " +
			"(GHSA-xrv8-2pf5-f3q7)")
		return
	}
	if !zero(r.Report.ChipID) {
		p.chips.add(r.Report.ChipID.String(), node.ID)
	}
	p.measurements.add(r.Report.Measurement.String(), node.ID)
	if second == nil {
		p.without = append(p.without, node.ID)
		return
	}
	image := second.Image.String()
	p.boots.add(image, node.ID)
	p.second[image] = second
}

// zero reports whether all bytes are zero.
func zero(b evidence.Hex) bool { return !slices.ContainsFunc(b, func(b byte) bool { return b != 0 }) }

// text returns the policy.
func (p *pins) text(base []byte, o *fleetFlags, now time.Time) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# What nodes of the cluster %s in %s showed on %s, each for a fresh nonce: trust on first use.\n",
		o.cluster, o.region, now.UTC().Format(time.DateOnly))
	for _, refused := range p.refused {
		id, _, _ := strings.Cut(refused, ":")
		if nodeID.MatchString(id) {
			fmt.Fprintf(&b, "# %s was refused.\n", id)
		}
	}
	b.Write(base)
	notAfter := func(indent string) {
		if o.notAfter != "" {
			fmt.Fprintf(&b, "%snot_after: \"%s\"\n", indent, o.notAfter)
		}
	}
	if len(p.chips.values) > 0 {
		fmt.Fprint(&b, "chip_ids: # CHIP_ID\n  mode: enforce\n  value:\n")
		for _, value := range p.chips.values {
			nodes(&b, p.chips.names[value])
			fmt.Fprintf(&b, "  - \"%s\"\n", value)
		}
	}
	fmt.Fprint(&b, "measurement: # firmware and number of vCPUs\n  mode: enforce\n  value:\n")
	for _, value := range p.measurements.values {
		nodes(&b, p.measurements.names[value])
		fmt.Fprintf(&b, "  - value: \"%s\"\n", value)
		notAfter("    ")
	}
	if len(p.boots.values) == 0 {
		fmt.Fprintln(&b, "# No node has a NitroTPM: nothing says what they were booted from.")
		return b.Bytes()
	}
	fmt.Fprint(&b, "nitrotpm: # what they were booted from, not what runs there\n")
	if len(p.without) == 0 {
		fmt.Fprint(&b, "  mode: require\n")
	} else {
		nodes(&b, p.without)
		fmt.Fprint(&b, "  # have no NitroTPM. Under accept, any node can leave its document out: "+
			"require it once all have one.\n  mode: accept\n")
	}
	fmt.Fprint(&b, "  pcrs:\n")
	for _, image := range p.boots.values {
		list := p.boots.names[image]
		nodes(&b, list)
		fmt.Fprintf(&b, "  - name: \"%s\"\n", p.amis(list))
		notAfter("    ")
		fmt.Fprint(&b, "    values:\n")
		writeRegisters(&b, p.second[image])
	}
	return b.Bytes()
}

// amis names the AMIs of nodes, as EC2 says.
func (p *pins) amis(list []string) string {
	var amis []string
	for _, node := range list {
		if ami := p.images[node]; ami != "" && !slices.Contains(amis, ami) {
			amis = append(amis, ami)
		}
	}
	if amis == nil {
		return "of an AMI that EC2 did not name"
	}
	return strings.Join(amis, ", ")
}

// nodes writes a comment with the IDs of nodes, four on a line.
func nodes(w io.Writer, list []string) {
	for line := range slices.Chunk(list, 4) {
		fmt.Fprintf(w, "  # %s\n", strings.Join(line, ", "))
	}
}
