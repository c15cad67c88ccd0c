package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Status is the outcome of a check. Unknown is not a pass: what was needed could not be asked.
type Status string

const (
	Pass    Status = "pass"
	Warn    Status = "warn"
	Unknown Status = "unknown"
	Fail    Status = "fail"
)

// rank orders outcomes: the worst one of a check's findings is the check's.
var rank = map[Status]int{Pass: 0, Warn: 1, Unknown: 2, Fail: 3}

// Check is one property of a cluster, judged.
type Check struct {
	ID     string `json:"id"`
	Title  string `json:"title"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	// Advice says what to do. It is empty for a check that passed.
	Advice string `json:"advice,omitempty"`
	// Resources are those that did not pass, worst first.
	Resources []Resource `json:"resources,omitempty"`

	// unseen is the call that failed, and for which not all nodes may be known; empty: they are.
	unseen, unseenError string
}

// Resource is one thing that a check has something to say about.
type Resource struct {
	ID     string `json:"id"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
}

// Evaluate runs all checks. Of a cluster that is not there, or was deleted, only that is said.
func Evaluate(s *Snapshot) []Check {
	if s.Failures[apiClusters] == nil && (s.Cluster == nil || s.Cluster.Status == "INACTIVE") {
		return []Check{checkCluster(s)}
	}
	var checks []Check
	for _, check := range []func(*Snapshot) Check{
		checkCluster, checkInsights, checkProviders, checkRunning, checkTypes, checkSNP, checkBootMode, checkAgents, checkGroups, checkTemplates,
		checkRegion, checkImages, checkVersions, checkIMDS, checkVolumes, checkProtection, checkMembership, checkAttested, checkEqual,
	} {
		checks = append(checks, check(s))
	}
	return checks
}

// Worst is the worst of several outcomes.
func Worst(checks []Check) Status {
	worst := Pass
	for _, c := range checks {
		if rank[c.Status] > rank[worst] {
			worst = c.Status
		}
	}
	return worst
}

// newCheck starts a check that needs the answers to some calls. ok is false if one of them failed.
func (s *Snapshot) newCheck(id, title string, needs ...string) (c Check, ok bool) {
	c = Check{ID: id, Title: title, Status: Pass}
	for _, api := range needs {
		err := s.Failures[api]
		if err == nil {
			continue
		}
		c.Status, c.Detail = Unknown, fmt.Sprintf("%s: %s", api, brief(err))
		c.Advice = fmt.Sprintf("Run again; if %s goes on failing, see the AWS Health Dashboard and the account's request limits.", api)
		if denied(err) {
			c.Advice = fmt.Sprintf("Allow %s to the identity that sevctl runs as; see 'aws sts get-caller-identity'.", api)
		}
		return c, false
	}
	return c, true
}

// withGroups is newCheck for what is said of groups and templates.
func (s *Snapshot) withGroups(id, title string, needs ...string) (Check, bool) {
	c, ok := s.newCheck(id, title, slices.Concat([]string{apiClusters, apiProviders, apiGroups}, needs)...)
	if ok && !slices.ContainsFunc(s.Groups, func(g Group) bool { return !g.Missing }) {
		c.Status, c.Detail = Unknown, "no capacity provider of the cluster leads to an Auto Scaling group"
		c.Advice = "See the checks capacity-providers and auto-scaling-group."
		return c, false
	}
	return c, ok
}

// withNodes is newCheck for what is said of machines that run.
func (s *Snapshot) withNodes(id, title string, needs ...string) (Check, bool) {
	c, ok := s.newCheck(id, title, slices.Concat(s.listing(), []string{apiInstances}, needs)...)
	for _, api := range []string{apiContainers, apiContainer} {
		if err := s.Failures[api]; err != nil {
			c.unseen, c.unseenError = api, brief(err)
		}
	}
	return c, ok
}

// listing is what it takes to know the nodes. Either side will do, so that one denied call does not hide what the
// other side shows; that the sides agree is the check membership.
func (s *Snapshot) listing() []string {
	if s.Failures[apiContainers] == nil && s.Failures[apiContainer] == nil {
		return nil
	}
	for _, n := range s.Nodes {
		if n.Member != nil {
			return nil
		}
	}
	return []string{apiContainers, apiContainer}
}

func (c *Check) add(status Status, id, format string, args ...any) {
	c.Resources = append(c.Resources, Resource{ID: id, Status: status, Detail: fmt.Sprintf(format, args...)})
}

