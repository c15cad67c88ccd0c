package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	autoscalingtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// The calls, as IAM names them.
const (
	apiClusters    = "ecs:DescribeClusters"
	apiList        = "ecs:ListClusters"
	apiProviders   = "ecs:DescribeCapacityProviders"
	apiContainers  = "ecs:ListContainerInstances"
	apiContainer   = "ecs:DescribeContainerInstances"
	apiGroups      = "autoscaling:DescribeAutoScalingGroups"
	apiTemplates   = "ec2:DescribeLaunchTemplateVersions"
	apiInstances   = "ec2:DescribeInstances"
	apiVolumes     = "ec2:DescribeVolumes"
	apiImages      = "ec2:DescribeImages"
	apiTypes       = "ec2:DescribeInstanceTypes"
	apiRegions     = "ec2:DescribeRegions"
	apiCaller      = "sts:GetCallerIdentity"
	apiSend        = "ssm:SendCommand"
	apiCommands    = "ssm:ListCommands"
	apiInvocation  = "ssm:GetCommandInvocation"
	snpFeature     = "amd-sev-snp"
	callTimeout    = 90 * time.Second
	containerBatch = 100 // the most that DescribeContainerInstances takes
	filterBatch    = 200 // the most values that a filter of EC2's takes
)

// gathering is one inspection under way.
type gathering struct {
	in *Inspector
	s  *Snapshot
	wg sync.WaitGroup
	mu sync.Mutex // guards s while wg's goroutines run
}

// Inspect asks AWS about the cluster. An error means that AWS could not be reached, or rejects the credentials; any
// other failure is in the Snapshot.
func (in *Inspector) Inspect(ctx context.Context) (*Snapshot, error) {
	s := &Snapshot{
		Name: in.cfg.Cluster, Region: in.cfg.AWS.Region, Time: time.Now().UTC(),
		AllowCustomRoots: in.cfg.AllowCustomRoots,
		Images:           make(map[string]Image), Failures: make(map[string]error),
	}
	g := &gathering{in: in, s: s}
	if err := g.cluster(ctx); err != nil {
		if bad := in.badRegion(ctx, err); bad != nil {
			return nil, fmt.Errorf("verify cluster %s: %w", s.Name, bad)
		}
		return nil, err
	}
	if s.Cluster == nil && s.Failures[apiClusters] == nil {
		g.nearby(ctx)
	} else if s.Cluster == nil || s.Cluster.Status != "INACTIVE" {
		g.all(ctx)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("inspect cluster %s: %w", s.Name, context.Cause(ctx))
	}
	s.Calls = in.Calls()
	return s, nil
}

func (g *gathering) all(ctx context.Context) {
	nodes := make(map[string]*Node)
	g.wg.Go(func() { g.groups(ctx, nodes) })
	g.wg.Go(func() { g.containers(ctx, nodes) })
	g.wg.Go(func() { g.types(ctx) })
	g.wg.Wait()
	g.instances(ctx, nodes)
	g.wg.Wait()
	g.volumes(ctx, nodes)
	g.images(ctx, nodes)
	g.wg.Go(func() { g.unsupported(ctx, nodes) })
	g.wg.Go(func() { g.stack(ctx) })
	g.wg.Wait()
	g.caller(ctx)
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		g.s.Nodes = append(g.s.Nodes, *nodes[id])
	}
}

// ask makes one call as askOnce does, and records a failure.
func ask[In, Out, O any](ctx context.Context, g *gathering, api string, call operation[In, Out, O], in *In,
	options ...func(*O)) (*Out, error) {
	out, err := askOnce(ctx, g.in, api, call, in, options...)
	if err != nil {
		g.mu.Lock()
		if g.s.Failures[api] == nil {
			g.s.Failures[api] = err
		}
		g.mu.Unlock()
	}
	return out, err
}

// operation is a method of one of the SDK's clients.
type operation[In, Out, O any] = func(context.Context, *In, ...func(*O)) (*Out, error)

// askOnce makes one call, of which few are under way at a time, with a time limit.
func askOnce[In, Out, O any](ctx context.Context, in *Inspector, api string, call operation[In, Out, O], input *In,
	options ...func(*O)) (*Out, error) {
	select {
	case in.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-in.gate }()
	limited, cancel := context.WithTimeoutCause(ctx, callTimeout,
		fmt.Errorf("%s: no answer within %v", api, callTimeout))
	defer cancel()
	out, err := call(limited, input, options...)
	if in.cfg.Progress != nil {
		in.progress <- struct{}{}
		in.cfg.Progress(api, in.Calls().Total)
		<-in.progress
	}
	return out, err
}

