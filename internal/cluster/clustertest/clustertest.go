// Package clustertest is a small AWS with one ECS cluster in it: an http.Handler that speaks as much of ECS, EC2, Auto
// Scaling, SSM, STS and CloudFormation as internal/cluster asks for, in pages and with limits as AWS documents them. It
// can be told to break.
package clustertest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// AWS is the state. Its fields belong to its maker until it is served; from then on, use Change.
type AWS struct {
	Region, Cluster, Status, Insights string
	// Other clusters of the account.
	Others []string
	// ExtraProviders are associated with the cluster beside its own.
	ExtraProviders                       []string
	NoProvider, ProviderMissing          bool
	ManagedScaling, Protection, Protects bool
	GroupMissing                         bool
	Desired                              int
	Spec                                 string // the version that the group asks for
	Versions                             map[int]*Version
	Images                               map[string]string // boot modes
	TPM                                  map[string]string // "v2.0" for AMIs and nodes with a NitroTPM
	Supported                            []string
	// Types are other instance types, and whether the region offers them.
	Types map[string]bool
	// Stack is the name of the stack that made the cluster, and StackStatus its state.
	Stack, StackStatus string
	// Caller is the ARN of the caller. Nameless leaves it out of the denial.
	Caller   string
	Nameless bool
	// NoRegion is a region that does not exist: requests to it are answered with a page of HTML, as by a proxy.
	NoRegion string
	Nodes    []*Node
	// Deny has the error code with which a call, such as ecs:DescribeClusters, always fails.
	Deny map[string]string
	// Throttle has how often a call is throttled before it is answered.
	Throttle map[string]int
	// Run is what happens when a node is asked for evidence: what is printed and on which stream.
	Run func(id, seed string) (stdout, stderr string, ok bool)

	mu       sync.Mutex
	calls    map[string]int    // guarded by mu
	commands map[string]string // guarded by mu: seed by command
}

// Version is a launch template's.
type Version struct{ SNP, Tokens, Image, Type string }

// Node is a machine.
type Node struct {
	ID, Type, Image, State, SNP, BootMode, Tokens    string
	NoRootVolume, Unencrypted                        bool
	Launched                                         time.Time
	InGroup, InCluster                               bool
	Lifecycle, Health, Version                       string
	Unprotected, Disconnected, Unmanaged, Unknown    bool
	Status, Provider, Attested, Measurement, TCB, AZ string
}

// Account is the account's ID.
const Account = "123456789012"

// Name of the cluster's capacity provider and group.
func (a *AWS) name() string { return a.Cluster + "-snp" }

// New makes a healthy cluster, prod in us-east-2, of n nodes.
func New(n int) *AWS {
	a := &AWS{
		Region: "us-east-2", Cluster: "prod", Status: "ACTIVE", Insights: "enabled",
		Others:         []string{"staging", "prod-eu", "web"},
		ManagedScaling: true, Protection: true, Protects: true, Desired: n, Spec: "2",
		Versions: map[int]*Version{
			1: {SNP: "", Tokens: "optional", Image: "ami-00000000000000001", Type: "m5.large"},
			2: {SNP: "enabled", Tokens: "required", Image: "ami-00000000000000002", Type: "m6a.large"},
		},
		Images:    map[string]string{"ami-00000000000000001": "", "ami-00000000000000002": "uefi-preferred"},
		Supported: []string{"c6a.large", "m6a.large", "m6a.xlarge", "r6a.large"},
		Types:     map[string]bool{"m5.large": true, "m7a.large": false},
		Caller:    "arn:aws:sts::" + Account + ":assumed-role/viewer/session",
		Deny:      make(map[string]string), Throttle: make(map[string]int),
		calls: make(map[string]int), commands: make(map[string]string),
	}
	for i := range n {
		a.Nodes = append(a.Nodes, &Node{
			ID: fmt.Sprintf("i-%017x", i+1), Type: "m6a.large", Image: "ami-00000000000000002", State: "running",
			SNP: "enabled", BootMode: "uefi", Tokens: "required",
			Launched: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), AZ: "us-east-2" + string(rune('a'+i%3)),
			InGroup: true, InCluster: true, Lifecycle: "InService", Health: "Healthy", Version: "2",
			Status: "ACTIVE", Provider: a.name(),
			Attested: "true", Measurement: strings.Repeat("ab", 48), TCB: "4.0.29.222",
		})
	}
	return a
}

