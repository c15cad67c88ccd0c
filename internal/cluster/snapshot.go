package cluster

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"time"
)

// Snapshot is what AWS said of a cluster at one time. The checks are functions of it and of nothing else.
type Snapshot struct {
	// Name is what was asked for: a cluster's name or ARN.
	Name   string
	Region string
	Time   time.Time
	// Cluster is nil if there is none of that name, or if that could not be asked: see Failures.
	Cluster *Cluster
	// Nearby are clusters of the region, most alike first, when there is none of that name.
	Nearby []string
	// Providers are the cluster's capacity providers that the cluster's account owns: not those of Fargate.
	Providers []Provider
	Groups    []Group
	// Nodes are all machines that are in the cluster or in a group of a capacity provider's, by ID.
	Nodes []Node
	// Images holds what is known of AMIs that nodes and templates name. One that is gone is not in it.
	Images map[string]Image
	// Supported are the instance types of the region that have SEV-SNP.
	Supported []string
	// Unsupported are those that nodes or groups name beside these. It is nil if that was not asked.
	Unsupported map[string]Type
	// Stack is the CloudFormation stack that made the cluster. Its name is "" if none did.
	Stack Stack
	// Caller is the ARN of who asked, where a call was denied and that could be found out.
	Caller string
	// Failures holds why a call, such as ecs:ListContainerInstances, failed. What is said through that call is then
	// missing, in part or as a whole.
	Failures map[string]error
	Calls    Calls
	// AllowCustomRoots says that nodes attested under other roots than AMD's are what the operator wants.
	AllowCustomRoots bool
}

// Cluster is an ECS cluster.
type Cluster struct {
	Name, ARN, Status string
	// Insights is the setting containerInsights: enabled, enhanced, disabled, or "" if it is not set.
	Insights string
	// Providers are the names of all capacity providers, FARGATE among them.
	Providers []string
}

// Provider is a capacity provider.
type Provider struct {
	Name, Status string
	// GroupARN is "" if the provider is of another kind.
	GroupARN, Group                   string
	ManagedScaling, ManagedProtection bool
}

// Group is the Auto Scaling group of a capacity provider.
type Group struct {
	Name string
	// Missing is set when the capacity provider names a group that does not exist.
	Missing bool
	// Status is "" but for a group that is being deleted.
	Status              string
	Min, Desired, Max   int
	ProtectsNew         bool
	GracePeriod         time.Duration
	SuspendedLaunches   bool
	Templates           []Template
	InstanceTypes       []string // of a mixed instances policy
	LaunchConfiguration string   // an old group has this instead of a template
}

// Template is a launch template as a group uses it.
type Template struct {
	ID, Name string
	// Spec is the version that the group asks for: a number, $Latest or $Default.
	Spec string
	// Version is the number that Spec stands for, or 0 if it could not be found out.
	Version int64
	// Missing says why the template or its version is not there.
	Missing string
	// What the version says.
	ImageID, InstanceType, SNP, HTTPTokens string
}

// Node is a machine, from the three sides that know it.
type Node struct {
	ID        string     // of the EC2 instance
	Container *Container // nil: not in the cluster
	Member    *Member    // nil: not in a group
	Instance  *Instance  // nil: EC2 does not know it, or could not be asked
}

// Container is a node as a container instance.
type Container struct {
	ARN, Status, Provider, AgentVersion string
	Connected                           bool
	Attributes                          map[string]string
}

// Member is a node as a member of an Auto Scaling group.
type Member struct {
	Group, Lifecycle, Health    string
	TemplateID, TemplateVersion string
	Protected                   bool
}

// Instance is a node as an EC2 instance.
type Instance struct {
	Type, Zone, State, ImageID string
	SNP, BootMode, HTTPTokens  string
	TPM                        string // "v2.0" with a NitroTPM
	RootDevice, RootVolume     string
	RootEncrypted, RootKnown   bool
	Launched                   time.Time
}

// Type is what EC2 says of an instance type. The zero Type exists in no region.
type Type struct{ Exists, Offered, SNP bool }

// Image is an AMI. TPM is "v2.0" if its instances have a NitroTPM.
type Image struct{ Name, BootMode, TPM string }

// Type is the node's instance type, or "" if nobody says.
func (n *Node) Type() string {
	if n.Instance != nil {
		return n.Instance.Type
	}
	if n.Container != nil {
		return n.Container.Attributes["ecs.instance-type"]
	}
	return ""
}

// nodes yields the nodes for which keep is true.
func (s *Snapshot) nodes(keep func(*Node) bool) iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for i := range s.Nodes {
			if n := &s.Nodes[i]; keep(n) && !yield(n) {
				return
			}
		}
	}
}

// joined reports whether the node is in the cluster.
func (n *Node) joined() bool { return n.Container != nil }

// up reports whether EC2 knows the node as a machine that runs, or is about to.
func (n *Node) up() bool {
	return n.Instance != nil && (n.Instance.State == "running" || n.Instance.State == "pending")
}

func (m *Member) inService() bool { return m.Lifecycle == "InService" }

// launchedFrom reports whether the member was launched from the template's version.
func (m *Member) launchedFrom(t Template) bool {
	return (m.TemplateID == t.ID || m.TemplateID == t.Name) &&
		(m.TemplateVersion == fmt.Sprint(t.Version) || m.TemplateVersion == t.Spec)
}

// serves reports whether the node is in service in the group.
func (g *Group) serves(n *Node) bool {
	return n.Member != nil && n.Member.Group == g.Name && n.Member.inService()
}

// label names a template with the version that the group uses.
func (t *Template) label() string {
	return fmt.Sprintf("%s version %d", cmp.Or(t.ID, t.Name), t.Version)
}

// desired is how many nodes the groups are to have.
func (s *Snapshot) desired() int {
	sum := 0
	for _, g := range s.Groups {
		sum += g.Desired
	}
	return sum
}

// templates yields the templates that are there, each with its group.
func (s *Snapshot) templates() []Template {
	var all []Template
	for _, g := range s.Groups {
		for _, t := range g.Templates {
			if t.Missing == "" && t.Version != 0 && !slices.Contains(all, t) {
				all = append(all, t)
			}
		}
	}
	return all
}

func (s *Snapshot) group(name string) *Group {
	for i := range s.Groups {
		if s.Groups[i].Name == name {
			return &s.Groups[i]
		}
	}
	return nil
}

// fargate lists the cluster's providers that are not machines of the operator's.
func (c *Cluster) fargate() []string {
	var names []string
	for _, name := range c.Providers {
		if name == "FARGATE" || name == "FARGATE_SPOT" {
			names = append(names, name)
		}
	}
	return names
}

// launches lists the instance types of new nodes, as far as the group or its templates name them.
func (g *Group) launches() []string {
	types := slices.Clone(g.InstanceTypes)
	for _, t := range g.Templates {
		if len(g.InstanceTypes) == 0 && t.InstanceType != "" && !slices.Contains(types, t.InstanceType) {
			types = append(types, t.InstanceType)
		}
	}
	return types
}
