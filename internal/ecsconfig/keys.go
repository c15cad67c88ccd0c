package ecsconfig

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// rule is how the program that reads a key takes its value.
type rule struct {
	check check
	// refused: the ECS agent ends at a wrong value, or goes on without what was asked for. Otherwise it falls back to
	// a default.
	refused bool
	// environment: ecs-init reads the key, and from its environment, which is systemd's reading of the file. The ECS
	// agent gets ecs-init's own reading.
	environment bool
}

// check returns what is wrong with a value, as in "KEY wants true or false; the ECS agent would read false", or "". env
// is what ecs-init reads in the whole file.
type check func(value string, env map[string]string) string

// rules are the keys that the ECS agent 1.105 and its ecs-init read. Sources, in aws/amazon-ecs-agent: for what the
// agent reads, agent/config/config.go (environmentConfig, validateAndOverrideBounds), parse.go, parse_linux.go and
// config_unix.go, ecs-agent/logger/log.go and agent/dockerclient; for what ecs-init reads, the calls of os.Getenv below
// ecs-init.
var rules = map[string]rule{
	// The agent ends if one of these is wrong.
	instanceAttributes:                   {check: attributes, refused: true},
	"ECS_CONTAINER_INSTANCE_TAGS":        {check: tags, refused: true},
	"ECS_AWSVPC_ADDITIONAL_LOCAL_ROUTES": {check: routes, refused: true},
	"ECS_AVAILABLE_LOGGING_DRIVERS":      {check: loggingDrivers, refused: true},
	"ECS_EXTERNAL":                       {check: external, refused: true, environment: true},

	// Without these it goes on if they are wrong, which is not what their author wants.
	"ECS_RESERVED_PORTS":             {check: ports, refused: true},
	"ECS_RESERVED_PORTS_UDP":         {check: ports, refused: true},
	"ECS_ENGINE_AUTH_DATA":           {check: authData, refused: true},
	"ECS_ENGINE_AUTH_TYPE":           {check: authType, refused: true},
	"ECS_VOLUME_PLUGIN_CAPABILITIES": {check: firstJSON[[]string](wantList, "would have none"), refused: true},
	"ECS_AGENT_LABELS":               {check: stringMap("would have none"), refused: true},
	"ECS_PAUSE_LABELS":               {check: stringMap("would set none"), refused: true},
	"ECS_LOG_OPTS": {check: firstJSON[map[string]string](wantMap, "would have none"), refused: true,
		environment: true},

	// It takes a default instead of these.
	"ECS_UPDATES_ENABLED":                       {check: boolean(false)},
	"ECS_CHECKPOINT":                            {check: boolean(true)}, // where ECS_DATADIR is set, as ecs-init does
	"ECS_DISABLE_METRICS":                       {check: boolean(false)},
	"ECS_DISABLE_PRIVILEGED":                    {check: boolean(false)},
	"ECS_SELINUX_CAPABLE":                       {check: boolean(false)},
	"ECS_APPARMOR_CAPABLE":                      {check: boolean(false)},
	"ECS_ENABLE_TASK_ENI":                       {check: boolean(false)},
	"ECS_ENABLE_TASK_IAM_ROLE":                  {check: boolean(false)},
	"ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST":     {check: boolean(false)},
	"ECS_ENABLE_UNTRACKED_IMAGE_CLEANUP":        {check: boolean(false)},
	"ECS_ENABLE_TASK_CPU_MEM_LIMIT":             {check: boolean(true)},
	"ECS_PULL_DEPENDENT_CONTAINERS_UPFRONT":     {check: boolean(false)},
	"ECS_AUDIT_LOGFILE_DISABLED":                {check: boolean(false)},
	"ECS_DISABLE_IMAGE_CLEANUP":                 {check: boolean(false)},
	"ECS_AWSVPC_BLOCK_IMDS":                     {check: boolean(false)},
	"ECS_ENABLE_CONTAINER_METADATA":             {check: boolean(false)},
	"ECS_ENABLE_AWSLOGS_EXECUTIONROLE_OVERRIDE": {check: boolean(false)},
	"ECS_SHARED_VOLUME_MATCH_FULL_CONFIG":       {check: boolean(false)},
	"ECS_POLL_METRICS":                          {check: boolean(false)},
	"ECS_DISABLE_DOCKER_HEALTH_CHECK":           {check: boolean(false)},
	"ECS_ENABLE_GPU_SUPPORT":                    {check: boolean(false)},
	"ECS_ENABLE_INF_SUPPORT":                    {check: boolean(false)},
	"ECS_EBSTA_SUPPORTED":                       {check: boolean(true)},
	"ECS_DISABLE_TASK_METADATA_AZ":              {check: boolean(false)},
	"ECS_ENABLE_SPOT_INSTANCE_DRAINING":         {check: boolean(false)},
	"ECS_ENABLE_RUNTIME_STATS":                  {check: boolean(false)},
	"ECS_EXCLUDE_IPV6_PORTBINDING":              {check: boolean(true)},
	"ECS_WARM_POOLS_CHECK":                      {check: boolean(false)},
	"ECS_ENABLE_FIRELENS_ASYNC":                 {check: boolean(true)},
	"ECS_ENABLE_HIGH_DENSITY_ENI":               {check: boolean(true)},
	"ECS_ENABLE_PROMETHEUS_METRICS":             {check: boolean(false)},
	"ECS_PROPAGATE_TASK_MEMORY_LIMIT_CGROUPV2":  {check: boolean(false)},
	"ECS_GMSA_SUPPORTED":                        {check: boolean(false), environment: true},
	"ECS_SKIP_LOCALHOST_TRAFFIC_FILTER":         {check: boolean(false), environment: true},
	"ECS_ALLOW_OFFHOST_INTROSPECTION_ACCESS":    {check: boolean(false), environment: true},
	"ECS_AGENT_PID_NAMESPACE_HOST":              {check: boolean(false), environment: true},
	"ECS_AGENT_RUN_PRIVILEGED":                  {check: oneOf("would read false", "true", "false"), environment: true},

	"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION":        {check: duration(time.Second, 0)},
	"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION_JITTER": {check: duration(0, 0)},
	"ECS_CONTAINER_STOP_TIMEOUT":                   {check: duration(time.Second, 0)},
	"ECS_CONTAINER_START_TIMEOUT":                  {check: duration(45*time.Second, 0)},
	"ECS_CONTAINER_CREATE_TIMEOUT":                 {check: duration(time.Minute, 0)},
	"ECS_MANIFEST_PULL_TIMEOUT":                    {check: duration(30*time.Second, 0)},
	"ECS_IMAGE_PULL_INACTIVITY_TIMEOUT":            {check: duration(time.Minute, 0)},
	"ECS_IMAGE_PULL_TIMEOUT":                       {check: duration(0, 0)},
	"ECS_IMAGE_MINIMUM_CLEANUP_AGE":                {check: duration(0, 0)},
	"NON_ECS_IMAGE_MINIMUM_CLEANUP_AGE":            {check: duration(0, 0)},
	"ECS_IMAGE_CLEANUP_INTERVAL":                   {check: duration(10*time.Minute, 0)},
	"ECS_POLLING_METRICS_WAIT_DURATION":            {check: duration(5*time.Second, 20*time.Second)},
	"ECS_CGROUP_CPU_PERIOD":                        {check: duration(8*time.Millisecond, 100*time.Millisecond)},

	"ECS_NUM_IMAGES_DELETE_PER_CYCLE":        {check: number(1, 0)},
	"NONECS_NUM_CONTAINERS_DELETE_PER_CYCLE": {check: number(1, 0)},
	"ECS_RESERVED_MEMORY":                    {check: number(0, 1<<16-1)},
	"ECS_TASK_PIDS_LIMIT":                    {check: trimmed(number(1, 4<<20))},
	"ECS_LOG_MAX_ROLL_COUNT":                 {check: number(0, 0)},
	"ECS_TASK_METADATA_RPS_LIMIT":            {check: rates},
	"ECS_DYNAMIC_HOST_PORT_RANGE":            {check: portRange},

	"ECS_IMAGE_PULL_BEHAVIOR":                    {check: pullBehavior},
	"ECS_CONTAINER_INSTANCE_PROPAGATE_TAGS_FROM": {check: oneOf("would take none", "none", "ec2_instance")},
	"ECS_INSTANCE_IP_COMPATIBILITY":              {check: anyCase(oneOf(takesDefault, "ipv4", "ipv6"))},
	"ECS_LOG_ROLLOVER_TYPE":                      {check: oneOf(takesDefault, "size", "hourly")},
	"ECS_LOG_OUTPUT_FORMAT":                      {check: oneOf(takesDefault, "logfmt", "json")},
	"ECS_LOGLEVEL_ON_INSTANCE":                   {check: logLevel},
	"ECS_LOGLEVEL":                               {check: logLevel, environment: true},
	"ECS_LOG_DRIVER": {check: oneOf(takesDefault,
		"awslogs", "fluentd", "gelf", "json-file", "journald", "logentries", "syslog", "splunk"), environment: true},

	"CREDENTIALS_FETCHER_SECRET_NAME_FOR_DOMAINLESS_GMSA": {check: text},
	"ECS_INIT_DOCKER_LOG_FILE_SIZE":                       {check: text, environment: true},
	"ECS_INIT_DOCKER_LOG_FILE_NUM":                        {check: text, environment: true},
	"ECS_AGENT_APPARMOR_PROFILE":                          {check: text, environment: true},
	"ECS_OFFHOST_INTROSPECTION_INTERFACE_NAME":            {check: text, environment: true},
}