// Change changes the state between two requests.
func (a *AWS) Change(change func(*AWS)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a)
}

// Calls is how often each call was made.
func (a *AWS) Calls() (total int, by map[string]int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	by = make(map[string]int)
	for api, n := range a.calls {
		by[api] = n
		total += n
	}
	return total, by
}

func (a *AWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.NoRegion != "" && strings.Contains(r.Header.Get("Authorization"), "/"+a.NoRegion+"/") {
		http.Error(w, "<html>no such host</html>", http.StatusNotFound)
		return
	}
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		prefix, op, _ := strings.Cut(target, ".")
		service := "ecs"
		if prefix == "AmazonSSM" {
			service = "ssm"
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		if code := a.refuse(service + ":" + op); code != "" {
			jsonError(w, code, a.denial(service+":"+op))
			return
		}
		var in request
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			jsonError(w, "SerializationException", err.Error())
			return
		}
		if service == "ecs" {
			a.ecs(w, op, in)
		} else {
			a.ssm(w, op, in)
		}
		return
	}
	if err := r.ParseForm(); err != nil {
		xmlError(w, "MalformedQueryString", err.Error())
		return
	}
	op, service := r.Form.Get("Action"), "ec2"
	switch r.Form.Get("Version") {
	case "2011-01-01":
		service = "autoscaling"
	case "2010-05-15":
		service = "cloudformation"
	case "2011-06-15":
		service = "sts"
	}
	w.Header().Set("Content-Type", "text/xml")
	if code := a.refuse(service + ":" + op); code != "" {
		xmlError(w, code, a.denial(service+":"+op))
		return
	}
	switch service {
	case "ec2":
		a.ec2(w, op, r.Form)
	case "autoscaling":
		a.autoscaling(w, r.Form)
	case "sts":
		io.WriteString(w, within("GetCallerIdentityResponse", within("GetCallerIdentityResult", element("Arn", a.Caller))))
	case "cloudformation":
		if r.Form.Get("StackName") != a.Stack {
			xmlError(w, "ValidationError", "Stack with id "+r.Form.Get("StackName")+" does not exist")
			return
		}
		stack := element("StackName", a.Stack) + element("StackStatus", a.StackStatus)
		io.WriteString(w, within("DescribeStacksResponse",
			within("DescribeStacksResult", within("Stacks", within("member", stack)))))
	}
}

// denial is the message to a caller that may not make a call.
func (a *AWS) denial(api string) string {
	if a.Nameless {
		return "you may not " + api
	}
	return fmt.Sprintf("User: %s is not authorized to perform: %s because no identity-based policy allows it",
		a.Caller, api)
}

// refuse counts a call and returns the error code it is to fail with.
func (a *AWS) refuse(api string) string {
	a.calls[api]++
	if a.Throttle[api] > 0 {
		a.Throttle[api]--
		return "ThrottlingException"
	}
	return a.Deny[api]
}

func jsonError(w http.ResponseWriter, code, message string) {
	w.WriteHeader(http.StatusBadRequest)
	json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": message})
}

func xmlError(w http.ResponseWriter, code, message string) {
	w.WriteHeader(http.StatusBadRequest)
	failure := within("Error", element("Code", code)+element("Message", message))
	io.WriteString(w, within("Response", within("Errors", failure)+failure)) // EC2's form, and the others'
}

// request has the members of all JSON requests.
type request struct {
	Clusters, ContainerInstances, CapacityProviders []string
	Cluster, NextToken                              string
	InstanceIDs                                     []string `json:"InstanceIds"`
	CommandID                                       string   `json:"CommandId"`
	InstanceID                                      string   `json:"InstanceId"`
	DocumentName                                    string
	Parameters                                      map[string][]string
}

type object = map[string]any

func (a *AWS) arn(kind, name string) string {
	return fmt.Sprintf("arn:aws:ecs:%s:%s:%s/%s", a.Region, Account, kind, name)
}

