package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sevagent/internal/pattern"
)

// checks are all checks, in the order in which they are shown. To add one takes a row and its function.
//
// Advice has to fit whatever the function finds.
var checks = []property{
	{
		id: "cluster-active", title: "The ECS cluster exists and is active",
		calls: []string{apiClusters}, find: clusterActive,
	},
	{
		id: "container-insights", title: "Container Insights is on",
		calls: []string{apiClusters}, find: insights,
	},
	{
		id: "capacity-providers", title: "The cluster has a capacity provider of EC2 instances",
		calls: []string{apiClusters, apiProviders}, things: "capacity providers", find: capacityProviders,
		advice: "Associate the stack's capacity provider with the cluster, and no other. {deploy}",
	},
	{
		id: "nodes-running", title: "EC2 instances run and have joined the cluster",
		about: ofContainers, calls: []string{apiInstances}, things: "nodes", find: nodesRunning,
	},
	{
		id: "instance-types", title: "Instance types support AMD SEV-SNP",
		about: ofInstances, calls: []string{apiTypes}, things: "nodes and groups", find: instanceTypes,
		advice: "Set InstanceType to an m6a, c6a or r6a type that the region offers: 'aws ec2 describe-instance-types " +
			"--region {region} --filters Name=processor-info.supported-features,Values=amd-sev-snp " +
			"--query InstanceTypes[].InstanceType' {deploy}",
	},
	{
		id: "snp-enabled", title: "AMD SEV-SNP is enabled on every instance",
		about: ofInstances, things: "nodes", find: snpEnabled,
		advice: "It is decided at launch: see the check launch-template, then replace {node}. {replace}",
	},
	{
		id: "boot-mode", title: "Instances have booted in UEFI mode",
		about: ofInstances, things: "nodes", find: bootMode,
		advice: "SEV-SNP needs UEFI: give an AMI whose boot mode is uefi or uefi-preferred as AmiId. {deploy} Then replace " +
			"{node}. {replace}",
	},
	{
		id: "agent-connected", title: "ECS agents are connected, container instances active",
		about: ofContainers, things: "nodes", find: agentConnected,
		advice: "On the node, see 'systemctl status sevagent ecs' and /var/log/ecs/ecs-agent.log; outbound HTTPS to the " +
			"ECS endpoints must be open. If that does not help, replace {node}. {replace}",
	},
	{
		id: "auto-scaling-group", title: "The Auto Scaling group is healthy",
		calls: []string{apiClusters, apiProviders, apiGroups}, things: "groups", find: groupHealthy,
		advice: activities,
	},
	{
		id: "launch-template", title: "The launch template enables AMD SEV-SNP",
		about: ofGroups, calls: []string{apiTemplates}, things: "templates", find: launchTemplate,
		advice: "The stack's launch template has CpuOptions {AmdSevSnp: enabled}. {deploy} Then replace the nodes: " +
			startRefresh,
	},
	{
		id: "region", title: "The region offers AMD SEV-SNP",
		calls: []string{apiTypes}, find: region,
	},
	{
		id: "ami-boot-mode", title: "AMIs are made for UEFI",
		about: ofInstances, calls: []string{apiImages}, things: "AMIs", find: imageBootMode,
		advice: "Give an AMI as AmiId that is registered with '--boot-mode uefi' or 'uefi-preferred', from Amazon (AL2023) " +
			"or Canonical (Ubuntu) or built on theirs. {deploy} That replaces the nodes.",
	},
	{
		id: "nitrotpm", title: "All nodes and their AMIs have a NitroTPM, or none",
		about: ofInstances, calls: []string{apiImages}, things: "nodes and AMIs", find: nitroTPM,
		advice: "It is decided when an AMI is registered: give one with TpmSupport v2.0 as AmiId, such as those of " +
			"image.yaml with NitroTpm=true. {deploy} That replaces the nodes.",
	},
	{
		id: "template-version", title: "Nodes come from the group's launch template version",
		about: ofGroups, calls: []string{apiTemplates}, things: "nodes", find: templateVersion,
		advice: "Replace older nodes: " + startRefresh,
	},
	{
		id: "imdsv2", title: "IMDSv2 is required",
		about: ofInstances, things: "nodes and templates", find: imdsv2,
	},
	{
		id: "root-encrypted", title: "Root volumes are encrypted",
		about: ofInstances, calls: []string{apiVolumes}, things: "nodes", find: rootEncrypted,
		advice: "A volume cannot be encrypted later, but the stack's launch template encrypts it. {deploy} Then replace " +
			"{node}. {replace}",
	},
	{
		id: "scale-in-protection", title: "Scale-in protection agrees with termination protection",
		about: ofGroups, things: "capacity providers", find: scaleInProtection,
		advice: "Set EnableManagedScaling and ManagedTerminationProtection both to true, or all protection to false. " +
			"{deploy}",
	},
	{
		id: "membership", title: "The group's instances and the cluster's are the same",
		about: ofGroups, calls: []string{apiContainers, apiContainer}, things: "nodes", find: membership,
	},
	{
		id: "attested", title: "Nodes have attested themselves at boot",
		about: ofContainers, things: "nodes", find: attested,
		advice: "See 'sevagent status' and 'journalctl -u sevagent' on the node. Attributes are taken at the first " +
			"registration only: replace {node}. {replace} Place tasks with the constraint " +
			"'attribute:sevagent.attested == true'.",
	},
	{
		id: "attested-equal", title: "Measurement and TCB are the same on all nodes",
		about: ofContainers, things: "nodes", find: attestedEqual,
		advice: "AWS updates firmware host by host, and a node keeps what it registered with: replace the nodes that are " +
			"behind. {replace} If a value is in no release that AWS has published, treat the node as hostile.",
	},
}