// more reports whether a list goes on, at token.
func more(token *string) bool { return aws.ToString(token) != "" }

// cluster makes the first call, alone: its error shows whether AWS can be reached and accepts the credentials.
func (g *gathering) cluster(ctx context.Context) error {
	out, err := ask(ctx, g, apiClusters, g.in.ecs.DescribeClusters, &ecs.DescribeClustersInput{
		Clusters: []string{g.s.Name},
		Include:  []ecstypes.ClusterField{ecstypes.ClusterFieldSettings, ecstypes.ClusterFieldTags},
	}, func(o *ecs.Options) { o.RetryMaxAttempts = min(3, max(1, o.Retryer.MaxAttempts())) })
	if err != nil {
		if unreachable(err) {
			return &unreachableError{fmt.Sprintf("ask ECS in %s for cluster %s", g.s.Region, g.s.Name), err}
		}
		return nil
	}
	if len(out.Clusters) == 0 {
		return nil
	}
	c := out.Clusters[0]
	g.s.Cluster = &Cluster{
		Name: aws.ToString(c.ClusterName), ARN: aws.ToString(c.ClusterArn), Status: aws.ToString(c.Status),
		Providers: c.CapacityProviders,
	}
	for _, tag := range c.Tags {
		if aws.ToString(tag.Key) == tagStack {
			g.s.Stack.Name = aws.ToString(tag.Value)
		}
	}
	for _, setting := range c.Settings {
		if setting.Name == ecstypes.ClusterSettingNameContainerInsights {
			g.s.Cluster.Insights = aws.ToString(setting.Value)
		}
	}
	return nil
}

// unreachableError is the failure of the first call, without the SDK's account of its layers.
type unreachableError struct {
	asked string
	err   error
}

func (e *unreachableError) Error() string { return e.asked + ": " + brief(e.err) }

func (e *unreachableError) Unwrap() error { return e.err }

// nearby names clusters that may have been meant. It is a courtesy: one page, and no failure of it counts.
func (g *gathering) nearby(ctx context.Context) {
	out, err := askOnce(ctx, g.in, apiList, g.in.ecs.ListClusters, &ecs.ListClustersInput{MaxResults: aws.Int32(100)})
	if err != nil {
		return
	}
	for _, arn := range out.ClusterArns {
		g.s.Nearby = append(g.s.Nearby, arn[strings.LastIndexByte(arn, '/')+1:])
	}
	want := g.s.Name[strings.LastIndexByte(g.s.Name, '/')+1:]
	slices.SortFunc(g.s.Nearby, func(a, b string) int {
		return cmp.Or(cmp.Compare(distance(a, want), distance(b, want)), strings.Compare(a, b))
	})
}

// distance is Levenshtein's, of letters in either case.
func distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// groups follows the capacity providers to their groups and the groups to their templates.
func (g *gathering) groups(ctx context.Context, nodes map[string]*Node) {
	if g.s.Cluster == nil {
		return
	}
	fargate := g.s.Cluster.fargate()
	own := slices.DeleteFunc(slices.Clone(g.s.Cluster.Providers), func(name string) bool {
		return slices.Contains(fargate, name)
	})
	if len(own) == 0 {
		return
	}
	providers, ok := g.providers(ctx, own)
	if !ok {
		return
	}
	g.mu.Lock()
	g.s.Providers = providers
	g.mu.Unlock()
	var names []string
	for _, p := range providers {
		if p.Group != "" {
			names = append(names, p.Group)
		}
	}
	if len(names) == 0 {
		return
	}
	var found []autoscalingtypes.AutoScalingGroup
	for in := (&autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: names}); ; {
		out, err := ask(ctx, g, apiGroups, g.in.autoscaling.DescribeAutoScalingGroups, in)
		if err != nil {
			return
		}
		found = append(found, out.AutoScalingGroups...)
		if in.NextToken = out.NextToken; !more(in.NextToken) {
			break
		}
	}
	var groups []Group
	used := make(map[string][]string) // template -> versions that are asked for
	g.mu.Lock()
	for _, name := range names {
		i := slices.IndexFunc(found, func(a autoscalingtypes.AutoScalingGroup) bool {
			return aws.ToString(a.AutoScalingGroupName) == name
		})
		if i < 0 {
			groups = append(groups, Group{Name: name, Missing: true})
			continue
		}
		groups = append(groups, group(found[i]))
		for _, tag := range found[i].Tags {
			if aws.ToString(tag.Key) == tagStack && g.s.Stack.Name == "" {
				g.s.Stack.Name = aws.ToString(tag.Value)
			}
		}
		for _, member := range found[i].Instances {
			addMember(nodes, name, member)
		}
		for _, t := range groups[len(groups)-1].Templates {
			if key := cmp.Or(t.ID, t.Name); !slices.Contains(used[key], t.Spec) {
				used[key] = append(used[key], t.Spec)
			}
		}
	}
	g.s.Groups = groups
	g.mu.Unlock()
	for key, versions := range used {
		g.wg.Go(func() { g.template(ctx, key, versions) })
	}
}

