package ecsconfig

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestRulesAreFaithful compares the table with what agent/config of the real ECS agent, fed with one key at a time,
// made of the value: testdata/agent.txt says how it was asked.
func TestRulesAreFaithful(t *testing.T) {
	another := []string{ // taken, and as something that is not written there
		`ECS_RESERVED_PORTS=["22"]`, "ECS_RESERVED_PORTS=[70000]", "ECS_RESERVED_PORTS=[-1]",
		"ECS_VOLUME_PLUGIN_CAPABILITIES=[1]", "ECS_TASK_METADATA_RPS_LIMIT=0,5",
		"ECS_DYNAMIC_HOST_PORT_RANGE=100-200-300",
	}
	seen := 0
	for text := range strings.Lines(string(readFile(t, "testdata/agent.txt"))) {
		text, answer, ok := strings.Cut(strings.TrimSuffix(text, "\n"), "\t")
		if !ok {
			continue
		}
		seen++
		findings := parse(t, text+"\nAWS_DEFAULT_REGION=us-east-2\n").Findings()
		wrong := answer == "ends" || answer == "{}" || slices.Contains(another, text)
		switch {
		case !wrong && len(findings) > 0:
			t.Errorf("%s: the agent takes it, %s, and the finding is %q", text, answer, findings[0].Reason)
		case wrong && len(findings) != 1:
			t.Errorf("%s: the agent does not take it, %s, and the findings are %v", text, answer, findings)
		case answer == "ends" && !findings[0].Refused:
			t.Errorf("%s: the agent ends, and the finding is no refusal", text)
		}
	}
	if seen < 200 {
		t.Errorf("testdata/agent.txt has %d answers, want 200 at least", seen)
	}
}