// Commands that several checks advise.
const (
	activities = "See why the group's launches fail, such as an instance type that the subnets' zones do not offer, a " +
		"missing instance profile, or an AMI that is gone: 'aws autoscaling describe-scaling-activities " +
		"--auto-scaling-group-name {group} --region {region} --max-items 5'"
	startRefresh = "'aws autoscaling start-instance-refresh --auto-scaling-group-name {group} --region {region}'"
	onTheNode    = "On a node that runs and has not joined, see 'journalctl -u sevagent -u ecs' and " +
		"/var/log/ecs/ecs-init.log: the boot gate, the instance profile's permissions, outbound HTTPS, and ECS_CLUSTER in " +
		"/etc/ecs/ecs.config."
)

func clusterActive(s *Snapshot, c *Check) {
	switch {
	case s.Cluster == nil:
		advice := fmt.Sprintf("Check the name, the account and the region: this account has no clusters in %s.", s.Region)
		if n := len(s.Nearby); n > 0 {
			advice = fmt.Sprintf("Give one of this account's clusters in %s, or another region with --region: %s",
				s.Region, strings.Join(s.Nearby[:min(n, 5)], ", "))
			if n > 5 {
				advice += fmt.Sprintf(" and %d more", n-5)
			}
			advice += "."
		}
		c.conclude(Fail, fmt.Sprintf("there is no cluster %s in %s", s.Name, s.Region), advice)
	case s.Cluster.Status != "ACTIVE":
		c.conclude(Fail, cmp.Or(s.Cluster.Status, "in no status"),
			"Wait if it is being created; an INACTIVE cluster was deleted. {deploy}")
	default:
		c.conclude(Pass, s.Cluster.Status, "")
	}
}

func insights(s *Snapshot, c *Check) {
	c.conclude(Pass, s.Cluster.Insights, "")
	if s.Cluster.Insights != "enabled" && s.Cluster.Insights != "enhanced" {
		c.conclude(Warn, cmp.Or(s.Cluster.Insights, "not set"),
			"Set ContainerInsightsEnabled to true, to have metrics of nodes and tasks. {deploy}")
	}
}