const (
	takesDefault = "would take its default"
	wantMap      = "a JSON object of strings"
	wantList     = "a JSON list of strings"
)

// authType is trimmed by the agent, authData is not.
var authType = trimmed(oneOf("would use no ECS_ENGINE_AUTH_DATA", "docker", "dockercfg"))

var pullBehavior = oneOf(takesDefault, "default", "always", "once", "prefer-cached")

var logLevel = anyCase(oneOf(takesDefault, "debug", "info", "warn", "error", "crit", "none"))

// ruleOf returns the rule of a key. One that is not in the table is the agent's if it begins with ECS_. Any other may
// mean something to ecs-init's libraries, such as DOCKER_HOST, HTTP_PROXY and AWS_DEFAULT_REGION, which take it from
// the environment.
func ruleOf(key string) rule {
	if r, ok := rules[key]; ok {
		return r
	}
	return rule{check: text, environment: !strings.HasPrefix(key, "ECS_")}
}

// Finding is a value that its reader does not take as it is written.
type Finding struct {
	Key, Reason string // the reason names the key
	// Refused: the ECS agent ends on the value, or would do without what it is meant to set. Else it takes a default.
	Refused bool
}

// Findings returns the values that the ECS agent or ecs-init would not take as they are written, in the order of their
// keys. The last of two lines with the same key counts.
func (f *File) Findings() []Finding {
	env := ReadECSInit(f.Bytes())
	var all []Finding
	for _, key := range slices.Sorted(maps.Keys(env)) {
		value := env[key]
		if value == "" || !validName(key) {
			continue // not set, to all of them; and what is no name is a Problem
		}
		r := ruleOf(key)
		if reason := inQuotes(value); reason != "" {
			all = append(all, Finding{key, key + reason, true})
		} else if reason := r.check(value, env); reason != "" {
			all = append(all, Finding{key, key + reason + shown(key, value), r.refused})
		}
	}
	if env["ECS_ENGINE_AUTH_DATA"] != "" && env["ECS_ENGINE_AUTH_TYPE"] == "" {
		all = append(all, Finding{"ECS_ENGINE_AUTH_TYPE",
			"ECS_ENGINE_AUTH_TYPE is missing; the ECS agent would not use ECS_ENGINE_AUTH_DATA", false})
	}
	return all
}