// finish derives the outcome from what was found. good is the detail if nothing was, of the number of things looked at.
func (c Check) finish(of int, things, good, advice string) Check {
	slices.SortStableFunc(c.Resources, func(a, b Resource) int {
		return cmp.Or(cmp.Compare(rank[b.Status], rank[a.Status]), strings.Compare(a.ID, b.ID))
	})
	if len(c.Resources) == 0 {
		if c.Detail = good; of == 0 {
			c.Detail = "there are no " + things
		}
		if c.unseen != "" {
			c.Status = Unknown
			c.Detail += "; there may be nodes that were not seen: " + c.unseen + ": " + c.unseenError
			c.Advice = "Allow " + c.unseen + " to whoever runs this, or run it again."
		}
		return c
	}
	first := c.Resources[0]
	c.Status, c.Advice = first.Status, advice
	c.Detail = first.ID + ": " + first.Detail
	if n := len(c.Resources); n > 1 {
		c.Detail = fmt.Sprintf("%d of %d %s, such as %s", n, max(n, of), things, c.Detail)
	}
	return c
}

func checkCluster(s *Snapshot) Check {
	c, ok := s.newCheck("cluster-active", "The ECS cluster exists and is active", apiClusters)
	if !ok {
		return c
	}
	if s.Cluster == nil {
		c.Status, c.Detail = Fail, fmt.Sprintf("there is no cluster %s in %s", s.Name, s.Region)
		c.Advice = fmt.Sprintf("Check the name, the account and the region: this account has no clusters in %s.", s.Region)
		if n := len(s.Nearby); n > 0 {
			c.Advice = fmt.Sprintf("Give one of this account's clusters in %s, or another region: %s", s.Region, strings.Join(s.Nearby[:min(n, 5)], ", "))
			if n > 5 {
				c.Advice += fmt.Sprintf(" and %d more", n-5)
			}
			c.Advice += "."
		}
		return c
	}
	c.Detail = s.Cluster.Status
	if s.Cluster.Status != "ACTIVE" {
		c.Status = Fail
		c.Advice = "Wait if it is being created; an INACTIVE cluster was deleted: deploy the stack again."
	}
	return c
}

func checkInsights(s *Snapshot) Check {
	c, ok := s.newCheck("container-insights", "Container Insights is on", apiClusters)
	if !ok {
		return c
	}
	c.Detail = cmp.Or(s.Cluster.Insights, "not set")
	if s.Cluster.Insights != "enabled" && s.Cluster.Insights != "enhanced" {
		c.Status = Warn
		c.Advice = "Set the stack's parameter ContainerInsightsEnabled to true, to have metrics of nodes and tasks."
	}
	return c
}

func checkProviders(s *Snapshot) Check {
	c, ok := s.newCheck("capacity-providers", "The cluster has a capacity provider of EC2 instances", apiClusters, apiProviders)
	if !ok {
		return c
	}
	var good []string
	for _, name := range s.Cluster.Providers {
		i := slices.IndexFunc(s.Providers, func(p Provider) bool { return p.Name == name })
		switch {
		case slices.Contains(s.Cluster.fargate(), name):
			c.add(Warn, name, "tasks that ask for it run outside the SEV-SNP nodes")
		case i < 0:
			c.add(Fail, name, "the cluster names it, and it does not exist")
		case s.Providers[i].Status != "ACTIVE":
			c.add(Fail, name, "it is %s", cmp.Or(s.Providers[i].Status, "in no status"))
		case s.Providers[i].GroupARN == "":
			c.add(Warn, name, "it is not backed by an Auto Scaling group, so its machines are not checked")
		default:
			good = append(good, name)
		}
	}
	if len(s.Cluster.Providers) == 0 || len(good) == 0 && len(c.Resources) == len(s.Cluster.fargate()) {
		c.add(Fail, s.Cluster.Name, "it has no capacity provider with an Auto Scaling group")
	}
	return c.finish(max(1, len(s.Cluster.Providers)), "capacity providers", strings.Join(good, ", "),
		"Associate the stack's capacity provider with the cluster, and no other: 'aws ecs put-cluster-capacity-providers', or deploy the stack again.")
}