func capacityProviders(s *Snapshot, c *Check) {
	c.of = max(1, len(s.Cluster.Providers))
	fargate := s.Cluster.fargate()
	var good []string
	others := false
	for _, name := range s.Cluster.Providers {
		i := slices.IndexFunc(s.Providers, func(p Provider) bool { return p.Name == name })
		switch {
		case slices.Contains(fargate, name):
			c.add(Warn, name, "tasks that ask for it run outside the SEV-SNP nodes")
			others = true
		case i < 0:
			c.add(Fail, name, "the cluster names it, and it does not exist")
		case s.Providers[i].Status != "ACTIVE":
			c.add(Fail, name, "it is %s", cmp.Or(s.Providers[i].Status, "in no status"))
		case s.Providers[i].GroupARN == "":
			c.add(Warn, name, "it is not backed by an Auto Scaling group, so its machines are not checked")
			others = true
		default:
			good = append(good, name)
		}
	}
	if len(s.Cluster.Providers) == len(fargate) {
		c.add(Fail, s.Cluster.Name, "it has no capacity provider with an Auto Scaling group")
	}
	if c.good = strings.Join(good, ", "); others && len(good) > 0 {
		c.advise("Associate the stack's capacity provider with the cluster, and no other: 'aws ecs " +
			"put-cluster-capacity-providers --cluster {cluster} --region {region} --capacity-providers " +
			strings.Join(good, " ") + " --default-capacity-provider-strategy capacityProvider=" + good[0] + "'")
	}
}

func nodesRunning(s *Snapshot, c *Check) {
	joined := 0
	for n := range s.nodes((*Node).joined) {
		joined++
		const deregister = "Deregister container instances whose machine is gone: 'aws ecs deregister-container-instance " +
			"--cluster {cluster} --region {region} --force --container-instance "
		arn := n.Container.ARN[strings.LastIndexByte(n.Container.ARN, '/')+1:]
		switch {
		case n.Instance == nil:
			c.add(Fail, n.ID, "it is in the cluster, but EC2 has no such instance in %s", s.Region)
		case n.Instance.State != "running":
			c.add(Fail, n.ID, "it is in the cluster, but %s", cmp.Or(n.Instance.State, "in no known state"))
		default:
			continue
		}
		c.advise(deregister, cmp.Or(arn, "CONTAINER_INSTANCE"), "'")
	}
	switch desired := s.desired(); {
	case joined > 0:
	case desired == 0 && len(s.Groups) > 0:
		c.add(Warn, "cluster", "it has no nodes and wants none: the other checks say nothing about nodes")
		c.advise("That is as it should be if tasks are to scale it up. To have nodes now: 'aws autoscaling " +
			"set-desired-capacity --auto-scaling-group-name {group} --region {region} --desired-capacity 1'")
	case desired == 0:
		c.add(Fail, "cluster", "no instance has joined it, and no Auto Scaling group of it is known")
		c.advise("See the checks capacity-providers and auto-scaling-group.")
	default:
		c.add(Fail, "cluster", "no instance has joined it; its groups want %d", desired)
		if slices.ContainsFunc(s.Nodes, func(n Node) bool { return n.Member != nil }) {
			c.advise(onTheNode)
		} else {
			c.advise(activities)
		}
	}
	c.of, c.good = max(1, joined), fmt.Sprintf("%d joined, all running", joined)
}

func instanceTypes(s *Snapshot, c *Check) {
	if len(s.Supported) == 0 {
		c.conclude(Unknown, "the region offers no type that does", "See the check region.")
		return
	}
	types := make(map[string]int)
	for n := range s.nodes((*Node).up) {
		c.of++
		types[n.Instance.Type]++
		if !slices.Contains(s.Supported, n.Instance.Type) {
			c.add(Fail, n.ID, "%s %s", n.Instance.Type, s.lacks(n.Instance.Type, true))
		}
	}
	for _, g := range s.Groups {
		for _, name := range g.launches() {
			if c.of++; !slices.Contains(s.Supported, name) {
				c.add(Fail, g.Name, "it launches %s, which %s", name, s.lacks(name, false))
			}
		}
	}
	var good []string
	for _, t := range slices.Sorted(maps.Keys(types)) {
		good = append(good, fmt.Sprintf("%d × %s", types[t], t))
	}
	c.good = cmp.Or(strings.Join(good, ", "), "no nodes; what the groups launch does")
}