// providers describes the capacity providers of these names. It reports false if that failed.
func (g *gathering) providers(ctx context.Context, names []string) ([]Provider, bool) {
	var providers []Provider
	for in := (&ecs.DescribeCapacityProvidersInput{CapacityProviders: names}); ; {
		out, err := ask(ctx, g, apiProviders, g.in.ecs.DescribeCapacityProviders, in)
		if err != nil {
			return nil, false
		}
		for _, cp := range out.CapacityProviders {
			p := Provider{Name: aws.ToString(cp.Name), Status: string(cp.Status)}
			if a := cp.AutoScalingGroupProvider; a != nil {
				p.GroupARN = aws.ToString(a.AutoScalingGroupArn)
				// arn:aws:autoscaling:REGION:ACCOUNT:autoScalingGroup:UUID:autoScalingGroupName/NAME; or a bare name
				_, after, found := strings.Cut(p.GroupARN, ":autoScalingGroupName/")
				if p.Group = after; !found {
					p.Group = p.GroupARN
				}
				p.ManagedScaling = a.ManagedScaling != nil && a.ManagedScaling.Status == ecstypes.ManagedScalingStatusEnabled
				p.ManagedProtection = a.ManagedTerminationProtection == ecstypes.ManagedTerminationProtectionEnabled
			}
			providers = append(providers, p)
		}
		if in.NextToken = out.NextToken; !more(in.NextToken) {
			return providers, true
		}
	}
}

func group(a autoscalingtypes.AutoScalingGroup) Group {
	out := Group{
		Name: aws.ToString(a.AutoScalingGroupName), Status: aws.ToString(a.Status),
		Min: int(aws.ToInt32(a.MinSize)), Desired: int(aws.ToInt32(a.DesiredCapacity)), Max: int(aws.ToInt32(a.MaxSize)),
		ProtectsNew:         aws.ToBool(a.NewInstancesProtectedFromScaleIn),
		GracePeriod:         time.Duration(aws.ToInt32(a.HealthCheckGracePeriod)) * time.Second,
		LaunchConfiguration: aws.ToString(a.LaunchConfigurationName),
	}
	for _, p := range a.SuspendedProcesses {
		out.SuspendedLaunches = out.SuspendedLaunches || aws.ToString(p.ProcessName) == "Launch"
	}
	add := func(t *autoscalingtypes.LaunchTemplateSpecification) {
		if t != nil {
			// An absent version is the default one.
			out.Templates = append(out.Templates, Template{
				ID: aws.ToString(t.LaunchTemplateId), Name: aws.ToString(t.LaunchTemplateName),
				Spec: cmp.Or(aws.ToString(t.Version), "$Default"),
			})
		}
	}
	add(a.LaunchTemplate)
	if m := a.MixedInstancesPolicy; m != nil && m.LaunchTemplate != nil {
		add(m.LaunchTemplate.LaunchTemplateSpecification)
		for _, o := range m.LaunchTemplate.Overrides {
			add(o.LaunchTemplateSpecification)
			if o.InstanceType != nil {
				out.InstanceTypes = append(out.InstanceTypes, *o.InstanceType)
			}
		}
	}
	return out
}

func addMember(nodes map[string]*Node, group string, a autoscalingtypes.Instance) {
	n := node(nodes, aws.ToString(a.InstanceId))
	n.Member = &Member{
		Group: group, Lifecycle: string(a.LifecycleState), Health: aws.ToString(a.HealthStatus),
		Protected: aws.ToBool(a.ProtectedFromScaleIn),
	}
	if t := a.LaunchTemplate; t != nil {
		n.Member.TemplateID = cmp.Or(aws.ToString(t.LaunchTemplateId), aws.ToString(t.LaunchTemplateName))
		n.Member.TemplateVersion = aws.ToString(t.Version)
	}
}