func checkRunning(s *Snapshot) Check {
	c, ok := s.newCheck("nodes-running", "EC2 instances run and have joined the cluster", apiContainers, apiContainer, apiInstances)
	if !ok {
		return c
	}
	joined := 0
	for _, n := range s.Nodes {
		switch {
		case n.Container == nil:
			continue
		case n.Instance == nil:
			c.add(Fail, n.ID, "it is in the cluster, but EC2 has no such instance in %s", s.Region)
		case n.Instance.State != "running":
			c.add(Fail, n.ID, "it is in the cluster, but %s", cmp.Or(n.Instance.State, "in no known state"))
		}
		joined++
	}
	switch desired := s.desired(); {
	case joined > 0:
	case desired == 0 && len(s.Groups) > 0:
		c.add(Warn, "cluster", "it has no nodes and wants none: what is said of nodes is said of nothing")
	default:
		c.add(Fail, "cluster", "no instance has joined it; its groups want %d", desired)
	}
	return c.finish(max(1, joined), "nodes", fmt.Sprintf("%d joined, all running", joined),
		"On the node, see 'journalctl -u sevagent -u ecs' and /var/log/ecs/ecs-init.log: the boot gate, the instance profile's permissions, outbound HTTPS, and ECS_CLUSTER in /etc/ecs/ecs.config. Deregister container instances whose machine is gone.")
}

func checkTypes(s *Snapshot) Check {
	c, ok := s.withNodes("instance-types", "Instance types support AMD SEV-SNP", apiTypes)
	if !ok {
		return c
	}
	if len(s.Supported) == 0 {
		c.Status, c.Detail, c.Advice = Unknown, "the region offers no type that does", "See the check region."
		return c
	}
	types := make(map[string]int)
	of := 0
	for _, n := range s.Nodes {
		if n.up() {
			of++
			types[n.Instance.Type]++
			if !slices.Contains(s.Supported, n.Instance.Type) {
				c.add(Fail, n.ID, "%s has no SEV-SNP in %s", n.Instance.Type, s.Region)
			}
		}
	}
	for _, g := range s.Groups {
		for _, name := range g.launches() {
			if of++; !slices.Contains(s.Supported, name) {
				c.add(Fail, g.Name, "it launches %s, which has no SEV-SNP in %s", name, s.Region)
			}
		}
	}
	var good []string
	for _, t := range slices.Sorted(maps.Keys(types)) {
		good = append(good, fmt.Sprintf("%d × %s", types[t], t))
	}
	return c.finish(of, "nodes and groups", cmp.Or(strings.Join(good, ", "), "no nodes; what the groups launch does"),
		"Set InstanceType to an m6a, c6a or r6a type that the region offers: 'aws ec2 describe-instance-types --filters Name=processor-info.supported-features,Values=amd-sev-snp'.")
}

func checkSNP(s *Snapshot) Check {
	return s.eachNode("snp-enabled", "AMD SEV-SNP is on on every instance", func(n *Node) (string, bool) {
		return "AmdSevSnp is " + cmp.Or(n.Instance.SNP, "not set"), n.Instance.SNP == "enabled"
	}, "enabled on %d", "It is decided at launch: see the check launch-template, then replace the node: 'aws ec2 terminate-instances', after draining it.")
}

func checkBootMode(s *Snapshot) Check {
	return s.eachNode("boot-mode", "Instances have booted in UEFI mode", func(n *Node) (string, bool) {
		return "it booted in " + cmp.Or(n.Instance.BootMode, "legacy-bios, the default"), uefi(n.Instance.BootMode)
	}, "uefi on %d", "Give an AMI whose boot mode is uefi or uefi-preferred as AmiId, and replace the node: SEV-SNP needs UEFI.")
}

func uefi(mode string) bool { return mode == "uefi" || mode == "uefi-preferred" }

// eachNode judges every machine that runs by one property.
func (s *Snapshot) eachNode(id, title string, judge func(*Node) (string, bool), good, advice string) Check {
	c, ok := s.withNodes(id, title)
	if !ok {
		return c
	}
	of := 0
	for _, n := range s.Nodes {
		if !n.up() {
			continue
		}
		of++
		if detail, ok := judge(&n); !ok {
			c.add(Fail, n.ID, "%s", detail)
		}
	}
	return c.finish(of, "nodes", fmt.Sprintf(good, of), advice)
}

