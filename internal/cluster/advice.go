package cluster

import (
	"fmt"
	"slices"
	"strings"

	"sevagent/internal/pattern"
)

// mostNamed is how many nodes a command in an advice names. A fleet is replaced in parts.
const mostNamed = 10

// fill puts the cluster's names into an advice: {cluster}, {region}, {group}; {node} is "the node" or "the nodes";
// {deploy} and {replace} are sentences of their own. Names are quoted for a shell.
func (s *Snapshot) fill(advice string, c *Check) string {
	return strings.NewReplacer(
		"{deploy}", s.deploy(),
		"{replace}", s.replace(c),
		"{node}", map[bool]string{true: "the nodes", false: "the node"}[len(c.nodes()) > 1],
		"{cluster}", shell(s.clusterName()),
		"{region}", shell(s.Region),
		"{group}", shell(s.groupOf(c)),
	).Replace(advice)
}

func (s *Snapshot) clusterName() string {
	if s.Cluster != nil {
		return s.Cluster.Name
	}
	return s.Name
}

var instanceID = pattern.New(`^i-[0-9a-f]+$`)

// nodes lists the EC2 instances that a check found fault with, as many as fit a command.
func (c *Check) nodes() []string {
	var ids []string
	for _, r := range c.Resources {
		if instanceID.MatchString(r.ID) && len(ids) < mostNamed {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// groupOf is the group that a check found fault with, or that of the first node, or the cluster's first.
func (s *Snapshot) groupOf(c *Check) string {
	for _, r := range c.Resources {
		if s.group(r.ID) != nil {
			return r.ID
		}
		for n := range s.nodes(func(n *Node) bool { return n.ID == r.ID && n.Member != nil }) {
			return n.Member.Group
		}
	}
	for _, g := range s.Groups {
		return g.Name
	}
	return "GROUP"
}

// replace says how to replace the nodes that a check found fault with: as sentences, with their names.
func (s *Snapshot) replace(c *Check) string {
	ids := c.nodes()
	if len(ids) == 0 {
		return "Drain the node, then terminate its instance."
	}
	var containers []string
	for n := range s.nodes((*Node).joined) {
		if slices.Contains(ids, n.ID) && n.Container.ARN != "" {
			containers = append(containers, n.Container.ARN[strings.LastIndexByte(n.Container.ARN, '/')+1:])
		}
	}
	it := "it"
	if len(ids) > 1 {
		it = "them"
	}
	text := ""
	if len(containers) > 0 {
		text = fmt.Sprintf("Drain %s: 'aws ecs update-container-instances-state --cluster %s --region %s --status DRAINING "+
			"--container-instances %s' ", it, shell(s.clusterName()), shell(s.Region), strings.Join(containers, " "))
	}
	return text + fmt.Sprintf("Terminate %s once no task runs there, and the group launches another: "+
		"'aws ec2 terminate-instances --region %s --instance-ids %s'", it, shell(s.Region), strings.Join(ids, " "))
}

var shellSafe = pattern.New(`^[A-Za-z0-9_./:@%+=,-]+$`)

// shell quotes a word for a shell, if it needs that, and without apostrophes, between which advice has its commands.
func shell(word string) string {
	if shellSafe.MatchString(word) {
		return word
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(word) + `"`
}