// lacks says why a type is not among those with SEV-SNP: it has none, the region does not offer it, or there is no such
// type. What a machine runs on exists.
func (s *Snapshot) lacks(name string, runs bool) string {
	t := s.Unsupported[name]
	switch {
	case s.Unsupported == nil || runs && !t.Exists:
	case !t.Exists:
		return "does not exist"
	case !t.Offered && t.SNP:
		return fmt.Sprintf("has SEV-SNP, but is not offered in %s", s.Region)
	case !t.Offered:
		return fmt.Sprintf("has no SEV-SNP and is not offered in %s", s.Region)
	}
	return fmt.Sprintf("has no SEV-SNP in %s", s.Region)
}

func snpEnabled(s *Snapshot, c *Check) {
	for n := range s.nodes((*Node).up) {
		if c.of++; n.Instance.SNP != "enabled" {
			c.add(Fail, n.ID, "AmdSevSnp is %s", cmp.Or(n.Instance.SNP, "not set"))
		}
	}
	c.good = fmt.Sprintf("enabled on %d", c.of)
}

func bootMode(s *Snapshot, c *Check) {
	for n := range s.nodes((*Node).up) {
		if c.of++; !uefi(n.Instance.BootMode) {
			c.add(Fail, n.ID, "it booted in %s", cmp.Or(n.Instance.BootMode, "legacy-bios, the default"))
		}
	}
	c.good = fmt.Sprintf("uefi on %d", c.of)
}

func uefi(mode string) bool { return mode == "uefi" || mode == "uefi-preferred" }