func checkAgents(s *Snapshot) Check {
	c, ok := s.newCheck("agent-connected", "ECS agents are connected, container instances active", apiContainers, apiContainer)
	if !ok {
		return c
	}
	of := 0
	versions := make(map[string]bool)
	for _, n := range s.Nodes {
		if n.Container == nil {
			continue
		}
		of++
		versions[cmp.Or(n.Container.AgentVersion, "unknown")] = true
		switch status := n.Container.Status; {
		case !n.Container.Connected:
			c.add(Fail, n.ID, "its agent is not connected (%s)", status)
		case status == "DRAINING":
			c.add(Warn, n.ID, "it is draining")
		case status != "ACTIVE":
			c.add(Fail, n.ID, "it is %s", cmp.Or(status, "in no status"))
		}
	}
	return c.finish(of, "nodes", fmt.Sprintf("%d connected and ACTIVE, agent %s", of, strings.Join(slices.Sorted(maps.Keys(versions)), ", ")),
		"On the node, see 'systemctl status sevagent ecs' and /var/log/ecs/ecs-agent.log; outbound HTTPS to the ECS endpoints must be open. If it does not come back, terminate the instance.")
}

func checkGroups(s *Snapshot) Check {
	c, ok := s.newCheck("auto-scaling-group", "The Auto Scaling group is healthy", apiClusters, apiProviders, apiGroups)
	if !ok {
		return c
	}
	if len(s.Groups) == 0 {
		c, _ = s.withGroups(c.ID, c.Title)
		return c
	}
	var good []string
	for _, g := range s.Groups {
		if g.Missing {
			c.add(Fail, g.Name, "a capacity provider names it, and it does not exist")
			continue
		}
		inService, unhealthy := 0, 0
		for _, n := range s.Nodes {
			if n.Member == nil || n.Member.Group != g.Name || n.Member.Lifecycle != "InService" {
				continue
			}
			if inService++; !strings.EqualFold(n.Member.Health, "Healthy") {
				unhealthy++
			}
		}
		switch {
		case g.Status != "":
			c.add(Fail, g.Name, "%s", g.Status)
		case unhealthy > 0:
			c.add(Fail, g.Name, "%d of its %d instances in service are not healthy", unhealthy, inService)
		case g.SuspendedLaunches:
			c.add(Warn, g.Name, "its process Launch is suspended: nodes that fail are not replaced")
		case inService < g.Desired:
			c.add(Warn, g.Name, "%d instances in service, %d desired", inService, g.Desired)
		default:
			good = append(good, fmt.Sprintf("%s: min %d, desired %d, max %d, in service %d", g.Name, g.Min, g.Desired, g.Max, inService))
		}
	}
	return c.finish(len(s.Groups), "groups", strings.Join(good, "; "),
		"See 'aws autoscaling describe-scaling-activities': an instance type that the subnets' zones do not offer, a missing instance profile and an AMI that is gone are said there.")
}

func checkTemplates(s *Snapshot) Check {
	c, ok := s.withGroups("launch-template", "The launch template turns AMD SEV-SNP on", apiTemplates)
	if !ok {
		return c
	}
	of := 0
	var good []string
	for _, g := range s.Groups {
		if g.Missing {
			continue
		}
		if len(g.Templates) == 0 {
			of++
			c.add(Fail, g.Name, "it has a launch configuration (%s) and no launch template: SEV-SNP cannot be turned on there", cmp.Or(g.LaunchConfiguration, "none"))
		}
		for _, t := range g.Templates {
			of++
			switch {
			case t.Missing != "":
				c.add(Fail, cmp.Or(t.ID, t.Name), "%s", t.Missing)
			case t.SNP != "enabled":
				c.add(Fail, t.label(), "AmdSevSnp is %s", cmp.Or(t.SNP, "not set"))
			default:
				good = append(good, t.label()+": enabled")
			}
		}
	}
	return c.finish(of, "templates", strings.Join(good, "; "),
		"Deploy the stack again: its launch template has CpuOptions {AmdSevSnp: enabled}. Then replace the nodes.")
}

// label names a template with the version that counts.
func (t *Template) label() string {
	return fmt.Sprintf("%s version %d", cmp.Or(t.ID, t.Name), t.Version)
}

func checkRegion(s *Snapshot) Check {
	c, ok := s.newCheck("region", "The region offers AMD SEV-SNP", apiTypes)
	if !ok {
		return c
	}
	n := len(s.Supported)
	if n == 0 {
		c.Status, c.Detail = Fail, fmt.Sprintf("no instance type in %s has the feature %s", s.Region, snpFeature)
		c.Advice = "Deploy to a region that has it, such as us-east-2 or eu-west-1."
		return c
	}
	c.Detail = fmt.Sprintf("%d instance types in %s, such as %s", n, s.Region, strings.Join(s.Supported[:min(n, 3)], ", "))
	return c
}