// shown adds a value to a reason, if it is short and no secret.
func shown(key, value string) string {
	if len(value) > 60 || suspect.MatchString(key) || suspect.MatchString(value) {
		return ""
	}
	return fmt.Sprintf(" (it is %#q)", value)
}

// inQuotes finds quotes, which only a shell and systemd take away.
func inQuotes(value string) string {
	if c := value[0]; (c == '"' || c == '\'') && len(value) > 1 && value[len(value)-1] == c {
		return " is in quotes; the ECS agent would take them for a part of the value"
	}
	return ""
}

func authData(value string, env map[string]string) string {
	const drops = "would use none of it"
	switch strings.TrimSpace(env["ECS_ENGINE_AUTH_TYPE"]) {
	case "docker":
		// As registry.AuthConfig of Docker's API.
		type account struct{ Username, Password, Auth, Email, ServerAddress, IdentityToken, RegistryToken string }
		var accounts map[string]account
		const want = "a JSON object of accounts by registry"
		if unmarshal(value, &accounts) != nil {
			return wants(want, drops)
		}
		for _, a := range accounts {
			if a == (account{}) { // such as the "auths" of Docker's config.json, one level too many
				return wants(want, "would do without the entry that has no account")
			}
		}
		return ""
	case "dockercfg":
		return dockercfg(value)
	}
	return wholeJSON[map[string]any]("a JSON object of accounts by registry", drops)(value, env)
}

// dockercfg checks the entries of ECS_ENGINE_AUTH_DATA in the form of a .dockercfg.
func dockercfg(value string) string {
	const want = "a JSON object with the base64 of user:password as \"auth\" by registry"
	var entries map[string]struct{ Auth string }
	if err := unmarshal(value, &entries); err != nil {
		return wants(want, "would use none of it")
	}
	for _, entry := range entries {
		text, err := base64.StdEncoding.DecodeString(entry.Auth)
		if err != nil || !strings.Contains(string(text), ":") {
			return wants(want, "would do without the entry that has none")
		}
	}
	return ""
}

func external(value string, env map[string]string) string {
	if reason := boolean(false)(value, env); reason != "" {
		return reason
	}
	if isTrue(value) && env["AWS_DEFAULT_REGION"] == "" {
		return wants("AWS_DEFAULT_REGION with it", "would end")
	}
	return ""
}