func node(nodes map[string]*Node, id string) *Node {
	n := nodes[id]
	if n == nil {
		n = &Node{ID: id}
		nodes[id] = n
	}
	return n
}

// template asks for the versions of one template that groups use.
func (g *gathering) template(ctx context.Context, key string, versions []string) {
	request := &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateId: &key, Versions: versions}
	if !strings.HasPrefix(key, "lt-") {
		request.LaunchTemplateId, request.LaunchTemplateName = nil, &key
	}
	found, err := g.templateVersions(ctx, request)
	if err == nil && slices.ContainsFunc(found, func(v ec2types.LaunchTemplateVersion) bool {
		return v.LaunchTemplateData != nil && strings.HasPrefix(aws.ToString(v.LaunchTemplateData.ImageId), "resolve:ssm:")
	}) {
		request.ResolveAlias, request.NextToken = aws.Bool(true), nil
		found, err = g.templateVersions(ctx, request)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	missing := ""
	switch {
	case strings.HasPrefix(code(err), "InvalidLaunchTemplate"):
		missing = brief(err)
	case err != nil:
		if g.s.Failures[apiTemplates] == nil {
			g.s.Failures[apiTemplates] = err
		}
		return
	}
	for i := range g.s.Groups {
		for j := range g.s.Groups[i].Templates {
			t := &g.s.Groups[i].Templates[j]
			if cmp.Or(t.ID, t.Name) != key {
				continue
			}
			if t.Missing = missing; missing == "" {
				fillTemplate(t, found)
			}
		}
	}
}

func (g *gathering) templateVersions(ctx context.Context, in *ec2.DescribeLaunchTemplateVersionsInput) (
	[]ec2types.LaunchTemplateVersion, error) {
	var found []ec2types.LaunchTemplateVersion
	for {
		out, err := askOnce(ctx, g.in, apiTemplates, g.in.ec2.DescribeLaunchTemplateVersions, in)
		if err != nil {
			return nil, err
		}
		found = append(found, out.LaunchTemplateVersions...)
		if in.NextToken = out.NextToken; !more(in.NextToken) {
			return found, nil
		}
	}
}

// fillTemplate takes the version that t.Spec stands for out of those that were asked for. $Latest is the highest of
// them: it was among them.
func fillTemplate(t *Template, found []ec2types.LaunchTemplateVersion) {
	var match *ec2types.LaunchTemplateVersion
	for i := range found {
		v := &found[i]
		switch number := aws.ToInt64(v.VersionNumber); t.Spec {
		case "$Latest":
			if match == nil || number > *match.VersionNumber {
				match = v
			}
		case "$Default":
			if aws.ToBool(v.DefaultVersion) {
				match = v
			}
		default:
			if strconv.FormatInt(number, 10) == t.Spec {
				match = v
			}
		}
	}
	if match == nil {
		t.Missing = fmt.Sprintf("it has no version %s", t.Spec)
		return
	}
	t.Version, t.Name = aws.ToInt64(match.VersionNumber), cmp.Or(aws.ToString(match.LaunchTemplateName), t.Name)
	d := match.LaunchTemplateData
	if d == nil {
		return
	}
	t.ImageID, t.InstanceType = aws.ToString(d.ImageId), string(d.InstanceType)
	if d.CpuOptions != nil {
		t.SNP = string(d.CpuOptions.AmdSevSnp)
	}
	if d.MetadataOptions != nil {
		t.HTTPTokens = string(d.MetadataOptions.HttpTokens)
	}
}

// containers lists the container instances, and describes each page while the next is asked for.
func (g *gathering) containers(ctx context.Context, nodes map[string]*Node) {
	for in := (&ecs.ListContainerInstancesInput{Cluster: &g.s.Name, MaxResults: aws.Int32(containerBatch)}); ; {
		out, err := ask(ctx, g, apiContainers, g.in.ecs.ListContainerInstances, in)
		if err != nil {
			return
		}
		if len(out.ContainerInstanceArns) > 0 {
			g.wg.Go(func() { g.describe(ctx, nodes, out.ContainerInstanceArns) })
		}
		if in.NextToken = out.NextToken; !more(in.NextToken) {
			return
		}
	}
}