func checkImages(s *Snapshot) Check {
	c, ok := s.withNodes("ami-boot-mode", "AMIs are made for UEFI", apiImages)
	if !ok {
		return c
	}
	used := make(map[string]bool) // image -> whether new nodes get it
	for _, n := range s.Nodes {
		if n.up() {
			used[n.Instance.ImageID] = used[n.Instance.ImageID] || false
		}
	}
	for _, t := range s.templates() {
		if strings.HasPrefix(t.ImageID, "ami-") {
			used[t.ImageID] = true
		}
	}
	var good []string
	for _, id := range slices.Sorted(maps.Keys(used)) {
		switch image, there := s.Images[id]; {
		case !there && used[id]:
			c.add(Fail, id, "the launch template names it, and it is gone or not shared with this account: no new node can start")
		case !there:
			c.add(Warn, id, "nodes run it, but it is gone or not shared with this account")
		case !uefi(image.BootMode):
			c.add(Fail, id, "its boot mode is %s", cmp.Or(image.BootMode, "not set, which is legacy BIOS on AMD types"))
		default:
			good = append(good, fmt.Sprintf("%s: %s", id, image.BootMode))
		}
	}
	return c.finish(len(used), "AMIs", strings.Join(good, ", "),
		"Give an AMI as AmiId that is registered with '--boot-mode uefi' or 'uefi-preferred', from Amazon (AL2023) or Canonical (Ubuntu) or built on theirs, and replace the nodes.")
}

func checkVersions(s *Snapshot) Check {
	c, ok := s.withGroups("template-version", "Nodes come from the group's launch template version", apiTemplates)
	if !ok {
		return c
	}
	of := 0
	for _, n := range s.Nodes {
		if n.Member == nil || n.Member.Lifecycle != "InService" {
			continue
		}
		g := s.group(n.Member.Group)
		if g == nil {
			continue
		}
		of++
		var want []string
		matches := false
		for _, t := range g.Templates {
			want = append(want, t.label())
			sameTemplate := n.Member.TemplateID == t.ID || n.Member.TemplateID == t.Name
			matches = matches || sameTemplate && (n.Member.TemplateVersion == fmt.Sprint(t.Version) || n.Member.TemplateVersion == t.Spec)
		}
		if !matches && len(want) > 0 {
			got := "no launch template"
			if n.Member.TemplateID != "" {
				got = fmt.Sprintf("%s version %s", n.Member.TemplateID, n.Member.TemplateVersion)
			}
			c.add(Fail, n.ID, "it was launched from %s, the group has %s", got, strings.Join(want, " or "))
		}
	}
	return c.finish(of, "nodes", fmt.Sprintf("the same on %d", of),
		"Replace older nodes: deploy the stack again, which rolls them, or 'aws autoscaling start-instance-refresh'.")
}

func checkIMDS(s *Snapshot) Check {
	c, ok := s.withNodes("imdsv2", "IMDSv2 is required")
	if !ok {
		return c
	}
	of := 0
	for _, n := range s.Nodes {
		if !n.up() {
			continue
		}
		of++
		if n.Instance.HTTPTokens != "required" {
			c.add(Fail, n.ID, "HttpTokens is %s", cmp.Or(n.Instance.HTTPTokens, "not set"))
		}
	}
	for _, t := range s.templates() {
		// Not set means the account's or the AMI's default, which the nodes show.
		if of++; t.HTTPTokens == "optional" {
			c.add(Fail, t.label(), "HttpTokens is optional: new nodes will answer IMDSv1")
		}
	}
	return c.finish(of, "nodes and templates", "required", "'aws ec2 modify-instance-metadata-options --http-tokens required --instance-id ...'; and deploy the stack again, whose launch template requires it.")
}