func (a *AWS) ecs(w http.ResponseWriter, op string, in request) {
	out := object{}
	switch op {
	case "DescribeClusters":
		if len(in.Clusters) != 1 || in.Clusters[0] != a.Cluster && in.Clusters[0] != a.arn("cluster", a.Cluster) {
			out["clusters"] = []object{}
			out["failures"] = []object{{"arn": a.arn("cluster", in.Clusters[0]), "reason": "MISSING"}}
			break
		}
		providers := slices.Clone(a.ExtraProviders)
		if !a.NoProvider {
			providers = append(providers, a.name())
		}
		settings := []object{}
		if a.Insights != "" {
			settings = append(settings, object{"name": "containerInsights", "value": a.Insights})
		}
		out["clusters"] = []object{{
			"clusterName": a.Cluster, "clusterArn": a.arn("cluster", a.Cluster), "status": a.Status,
			"capacityProviders": providers, "settings": settings,
		}}
	case "ListClusters":
		var arns []string
		for _, name := range append([]string{a.Cluster}, a.Others...) {
			arns = append(arns, a.arn("cluster", name))
		}
		out["clusterArns"] = arns
	case "DescribeCapacityProviders":
		providers := []object{}
		if !a.ProviderMissing && slices.Contains(in.CapacityProviders, a.name()) {
			providers = append(providers, object{"name": a.name(), "status": "ACTIVE", "autoScalingGroupProvider": object{
				"autoScalingGroupArn": fmt.Sprintf("arn:aws:autoscaling:%s:%s:autoScalingGroup:0f:autoScalingGroupName/%s",
					a.Region, Account, a.name()),
				"managedScaling":               object{"status": onOff(a.ManagedScaling)},
				"managedTerminationProtection": onOff(a.Protection),
			}})
		}
		out["capacityProviders"] = providers
	case "ListContainerInstances":
		var arns []string
		for _, n := range a.Nodes {
			if n.InCluster {
				arns = append(arns, a.arn("container-instance/"+a.Cluster, n.ID))
			}
		}
		start, _ := strconv.Atoi(in.NextToken)
		end := min(start+100, len(arns))
		out["containerInstanceArns"] = arns[start:end]
		if end < len(arns) {
			out["nextToken"] = strconv.Itoa(end)
		}
	case "DescribeContainerInstances":
		if len(in.ContainerInstances) == 0 || len(in.ContainerInstances) > 100 {
			jsonError(w, "InvalidParameterException", "1 to 100 container instances")
			return
		}
		instances := []object{}
		for _, n := range a.Nodes {
			arn := a.arn("container-instance/"+a.Cluster, n.ID)
			if n.InCluster && slices.Contains(in.ContainerInstances, arn) {
				instances = append(instances, a.containerInstance(n, arn))
			}
		}
		out["containerInstances"] = instances
	default:
		jsonError(w, "UnknownOperationException", op)
		return
	}
	json.NewEncoder(w).Encode(out)
}

func (a *AWS) containerInstance(n *Node, arn string) object {
	attributes := []object{
		{"name": "ecs.instance-type", "value": n.Type}, {"name": "ecs.capability.docker-remote-api.1.44"},
	}
	add := func(name, value string) {
		if value != "" {
			attributes = append(attributes, object{"name": name, "value": value})
		}
	}
	add("sevagent.attested", n.Attested)
	add("sevagent.measurement", n.Measurement)
	add("sevagent.tcb", n.TCB)
	out := object{
		"containerInstanceArn": arn, "ec2InstanceId": n.ID, "status": n.Status, "agentConnected": !n.Disconnected,
		"attributes": attributes, "versionInfo": object{"agentVersion": "1.106.1"},
	}
	if n.Provider != "" {
		out["capacityProviderName"] = n.Provider
	}
	return out
}

func onOff(on bool) string {
	if on {
		return "ENABLED"
	}
	return "DISABLED"
}

func (a *AWS) ssm(w http.ResponseWriter, op string, in request) {
	out := object{}
	switch op {
	case "SendCommand":
		if len(in.InstanceIDs) == 0 || len(in.InstanceIDs) > 50 {
			jsonError(w, "ValidationException", "1 to 50 instances")
			return
		}
		for _, n := range a.Nodes {
			if n.Unmanaged && slices.Contains(in.InstanceIDs, n.ID) {
				jsonError(w, "InvalidInstanceId", "Instances not in a valid state for account")
				return
			}
		}
		if in.DocumentName != "sevagent-evidence-"+a.Cluster || len(in.Parameters["seed"]) != 1 {
			jsonError(w, "InvalidDocument", "Document with name "+in.DocumentName+" does not exist.")
			return
		}
		id := fmt.Sprintf("00000000-0000-0000-0000-%012d", len(a.commands))
		a.commands[id] = in.Parameters["seed"][0]
		out["Command"] = object{"CommandId": id, "Status": "Pending"}
	case "ListCommands":
		status := "Success"
		if a.Run == nil {
			status = "InProgress"
		}
		out["Commands"] = []object{{"CommandId": in.CommandID, "Status": status}}
	case "GetCommandInvocation":
		out["CommandId"], out["InstanceId"] = in.CommandID, in.InstanceID
		if a.Run == nil {
			out["Status"], out["StatusDetails"] = "InProgress", "InProgress"
			break
		}
		stdout, stderr, ok := a.Run(in.InstanceID, a.commands[in.CommandID])
		out["Status"], out["StatusDetails"], out["ResponseCode"] = "Success", "Success", 0
		if !ok {
			out["Status"], out["StatusDetails"], out["ResponseCode"] = "Failed", "Failed", 1
		}
		out["StandardOutputContent"], out["StandardErrorContent"] = stdout[:min(len(stdout), 24000)], stderr
	default:
		jsonError(w, "UnknownOperationException", op)
		return
	}
	json.NewEncoder(w).Encode(out)
}