func agentConnected(s *Snapshot, c *Check) {
	versions := make(map[string]bool)
	for n := range s.nodes((*Node).joined) {
		c.of++
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
	c.good = fmt.Sprintf("%d connected and ACTIVE, agent %s", c.of,
		strings.Join(slices.Sorted(maps.Keys(versions)), ", "))
}

func groupHealthy(s *Snapshot, c *Check) {
	if len(s.Groups) == 0 {
		c.conclude(Unknown, noGroups, "See the check capacity-providers.")
		return
	}
	var good []string
	for _, g := range s.Groups {
		inService, unhealthy := 0, 0
		var protected []string
		for n := range s.nodes(g.serves) {
			if n.Member.Protected {
				protected = append(protected, n.ID)
			}
			if inService++; !strings.EqualFold(n.Member.Health, "Healthy") {
				unhealthy++
			}
		}
		switch {
		case g.Missing:
			c.add(Fail, g.Name, "a capacity provider names it, and it does not exist")
			c.advise("Its stack makes it. {deploy}")
		case g.Status != "":
			c.add(Fail, g.Name, "%s", g.Status)
			c.advise("It is being deleted. {deploy}")
		case unhealthy > 0:
			c.add(Fail, g.Name, "%d of its %d instances in service are not healthy", unhealthy, inService)
			c.advise(activities)
		case g.SuspendedLaunches:
			c.add(Warn, g.Name, "its process Launch is suspended: nodes that fail are not replaced")
			c.advise("Resume it: 'aws autoscaling resume-processes --auto-scaling-group-name {group} --region {region} " +
				"--scaling-processes Launch'")
		case inService < g.Desired:
			c.add(Warn, g.Name, "%d instances in service, %d desired", inService, g.Desired)
			c.advise(activities)
		case inService > g.Desired:
			c.add(Warn, g.Name, "%d instances in service, %d desired%s", inService, g.Desired, protectedWords(protected))
			c.advise(surplus(protected))
		default:
			good = append(good, fmt.Sprintf("%s: min %d, desired %d, max %d, in service %d",
				g.Name, g.Min, g.Desired, g.Max, inService))
		}
	}
	c.of, c.good = len(s.Groups), strings.Join(good, "; ")
}

// protectedWords names the instances that scale-in does not take, as many as fit a line.
func protectedWords(ids []string) string {
	if len(ids) == 0 {
		return ""
	}
	more := ""
	if n := len(ids) - mostNamed; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return "; protected from scale-in: " + strings.Join(ids[:min(len(ids), mostNamed)], ", ") + more
}

// surplus is what to do about a group that has more instances than it wants.
func surplus(protected []string) string {
	text := "That ends by itself while an update replaces nodes."
	if len(protected) == 0 {
		return text + " Otherwise see: 'aws autoscaling describe-scaling-activities --auto-scaling-group-name {group} " +
			"--region {region} --max-items 5'"
	}
	return text + " Otherwise drain a protected node, and lift its protection once no task runs there: " +
		"'aws autoscaling set-instance-protection --auto-scaling-group-name {group} --region {region} " +
		"--no-protected-from-scale-in --instance-ids " + protected[0] + "'"
}

func launchTemplate(s *Snapshot, c *Check) {
	var good []string
	for _, g := range s.Groups {
		if g.Missing {
			continue
		}
		if len(g.Templates) == 0 {
			c.of++
			c.add(Fail, g.Name, "it has a launch configuration (%s) and no launch template: "+
				"SEV-SNP cannot be enabled there", cmp.Or(g.LaunchConfiguration, "none"))
		}
		for _, t := range g.Templates {
			c.of++
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
	c.good = strings.Join(good, "; ")
}

func region(s *Snapshot, c *Check) {
	n := len(s.Supported)
	if n == 0 {
		c.conclude(Fail, fmt.Sprintf("no instance type in %s has the feature %s", s.Region, snpFeature),
			"Deploy to a region that has it, such as us-east-2 or eu-west-1.")
		return
	}
	c.conclude(Pass, fmt.Sprintf("%d instance types in %s, such as %s",
		n, s.Region, strings.Join(s.Supported[:min(n, 3)], ", ")), "")
}

func imageBootMode(s *Snapshot, c *Check) {
	launched := make(map[string]bool) // image -> whether new nodes get it
	for n := range s.nodes((*Node).up) {
		launched[n.Instance.ImageID] = false
	}
	for _, t := range s.templates() {
		if strings.HasPrefix(t.ImageID, "ami-") {
			launched[t.ImageID] = true
		}
	}
	var good []string
	for _, id := range slices.Sorted(maps.Keys(launched)) {
		switch image, exists := s.Images[id]; {
		case !exists && launched[id]:
			c.add(Fail, id, "the launch template names it, and it is gone or not shared with this account: "+
				"no new node can start")
		case !exists:
			c.add(Warn, id, "nodes run it, but it is gone or not shared with this account")
		case !uefi(image.BootMode):
			c.add(Fail, id, "its boot mode is %s", cmp.Or(image.BootMode, "not set, which is legacy BIOS on AMD types"))
		default:
			good = append(good, fmt.Sprintf("%s: %s", id, image.BootMode))
		}
	}
	c.of, c.good = len(launched), strings.Join(good, ", ")
}

// nitroTPM warns where some have a NitroTPM. A cluster without any is as good as another.
func nitroTPM(s *Snapshot, c *Check) {
	with := 0
	look := func(id, tpm, words string) {
		if c.of++; tpm != "" {
			with++
		} else {
			c.add(Warn, id, "%s", words)
		}
	}
	for n := range s.nodes((*Node).up) {
		look(n.ID, n.Instance.TPM, "it has no NitroTPM, and others have")
	}
	seen := make(map[string]bool)
	for _, t := range s.templates() {
		if image, exists := s.Images[t.ImageID]; exists && !seen[t.ImageID] {
			seen[t.ImageID] = true
			look(t.ImageID, image.TPM, "new nodes get no NitroTPM, and others have one")
		}
	}
	if c.good = fmt.Sprintf("on %d", with); with == 0 {
		c.Resources, c.good = nil, "none has one"
	}
}

func templateVersion(s *Snapshot, c *Check) {
	for _, g := range s.Groups {
		for n := range s.nodes(g.serves) {
			c.of++
			var want []string
			for _, t := range g.Templates {
				want = append(want, t.label())
			}
			if len(want) == 0 || slices.ContainsFunc(g.Templates, n.Member.launchedFrom) {
				continue
			}
			got := "no launch template"
			if n.Member.TemplateID != "" {
				got = fmt.Sprintf("%s version %s", n.Member.TemplateID, n.Member.TemplateVersion)
			}
			c.add(Fail, n.ID, "it was launched from %s, the group has %s", got, strings.Join(want, " or "))
		}
	}
	c.good = fmt.Sprintf("the same on %d", c.of)
}

func imdsv2(s *Snapshot, c *Check) {
	for n := range s.nodes((*Node).up) {
		if c.of++; n.Instance.HTTPTokens != "required" {
			c.add(Fail, n.ID, "HttpTokens is %s", cmp.Or(n.Instance.HTTPTokens, "not set"))
			c.advise("On each of these nodes: 'aws ec2 modify-instance-metadata-options --http-tokens required --region "+
				"{region} --instance-id ", n.ID, "'")
		}
	}
	for _, t := range s.templates() {
		// Not set means the account's or the AMI's default, which the nodes show.
		if c.of++; t.HTTPTokens == "optional" {
			c.add(Fail, t.label(), "HttpTokens is optional: new nodes will answer IMDSv1")
			c.advise("The stack's launch template requires it. {deploy}")
		}
	}
	c.good = "required"
}

func rootEncrypted(s *Snapshot, c *Check) {
	for n := range s.nodes((*Node).up) {
		c.of++
		switch i := n.Instance; {
		case i.RootVolume == "":
			c.add(Unknown, n.ID, "EC2 does not say what volume is its root device %s", i.RootDevice)
		case !i.RootKnown:
			c.add(Unknown, n.ID, "EC2 does not say whether %s is encrypted", i.RootVolume)
		case !i.RootEncrypted:
			c.add(Fail, n.ID, "%s is not encrypted", i.RootVolume)
		}
	}
	c.good = fmt.Sprintf("encrypted on %d", c.of)
}

func scaleInProtection(s *Snapshot, c *Check) {
	var good []string
	for _, p := range s.Providers {
		g := s.group(p.Group)
		if g == nil || g.Missing {
			continue
		}
		var exposed []string
		for n := range s.nodes(g.serves) {
			if !n.Member.Protected {
				exposed = append(exposed, n.ID)
			}
		}
		const on = "managed termination protection is on"
		switch {
		case p.ManagedProtection && !p.ManagedScaling:
			c.add(Fail, p.Name, on+" without managed scaling, and so has no effect")
		case p.ManagedProtection && !g.ProtectsNew:
			c.add(Fail, p.Name, on+", but the group %s does not protect new instances from scale-in", g.Name)
		case p.ManagedProtection && len(exposed) > 0:
			c.add(Fail, p.Name, on+", but %d instances of the group %s are not protected", len(exposed), g.Name)
			c.advise("Protect the older instances: 'aws autoscaling set-instance-protection --protected-from-scale-in " +
				"--auto-scaling-group-name " + shell(g.Name) + " --region {region} --instance-ids " +
				strings.Join(exposed[:min(len(exposed), mostNamed)], " ") + "'")
		case !p.ManagedProtection && p.ManagedScaling && g.ProtectsNew:
			c.add(Warn, p.Name, "the group %s protects instances, and nobody lifts that: managed scaling cannot scale in",
				g.Name)
		case p.ManagedProtection:
			good = append(good, p.Name+": both on")
		default:
			good = append(good, p.Name+": managed termination protection is off")
		}
	}
	c.of, c.good = len(s.Providers), strings.Join(good, "; ")
}

// graceDefault is for a group that does not say: the stack's default in CloudFormation.
const graceDefault = 5 * time.Minute

func membership(s *Snapshot, c *Check) {
	paired := func(n *Node) bool {
		return slices.ContainsFunc(s.Providers, func(p Provider) bool {
			return p.Name == n.Container.Provider && p.Group == n.Member.Group
		})
	}
	for n := range s.nodes(func(n *Node) bool { return n.joined() || n.Member.inService() }) {
		c.of++
		switch {
		case n.Container == nil:
			grace := graceDefault
			if g := s.group(n.Member.Group); g != nil && g.GracePeriod > 0 {
				grace = g.GracePeriod
			}
			if age := s.age(n); age < grace {
				c.add(Warn, n.ID, "it was launched %v ago and has not joined the cluster yet", age.Round(time.Second))
				c.advise("Wait for a node that was just launched.")
			} else {
				c.add(Fail, n.ID, "it is in the group %s, but not in the cluster", n.Member.Group)
				c.advise("A node that does not join has failed its boot gate or cannot reach ECS: see 'journalctl -u sevagent -u "+
					"ecs' there, and terminate it to have another: 'aws autoscaling terminate-instance-in-auto-scaling-group "+
					"--region {region} --no-should-decrement-desired-capacity --instance-id ", n.ID, "'")
			}
		case n.Member == nil:
			c.add(Fail, n.ID, "it is in the cluster, but in no group of its capacity providers")
			c.advise("A machine that is in no group was not made by the stack: find out who registered it. {replace}")
		case !paired(n):
			c.add(Fail, n.ID, "it joined without its capacity provider (%s), which therefore places nothing on it",
				cmp.Or(n.Container.Provider, "none"))
			c.advise("A node stays outside of the provider that it registered without, and managed scaling does not see it: " +
				"replace {node}. {replace}")
		}
	}
	c.good = fmt.Sprintf("%d in both", c.of)
}

// age is the time since the instance was launched, or a very long one if EC2 does not say.
func (s *Snapshot) age(n *Node) time.Duration {
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

var measurement = pattern.New(`^[0-9a-f]{96}$`)

func attested(s *Snapshot, c *Check) {
	for n := range s.nodes((*Node).joined) {
		c.of++
		a := n.Container.Attributes
		switch {
		case a[AttrAttested] == "simulated" && s.AllowCustomRoots:
			c.add(Warn, n.ID, "its attestation was verified with roots that are not AMD's")
		case a[AttrAttested] == "simulated":
			c.add(Fail, n.ID, "its attestation was verified with roots that are not AMD's: "+
				"it proves nothing about hardware")
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
	c.good = fmt.Sprintf("%d say so; proof is 'sevctl verify --attest'", c.of)
}

// attestedEqual compares measurements among nodes of one type, since the number of vCPUs is part of what is measured,
// and TCB versions among all.
func attestedEqual(s *Snapshot, c *Check) {
	type key struct{ attribute, kind string }
	keys := func(n *Node) []key { return []key{{AttrMeasurement, n.Type()}, {AttrTCB, ""}} }
	counts := make(map[key]map[string]int)
	for n := range s.nodes((*Node).joined) {
		c.of++
		for _, k := range keys(n) {
			if counts[k] == nil {
				counts[k] = make(map[string]int)
			}
			if value := n.Container.Attributes[k.attribute]; value != "" {
				counts[k][value]++
			}
		}
	}
	// The value that most nodes have; of two that are equally frequent, the greater.
	common := make(map[key]string)
	var kinds []string
	for k, values := range counts {
		for value, n := range values {
			if best := values[common[k]]; n > best || n == best && value > common[k] {
				common[k] = value
			}
		}
		if k.attribute == AttrMeasurement && common[k] != "" {
			kinds = append(kinds, strings.TrimSpace(k.kind+" "+short(common[k])))
		}
	}
	if len(common) == 0 && c.of > 0 {
		c.conclude(Unknown, "no node has these attributes", "See the check attested.")
		return
	}
	for n := range s.nodes((*Node).joined) {
		for _, k := range keys(n) {
			value := n.Container.Attributes[k.attribute]
			if value == "" || value == common[k] {
				continue
			}
			status := Fail
			if k.attribute == AttrTCB {
				status = Warn // AWS patches its hosts one after the other
			}
			c.add(status, n.ID, "%s is %s, others of %s have %s",
				k.attribute, short(value), cmp.Or(k.kind, "the cluster"), short(common[k]))
		}
	}
	slices.Sort(kinds)
	c.good = fmt.Sprintf("TCB %s; %s", common[key{AttrTCB, ""}], strings.Join(kinds, ", "))
}

// short is enough of a measurement to distinguish it from others at a glance.
func short(value string) string {
	if len(value) > 24 {
		return value[:16] + "…"
	}
	return value
}