func (g *gathering) describe(ctx context.Context, nodes map[string]*Node, arns []string) {
	out, err := ask(ctx, g, apiContainer, g.in.ecs.DescribeContainerInstances,
		&ecs.DescribeContainerInstancesInput{Cluster: &g.s.Name, ContainerInstances: arns})
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range out.Failures {
		// One that has been deregistered since it was listed is MISSING.
		if reason := aws.ToString(f.Reason); reason != "MISSING" {
			g.s.Failures[apiContainer] = fmt.Errorf("%s: %s", aws.ToString(f.Arn), reason)
		}
	}
	for _, ci := range out.ContainerInstances {
		c := &Container{
			ARN: aws.ToString(ci.ContainerInstanceArn), Status: aws.ToString(ci.Status),
			Provider:  aws.ToString(ci.CapacityProviderName),
			Connected: ci.AgentConnected, Attributes: make(map[string]string),
		}
		if ci.VersionInfo != nil {
			c.AgentVersion = aws.ToString(ci.VersionInfo.AgentVersion)
		}
		for _, a := range ci.Attributes {
			c.Attributes[aws.ToString(a.Name)] = aws.ToString(a.Value)
		}
		node(nodes, cmp.Or(aws.ToString(ci.Ec2InstanceId), c.ARN)).Container = c
	}
}

// types asks which instance types of the region have SEV-SNP. It looks for the feature in the answer again: a filter
// that EC2 does not understand must not make every type one that has it.
func (g *gathering) types(ctx context.Context) {
	in := &ec2.DescribeInstanceTypesInput{
		Filters:    filter("processor-info.supported-features", snpFeature),
		MaxResults: aws.Int32(100),
	}
	for {
		out, err := ask(ctx, g, apiTypes, g.in.ec2.DescribeInstanceTypes, in)
		if err != nil {
			return
		}
		g.mu.Lock()
		for _, t := range out.InstanceTypes {
			if t.ProcessorInfo != nil && slices.Contains(t.ProcessorInfo.SupportedFeatures, snpFeature) {
				g.s.Supported = append(g.s.Supported, string(t.InstanceType))
			}
		}
		slices.Sort(g.s.Supported)
		g.mu.Unlock()
		if in.NextToken = out.NextToken; !more(in.NextToken) {
			return
		}
	}
}

// unsupported asks about the types that nodes and groups name although they are not among those with SEV-SNP: whether
// they exist, and whether the region offers them. It only explains; if it fails, the check says less.
func (g *gathering) unsupported(ctx context.Context, nodes map[string]*Node) {
	g.mu.Lock()
	failed := g.s.Failures[apiTypes] != nil
	g.mu.Unlock()
	if len(g.s.Supported) == 0 || failed {
		return
	}
	names := make(map[string]bool)
	for _, n := range nodes {
		if n.up() {
			names[n.Instance.Type] = true
		}
	}
	for _, group := range g.s.Groups {
		for _, name := range group.launches() {
			names[name] = true
		}
	}
	maps.DeleteFunc(names, func(name string, _ bool) bool { return slices.Contains(g.s.Supported, name) })
	if len(names) == 0 || len(names) > filterBatch {
		return
	}
	// By filter: as a parameter, one name that does not exist would be an error for all.
	in := &ec2.DescribeInstanceTypesInput{IncludeUnsupportedInRegion: aws.Bool(true), MaxResults: aws.Int32(100),
		Filters: filter("instance-type", slices.Sorted(maps.Keys(names))...)}
	types := make(map[string]Type)
	for {
		out, err := askOnce(ctx, g.in, apiTypes, g.in.ec2.DescribeInstanceTypes, in)
		if err != nil {
			return
		}
		for _, t := range out.InstanceTypes {
			types[string(t.InstanceType)] = Type{
				Exists: true, Offered: t.SupportedInRegion == nil || *t.SupportedInRegion,
				SNP: t.ProcessorInfo != nil && slices.Contains(t.ProcessorInfo.SupportedFeatures, snpFeature),
			}
		}
		if in.NextToken = out.NextToken; !more(in.NextToken) {
			break
		}
	}
	g.mu.Lock()
	g.s.Unsupported = types
	g.mu.Unlock()
}

func filter(name string, values ...string) []ec2types.Filter {
	return []ec2types.Filter{{Name: &name, Values: values}}
}