func checkVolumes(s *Snapshot) Check {
	c, ok := s.withNodes("root-encrypted", "Root volumes are encrypted", apiVolumes)
	if !ok {
		return c
	}
	of := 0
	for _, n := range s.Nodes {
		if !n.up() {
			continue
		}
		of++
		switch i := n.Instance; {
		case i.RootVolume == "":
			c.add(Unknown, n.ID, "EC2 does not say what volume is its root device %s", i.RootDevice)
		case !i.RootKnown:
			c.add(Unknown, n.ID, "EC2 does not say whether %s is encrypted", i.RootVolume)
		case !i.RootEncrypted:
			c.add(Fail, n.ID, "%s is not encrypted", i.RootVolume)
		}
	}
	return c.finish(of, "nodes", fmt.Sprintf("encrypted on %d", of), "A volume cannot be encrypted later: deploy the stack again, whose launch template encrypts it, and replace the node.")
}

func checkProtection(s *Snapshot) Check {
	c, ok := s.withGroups("scale-in-protection", "Scale-in protection agrees with managed termination protection")
	if !ok {
		return c
	}
	var good []string
	for _, p := range s.Providers {
		g := s.group(p.Group)
		if g == nil || g.Missing {
			continue
		}
		exposed := 0
		for _, n := range s.Nodes {
			if n.Member != nil && n.Member.Group == g.Name && n.Member.Lifecycle == "InService" && !n.Member.Protected {
				exposed++
			}
		}
		switch {
		case p.ManagedProtection && !p.ManagedScaling:
			c.add(Fail, p.Name, "managed termination protection is on without managed scaling, and so has no effect")
		case p.ManagedProtection && !g.ProtectsNew:
			c.add(Fail, p.Name, "managed termination protection is on, but the group %s does not protect new instances from scale-in", g.Name)
		case p.ManagedProtection && exposed > 0:
			c.add(Fail, p.Name, "managed termination protection is on, but %d instances of the group %s are not protected", exposed, g.Name)
		case !p.ManagedProtection && p.ManagedScaling && g.ProtectsNew:
			c.add(Warn, p.Name, "the group %s protects instances, and nobody lifts that: managed scaling cannot scale in", g.Name)
		case p.ManagedProtection:
			good = append(good, p.Name+": both on")
		default:
			good = append(good, p.Name+": managed termination protection is off")
		}
	}
	return c.finish(len(s.Providers), "capacity providers", strings.Join(good, "; "),
		"Deploy the stack with EnableManagedScaling and ManagedTerminationProtection both true, or protection off; protect older instances with 'aws autoscaling set-instance-protection'.")
}

// graceDefault is for a group that says nothing: CloudFormation's default of the stack.
const graceDefault = 5 * time.Minute

func checkMembership(s *Snapshot) Check {
	c, ok := s.withGroups("membership", "The group's instances and the cluster's are the same", apiContainers, apiContainer)
	if !ok {
		return c
	}
	of := 0
	for _, n := range s.Nodes {
		switch {
		case n.Container == nil && n.Member.Lifecycle == "InService":
			of++
			grace := graceDefault
			if g := s.group(n.Member.Group); g != nil && g.GracePeriod > 0 {
				grace = g.GracePeriod
			}
			if age := s.age(n); age < grace {
				c.add(Warn, n.ID, "it was launched %v ago and has not joined the cluster yet", age.Round(time.Second))
			} else {
				c.add(Fail, n.ID, "it is in the group %s, but not in the cluster", n.Member.Group)
			}
		case n.Container == nil:
		case n.Member == nil:
			of++
			c.add(Fail, n.ID, "it is in the cluster, but in no group of its capacity providers")
		default:
			of++
			if !slices.ContainsFunc(s.Providers, func(p Provider) bool { return p.Name == n.Container.Provider && p.Group == n.Member.Group }) {
				c.add(Fail, n.ID, "it joined without its capacity provider (%s), which therefore places nothing on it", cmp.Or(n.Container.Provider, "none"))
			}
		}
	}
	return c.finish(of, "nodes", fmt.Sprintf("%d in both", of),
		"An instance that does not join has failed its boot gate or cannot reach ECS: see 'journalctl -u sevagent -u ecs' there, and terminate it to have another. A machine that is in no group was not made by the stack: drain it and find out who registered it.")
}

// age is how long ago the instance was launched, or very long if EC2 does not say.
func (s *Snapshot) age(n Node) time.Duration {
	if n.Instance == nil || n.Instance.Launched.IsZero() {
		return 1 << 62
	}
	return s.Time.Sub(n.Instance.Launched)
}

// The attributes that bootstrap gives to a container instance, from the report that the node's agent verified.
const (
	AttrAttested    = "sevagent.attested"
	AttrMeasurement = "sevagent.measurement"
	AttrTCB         = "sevagent.tcb"
)