// Nonce computes what a node would give to sevagent as nonce, in hex, from the seed it was sent.
func Nonce(id, seed string) string {
	sum := sha256.Sum256([]byte("sevctl-verify-nonce:" + seed + ":" + id))
	return hex.EncodeToString(sum[:])
}

func (a *AWS) autoscaling(w http.ResponseWriter, form url.Values) {
	groups := ""
	if !a.GroupMissing && slices.Contains(list(form, "AutoScalingGroupNames.member"), a.name()) {
		members := ""
		for _, n := range a.Nodes {
			if n.InGroup {
				members += within("member", element("InstanceId", n.ID)+element("LifecycleState", n.Lifecycle)+
					element("HealthStatus", n.Health)+element("ProtectedFromScaleIn", strconv.FormatBool(!n.Unprotected))+
					template(n.Version))
			}
		}
		tags := ""
		if a.Stack != "" {
			tags = within("member", element("Key", "aws:cloudformation:stack-name")+element("Value", a.Stack))
		}
		groups = within("member", element("AutoScalingGroupName", a.name())+element("MinSize", "0")+
			element("MaxSize", strconv.Itoa(max(3, a.Desired)))+element("DesiredCapacity", strconv.Itoa(a.Desired))+
			element("HealthCheckGracePeriod", "300")+
			element("NewInstancesProtectedFromScaleIn", strconv.FormatBool(a.Protects))+
			template(a.Spec)+within("Tags", tags)+within("Instances", members))
	}
	io.WriteString(w, within("DescribeAutoScalingGroupsResponse",
		within("DescribeAutoScalingGroupsResult", within("AutoScalingGroups", groups))))
}

// TemplateID is the launch template's.
const TemplateID = "lt-00000000000000001"

func template(version string) string {
	return within("LaunchTemplate", element("LaunchTemplateId", TemplateID)+element("LaunchTemplateName", "prod-snp")+
		element("Version", version))
}

// list reads the form's name.1, name.2 and so on.
func list(form url.Values, name string) []string {
	var out []string
	for i := 1; form.Has(fmt.Sprintf("%s.%d", name, i)); i++ {
		out = append(out, form.Get(fmt.Sprintf("%s.%d", name, i)))
	}
	return out
}