// inBatches runs ask for filterBatch values at a time.
func (g *gathering) inBatches(values []string, ask func([]string)) {
	for batch := range slices.Chunk(values, filterBatch) {
		g.wg.Go(func() { ask(batch) })
	}
}

// instances asks by filter, not by ID: one ID that EC2 has forgotten would be an error for all.
func (g *gathering) instances(ctx context.Context, nodes map[string]*Node) {
	g.inBatches(slices.Sorted(maps.Keys(nodes)), func(ids []string) {
		for in := (&ec2.DescribeInstancesInput{Filters: filter("instance-id", ids...), MaxResults: aws.Int32(1000)}); ; {
			out, err := ask(ctx, g, apiInstances, g.in.ec2.DescribeInstances, in)
			if err != nil {
				return
			}
			g.mu.Lock()
			for _, r := range out.Reservations {
				for _, i := range r.Instances {
					if n := nodes[aws.ToString(i.InstanceId)]; n != nil {
						n.Instance = instance(i)
					}
				}
			}
			g.mu.Unlock()
			if in.NextToken = out.NextToken; !more(in.NextToken) {
				return
			}
		}
	})
}

func instance(i ec2types.Instance) *Instance {
	out := &Instance{
		Type: string(i.InstanceType), ImageID: aws.ToString(i.ImageId),
		RootDevice: aws.ToString(i.RootDeviceName), Launched: aws.ToTime(i.LaunchTime),
		// What it booted with; BootMode is what was asked for, and may be uefi-preferred.
		BootMode: cmp.Or(string(i.CurrentInstanceBootMode), string(i.BootMode)), TPM: aws.ToString(i.TpmSupport),
	}
	if i.State != nil {
		out.State = string(i.State.Name)
	}
	if i.Placement != nil {
		out.Zone = aws.ToString(i.Placement.AvailabilityZone)
	}
	if i.CpuOptions != nil {
		out.SNP = string(i.CpuOptions.AmdSevSnp)
	}
	if i.MetadataOptions != nil {
		out.HTTPTokens = string(i.MetadataOptions.HttpTokens)
	}
	for _, b := range i.BlockDeviceMappings {
		if aws.ToString(b.DeviceName) == out.RootDevice && b.Ebs != nil {
			out.RootVolume = aws.ToString(b.Ebs.VolumeId)
		}
	}
	return out
}

func (g *gathering) volumes(ctx context.Context, nodes map[string]*Node) {
	byVolume := make(map[string]*Instance)
	for _, n := range nodes {
		if n.up() && n.Instance.RootVolume != "" {
			byVolume[n.Instance.RootVolume] = n.Instance
		}
	}
	g.inBatches(slices.Sorted(maps.Keys(byVolume)), func(ids []string) {
		for in := (&ec2.DescribeVolumesInput{Filters: filter("volume-id", ids...), MaxResults: aws.Int32(500)}); ; {
			out, err := ask(ctx, g, apiVolumes, g.in.ec2.DescribeVolumes, in)
			if err != nil {
				return
			}
			g.mu.Lock()
			for _, v := range out.Volumes {
				if i := byVolume[aws.ToString(v.VolumeId)]; i != nil {
					i.RootKnown, i.RootEncrypted = true, aws.ToBool(v.Encrypted)
				}
			}
			g.mu.Unlock()
			if in.NextToken = out.NextToken; !more(in.NextToken) {
				return
			}
		}
	})
}

func (g *gathering) images(ctx context.Context, nodes map[string]*Node) {
	ids := make(map[string]bool)
	for _, n := range nodes {
		if n.up() && n.Instance.ImageID != "" {
			ids[n.Instance.ImageID] = true
		}
	}
	for _, t := range g.s.templates() {
		if strings.HasPrefix(t.ImageID, "ami-") {
			ids[t.ImageID] = true
		}
	}
	g.inBatches(slices.Sorted(maps.Keys(ids)), func(ids []string) {
		out, err := ask(ctx, g, apiImages, g.in.ec2.DescribeImages, &ec2.DescribeImagesInput{
			Filters:           filter("image-id", ids...),
			IncludeDeprecated: aws.Bool(true), IncludeDisabled: aws.Bool(true),
		})
		if err != nil {
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, i := range out.Images {
			g.s.Images[aws.ToString(i.ImageId)] = Image{
				Name: aws.ToString(i.Name), BootMode: string(i.BootMode), TPM: string(i.TpmSupport),
			}
		}
	})
}