// TestFindings has what testdata/agent.txt cannot: what the agent or ecs-init reads elsewhere.
func TestFindings(t *testing.T) {
	const badAttributes = "!ECS_INSTANCE_ATTRIBUTES wants names and values of at most 128 characters, as ECS does: " +
		`letters, digits and - _ . / \, in values also @ : and blanks within; the ECS agent would end`
	const account = `{"https://registry.example.com/v1/":{"username":"ci","password":"Tr\u0026ub4dor"}}`
	const cfg = `{"https:\/\/registry.example.com\/v1\/":{"auth":"Y2k6bm90LXJlYWw=","email":"ops@example.com"}}`
	for _, c := range []struct {
		text, want string // ! before what is refused
	}{
		{"ECS_BACKEND_HOST=\nECS_CLUSTER=prod\nECS_INSTANCE_ATTRIBUTES=\n", ""},
		{"# ECS_AWSVPC_BLOCK_IMDS=yes\n", ""},
		{"ECS_AWSVPC_BLOCK_IMDS=yes\nECS_AWSVPC_BLOCK_IMDS=true\n", ""}, // the last one counts
		{"ECS_AWSVPC_BLOCK_IMDS=yes",
			"ECS_AWSVPC_BLOCK_IMDS wants true or false; the ECS agent would read false (it is `yes`)"},
		{"ECS_BACKEND_HOST='https://ecs'",
			"!ECS_BACKEND_HOST is in quotes; the ECS agent would take them for a part of the value"},
		{"ECS_UPDATE_DOWNLOAD_DIR=/tmp # for now", "ECS_UPDATE_DOWNLOAD_DIR has a # behind a blank; " +
			"the ECS agent would take what follows for a part of the value (it is `/tmp # for now`)"},
		{"ECS_UPDATE_DOWNLOAD_DIR=/tmp#1", ""},
		{"ECS_ENGINE_AUTH_TYPE=docker\nECS_ENGINE_AUTH_DATA=" + account, ""},
		{"ECS_ENGINE_AUTH_TYPE=dockercfg\nECS_ENGINE_AUTH_DATA=" + cfg, ""},
		{"ECS_ENGINE_AUTH_DATA=" + account,
			"ECS_ENGINE_AUTH_TYPE is missing; the ECS agent would not use ECS_ENGINE_AUTH_DATA"},
		{"ECS_ENGINE_AUTH_TYPE=docker\nECS_ENGINE_AUTH_DATA={\"r\":{\"password\":1234}}",
			"!ECS_ENGINE_AUTH_DATA wants a JSON object of accounts by registry; the ECS agent would use none of it"},
		{"ECS_ENGINE_AUTH_TYPE=docker\nECS_ENGINE_AUTH_DATA={\"hunter2\"",
			"!ECS_ENGINE_AUTH_DATA wants a JSON object of accounts by registry; the ECS agent would use none of it"},
		{"ECS_ENGINE_AUTH_TYPE=dockercfg\nECS_ENGINE_AUTH_DATA={\"r\":{\"auth\":\"hunter2\"}}",
			"!ECS_ENGINE_AUTH_DATA wants a JSON object with the base64 of user:password as \"auth\" by registry; " +
				"the ECS agent would do without the entry that has none"},
		{"ECS_ENGINE_AUTH_TYPE=docker\nECS_ENGINE_AUTH_DATA={\"auths\":{\"r\":{\"auth\":\"hunter2\"}}}",
			"!ECS_ENGINE_AUTH_DATA wants a JSON object of accounts by registry; " +
				"the ECS agent would do without the entry that has no account"},
		{"ECS_INSTANCE_ATTRIBUTES={\"a\":\"" + strings.Repeat("x", 128) + `","x.y/\\-_":"\\ : @b"}`, ""},
		{`ECS_INSTANCE_ATTRIBUTES={"a":""}`, ""},
		{"ECS_BACKEND_HOST=h;ECS_LOGLEVEL=debug",
			"ECS_BACKEND_HOST has ECS_LOGLEVEL= in its value, which nothing reads there; write one assignment a line" +
				" (it is `h;ECS_LOGLEVEL=debug`)"},
		{"NO_PROXY=10.0.0.1,x=ECS_A", ""},
		{"ECS_INSTANCE_ATTRIBUTES={\"a\":\"" + strings.Repeat("x", 129) + "\"}",
			badAttributes},
		{`ECS_INSTANCE_ATTRIBUTES={"":"x"}`,
			badAttributes + " (it is `{\"\":\"x\"}`)"},
		{`ECS_INSTANCE_ATTRIBUTES={"x y":"x"}`,
			badAttributes + " (it is `{\"x y\":\"x\"}`)"},
		{`ECS_INSTANCE_ATTRIBUTES={"a":"x "}`,
			badAttributes + " (it is `{\"a\":\"x \"}`)"},
		{`ECS_INSTANCE_ATTRIBUTES={"a":"o'neil"}`,
			badAttributes + " (it is `{\"a\":\"o'neil\"}`)"},
		{`ECS_INSTANCE_ATTRIBUTES={"a":"ü"}`,
			badAttributes + " (it is `{\"a\":\"ü\"}`)"},
		{"ECS_CONTAINER_INSTANCE_TAGS=" + manyTags(50), ""},
		{"ECS_CONTAINER_INSTANCE_TAGS=" + manyTags(51),
			"!ECS_CONTAINER_INSTANCE_TAGS wants at most 50 tags, as ECS does; the ECS agent would end"},
		{"ECS_CONTAINER_INSTANCE_TAGS={\"a\":\"" + strings.Repeat("x", 257) + "\"}",
			"!ECS_CONTAINER_INSTANCE_TAGS wants keys of at most 128 characters and values of at most 256, " +
				"as ECS does; the ECS agent would end"},
		{`ECS_CONTAINER_INSTANCE_TAGS={"AWS:a":"x"}`,
			"!ECS_CONTAINER_INSTANCE_TAGS wants tags without aws: in front, which is for AWS alone; " +
				"the ECS agent would end (it is `{\"AWS:a\":\"x\"}`)"},
		{"ECS_ENGINE_AUTH_TYPE=basic", "!ECS_ENGINE_AUTH_TYPE wants one of docker, dockercfg; " +
			"the ECS agent would use no ECS_ENGINE_AUTH_DATA"},
		{"ECS_EXTERNAL=true", "!ECS_EXTERNAL wants AWS_DEFAULT_REGION with it; the ECS agent would end (it is `true`)"},
		{"ECS_LOGLEVEL=INFO\nECS_LOGLEVEL_ON_INSTANCE=loud",
			"ECS_LOGLEVEL_ON_INSTANCE wants one of debug, info, warn, " +
				"error, crit, none; the ECS agent would take its default (it is `loud`)"},
		{"ECS_LOG_OPTS={\"max-size\":10}",
			"!ECS_LOG_OPTS wants a JSON object of strings; the ECS agent would have none (it is `{\"max-size\":10}`)"},
		{"ECS_AGENT_RUN_PRIVILEGED=1",
			"ECS_AGENT_RUN_PRIVILEGED wants one of true, false; the ECS agent would read false (it is `1`)"},
	} {
		var got []string
		for _, finding := range parse(t, c.text).Findings() {
			mark := ""
			if finding.Refused {
				mark = "!"
			}
			got = append(got, mark+finding.Reason)
		}
		if text := strings.Join(got, "\n"); text != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.text, text, c.want)
		}
	}
}

// manyTags returns n tags as JSON.
func manyTags(n int) string {
	all := make(map[string]string)
	for i := range n {
		all[strconv.Itoa(i)] = ""
	}
	return encodeJSON(all)
}