var measurement = regexp.MustCompile(`^[0-9a-f]{96}$`)

func checkAttested(s *Snapshot) Check {
	c, ok := s.newCheck("attested", "Nodes have attested themselves at boot", apiContainers, apiContainer)
	if !ok {
		return c
	}
	of := 0
	for _, n := range s.Nodes {
		if n.Container == nil {
			continue
		}
		of++
		a := n.Container.Attributes
		switch {
		case a[AttrAttested] == "simulated" && s.AllowCustomRoots:
			c.add(Warn, n.ID, "its attestation was verified with roots that are not AMD's")
		case a[AttrAttested] == "simulated":
			c.add(Fail, n.ID, "its attestation was verified with roots that are not AMD's: it proves nothing about hardware")
		case a[AttrAttested] != "true":
			c.add(Fail, n.ID, "attribute %s is %s", AttrAttested, cmp.Or(a[AttrAttested], "missing"))
		case a[AttrMeasurement] == "":
			c.add(Fail, n.ID, "attribute %s is missing", AttrMeasurement)
		case !measurement.MatchString(a[AttrMeasurement]):
			c.add(Fail, n.ID, "attribute %s is not 96 hexadecimal digits: %q", AttrMeasurement, a[AttrMeasurement])
		case a[AttrTCB] == "":
			c.add(Fail, n.ID, "attribute %s is missing", AttrTCB)
		}
	}
	return c.finish(of, "nodes", fmt.Sprintf("%d say so; proof is 'sevctl verify --attest'", of),
		"See 'sevagent status' and 'journalctl -u sevagent' on the node. Attributes are taken at the first registration only: replace a node that registered without them. Place tasks with the constraint 'attribute:sevagent.attested == true'.")
}

// checkEqual compares measurements among nodes of one type, since the number of vCPUs is part of what is measured, and
// TCB versions among all.
func checkEqual(s *Snapshot) Check {
	c, ok := s.newCheck("attested-equal", "Measurement and TCB are the same on all nodes", apiContainers, apiContainer)
	if !ok {
		return c
	}
	type key struct{ attribute, kind string }
	counts := make(map[key]map[string]int)
	each := func(visit func(n *Node, k key, value string)) int {
		of := 0
		for _, n := range s.Nodes {
			if n.Container == nil {
				continue
			}
			of++
			for _, k := range []key{{AttrMeasurement, n.Type()}, {AttrTCB, ""}} {
				if value := n.Container.Attributes[k.attribute]; value != "" {
					visit(&n, k, value)
				}
			}
		}
		return of
	}
	each(func(_ *Node, k key, value string) {
		if counts[k] == nil {
			counts[k] = make(map[string]int)
		}
		counts[k][value]++
	})
	// The value that most nodes have; of two that are as frequent, the greater.
	common := make(map[key]string)
	for k, values := range counts {
		for value, n := range values {
			if best := values[common[k]]; n > best || n == best && value > common[k] {
				common[k] = value
			}
		}
	}
	of := each(func(n *Node, k key, value string) {
		status := Fail
		if k.attribute == AttrTCB {
			status = Warn // AWS patches its hosts one after the other
		}
		if value != common[k] {
			c.add(status, n.ID, "%s is %s, others of %s have %s", k.attribute, short(value), cmp.Or(k.kind, "the cluster"), short(common[k]))
		}
	})
	if len(common) == 0 && of > 0 {
		c.Status, c.Detail, c.Advice = Unknown, "no node has these attributes", "See the check attested."
		return c
	}
	good := ""
	if len(common) > 0 {
		var kinds []string
		for k, value := range common {
			if k.attribute == AttrMeasurement {
				kinds = append(kinds, strings.TrimSpace(k.kind+" "+short(value)))
			}
		}
		slices.Sort(kinds)
		good = fmt.Sprintf("TCB %s; %s", common[key{AttrTCB, ""}], strings.Join(kinds, ", "))
	}
	return c.finish(of, "nodes", good,
		"AWS renews firmware host by host, and a node keeps what it registered with: replace the nodes that are behind. If a value is in no release that AWS has published, treat the node as hostile.")
}

// short is enough of a measurement to tell it from others at a glance.
func short(value string) string {
	if len(value) > 24 {
		return value[:16] + "…"
	}
	return value
}