func (a *AWS) ec2(w http.ResponseWriter, op string, form url.Values) {
	values := list(form, "Filter.1.Value")
	if len(values) > 200 {
		xmlError(w, "FilterLimitExceeded", "200 values a filter")
		return
	}
	wanted := make(map[string]bool)
	for _, v := range values {
		wanted[v] = true
	}
	var items []string
	var set string
	switch op {
	case "DescribeInstances":
		set = "reservationSet"
		for _, n := range a.Nodes {
			if wanted[n.ID] && !n.Unknown {
				items = append(items, "<instancesSet><item>"+a.instance(n)+"</item></instancesSet>")
			}
		}
	case "DescribeVolumes":
		set = "volumeSet"
		for _, n := range a.Nodes {
			if wanted[volume(n)] {
				items = append(items, fmt.Sprintf("<volumeId>%s</volumeId><encrypted>%t</encrypted>", volume(n), !n.Unencrypted))
			}
		}
	case "DescribeImages":
		set = "imagesSet"
		for id, mode := range a.Images {
			if wanted[id] {
				items = append(items, fmt.Sprintf("<imageId>%s</imageId><name>al2023</name>%s%s", id, element("bootMode", mode),
					element("tpmSupport", a.TPM[id])))
			}
		}
	case "DescribeInstanceTypes":
		set = "instanceTypeSet"
		items = a.types(form, wanted)
	case "DescribeRegions":
		set = "regionInfo"
		for _, name := range []string{"us-east-1", "us-east-2", "us-west-2", "eu-west-1"} {
			items = append(items, element("regionName", name)+element("optInStatus", "opt-in-not-required"))
		}
		items = append(items, element("regionName", "eu-south-2")+element("optInStatus", "not-opted-in"))
	case "DescribeLaunchTemplateVersions":
		set = "launchTemplateVersionSet"
		if form.Get("LaunchTemplateId") != TemplateID {
			xmlError(w, "InvalidLaunchTemplateId.NotFound",
				"The specified launch template, with template ID "+form.Get("LaunchTemplateId")+", does not exist.")
			return
		}
		for _, v := range list(form, "LaunchTemplateVersion") {
			number, err := strconv.Atoi(v)
			switch v {
			case "$Latest":
				number, err = len(a.Versions), nil
			case "$Default":
				number, err = 1, nil
			}
			d := a.Versions[number]
			if err != nil || d == nil {
				xmlError(w, "InvalidLaunchTemplateId.VersionNotFound", "Could not find launch template version "+v)
				return
			}
			items = append(items, element("launchTemplateId", TemplateID)+element("launchTemplateName", "prod-snp")+
				element("versionNumber", strconv.Itoa(number))+element("defaultVersion", strconv.FormatBool(number == 1))+
				within("launchTemplateData", element("imageId", d.Image)+element("instanceType", d.Type)+
					within("cpuOptions", element("amdSevSnp", d.SNP))+
					within("metadataOptions", element("httpTokens", d.Tokens))))
		}
	default:
		xmlError(w, "InvalidAction", op)
		return
	}
	start, _ := strconv.Atoi(form.Get("NextToken"))
	end := len(items)
	if n, err := strconv.Atoi(form.Get("MaxResults")); err == nil {
		end = min(end, start+n)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<%sResponse><%s>", op, set)
	for _, item := range items[start:end] {
		b.WriteString("<item>" + item + "</item>")
	}
	fmt.Fprintf(&b, "</%s>", set)
	if end < len(items) {
		fmt.Fprintf(&b, "<nextToken>%d</nextToken>", end)
	}
	fmt.Fprintf(&b, "</%sResponse>", op)
	fmt.Fprint(w, b.String())
}

// types are those that an inspection asks for: with SEV-SNP, or by name and in every region.
func (a *AWS) types(form url.Values, wanted map[string]bool) (items []string) {
	item := func(name, feature string, offered bool) {
		items = append(items, element("instanceType", name)+element("supportedInRegion", strconv.FormatBool(offered))+
			within("processorInfo", within("supportedFeatures", within("item", feature))))
	}
	if wanted["amd-sev-snp"] {
		for _, t := range a.Supported {
			item(t, "amd-sev-snp", true)
		}
		return items
	}
	for name, offered := range a.Types {
		if wanted[name] && (offered || form.Get("IncludeUnsupportedInRegion") == "true") {
			feature := ""
			if !offered {
				feature = "amd-sev-snp"
			}
			item(name, feature, offered)
		}
	}
	return items
}

func volume(n *Node) string { return "vol-" + strings.TrimPrefix(n.ID, "i-") }

func (a *AWS) instance(n *Node) string {
	out := element("instanceId", n.ID) + element("instanceType", n.Type) + element("imageId", n.Image) +
		within("instanceState", element("name", n.State)) + element("launchTime", n.Launched.Format(time.RFC3339)) +
		within("placement", element("availabilityZone", n.AZ)) +
		within("cpuOptions", element("coreCount", "1")+element("amdSevSnp", n.SNP)) +
		within("metadataOptions", element("httpTokens", n.Tokens)) + element("currentInstanceBootMode", n.BootMode) +
		element("tpmSupport", a.TPM[n.ID]) +
		element("rootDeviceName", "/dev/xvda") + "<blockDeviceMapping>"
	if !n.NoRootVolume {
		out += "<item><deviceName>/dev/xvda</deviceName><ebs><volumeId>" + volume(n) + "</volumeId></ebs></item>"
	}
	return out + "</blockDeviceMapping>"
}

func element(name, value string) string {
	if value == "" {
		return ""
	}
	return "<" + name + ">" + html.EscapeString(value) + "</" + name + ">"
}

func within(name, inner string) string { return "<" + name + ">" + inner + "</" + name + ">" }
