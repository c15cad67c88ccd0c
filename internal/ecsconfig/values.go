package ecsconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"sevagent/internal/pattern"
)

// Parsers of values, each as strict as the program that reads them. In particular, only some of them trim blanks.

// wants is the reason of a finding, after the key.
func wants(what, effect string) string { return " wants " + what + "; the ECS agent " + effect }

func isTrue(value string) bool {
	is, _ := strconv.ParseBool(strings.TrimSpace(value))
	return is
}

func boolean(otherwise bool) check {
	return func(value string, _ map[string]string) string {
		if _, err := strconv.ParseBool(strings.TrimSpace(value)); err != nil {
			return wants("true or false", fmt.Sprintf("would read %t", otherwise))
		}
		return ""
	}
}

// duration has a shortest and, unless it is 0, a longest value: the agent takes others for these, or for its default.
func duration(shortest, longest time.Duration) check {
	return func(value string, _ map[string]string) string {
		d, err := time.ParseDuration(value)
		switch {
		case err != nil:
			return wants("a duration such as 10m", takesDefault)
		case d == 0 && shortest > 0, d < shortest, longest > 0 && d > longest:
			return wants(between(shortest, longest), "would take another")
		}
		return ""
	}
}

// number has a least and, unless it is 0, a greatest value.
func number(least, greatest int) check {
	return func(value string, _ map[string]string) string {
		if n, err := strconv.Atoi(value); err != nil || n < least || greatest > 0 && n > greatest {
			return wants("a number, "+between(least, greatest), takesDefault)
		}
		return ""
	}
}

func between[T int | time.Duration](least, greatest T) string {
	if greatest > 0 {
		return fmt.Sprintf("from %v to %v", least, greatest)
	}
	return fmt.Sprintf("%v or more", least)
}

func oneOf(effect string, words ...string) check {
	return func(value string, _ map[string]string) string {
		if !slices.Contains(words, value) {
			return wants("one of "+strings.Join(words, ", "), effect)
		}
		return ""
	}
}

func trimmed(c check) check {
	return func(value string, env map[string]string) string { return c(strings.TrimSpace(value), env) }
}

func anyCase(c check) check {
	return func(value string, env map[string]string) string { return c(strings.ToLower(value), env) }
}

func rates(value string, _ map[string]string) string {
	steady, burst, ok := strings.Cut(value, ",")
	s, errSteady := strconv.Atoi(strings.TrimSpace(steady))
	b, errBurst := strconv.Atoi(strings.TrimSpace(burst))
	if !ok || errSteady != nil || errBurst != nil || s <= 0 || b <= 0 {
		return wants("two numbers such as 40,60", takesDefault)
	}
	return ""
}

// portRange is as Docker's go-connections parses it: a port, or two with a hyphen between.
func portRange(value string, _ map[string]string) string {
	low, high, isRange := strings.Cut(value, "-")
	if !isRange {
		high = low
	}
	from, errFrom := strconv.ParseUint(low, 10, 16)
	to, errTo := strconv.ParseUint(high, 10, 16)
	if errFrom != nil || errTo != nil || from > to {
		return wants("ports such as 49153-65535", takesDefault)
	}
	return ""
}

// text takes any value, but warns of what looks like a comment and is part of the value.
func text(value string, _ map[string]string) string {
	if strings.Contains(value, " #") || strings.Contains(value, "\t#") {
		return " has a # behind a blank; the ECS agent would take what follows for a part of the value"
	}
	if key := Inner(value); key != "" {
		return " has " + key + "= in its value, which nothing reads there; write one assignment a line"
	}
	return ""
}

var inner = pattern.New(`[;,\s](ECS_[A-Z0-9_]{1,60})=`)

// Inner returns the first key of the ECS agent's that a value assigns, as in ECS_CLUSTER=a;ECS_LOGLEVEL=debug. Nothing
// reads it there.
func Inner(value string) (key string) {
	if m := inner.FindStringSubmatch(value); m != nil {
		key = m[1]
	}
	return key
}

// unmarshal is json.Unmarshal without its words, which may repeat a part of a secret.
func unmarshal(value string, into any) error {
	if json.Unmarshal([]byte(value), into) != nil {
		return errors.New("not the JSON that is wanted")
	}
	return nil
}

// wholeJSON is for values of which nothing but white space may follow.
func wholeJSON[T any](want, effect string) check {
	return func(value string, _ map[string]string) string {
		if unmarshal(value, new(T)) != nil {
			return wants(want, effect)
		}
		return ""
	}
}

// firstJSON is for values whose reader does not look at what follows.
func firstJSON[T any](want, effect string) check {
	return func(value string, _ map[string]string) string {
		if err := json.NewDecoder(strings.NewReader(value)).Decode(new(T)); err != nil && !errors.Is(err, io.EOF) {
			return wants(want, effect)
		}
		return ""
	}
}

func stringMap(effect string) check { return wholeJSON[map[string]string](wantMap, effect) }

// Limits of ECS, which the agent does not know: it registers, is refused, and ends (agent/app/agent.go,
// registerContainerInstance; aws/amazon-ecs-agent issue 2981). Those of tags:
// https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_Tag.html
const maxTags, maxTagKey, maxTagValue = 50, 128, 256

func attributes(value string, env map[string]string) string {
	if reason := stringMap("would end")(value, env); reason != "" {
		return reason
	}
	for name, text := range decoded(value) {
		if !attributeName.MatchString(name) || text != "" && !attributeValue.MatchString(text) {
			return wants(`names and values of at most 128 characters, as ECS does: letters, digits and - _ . / \, `+
				"in values also @ : and blanks within", "would end")
		}
	}
	return ""
}

func tags(value string, env map[string]string) string {
	if reason := stringMap("would end")(value, env); reason != "" {
		return reason
	}
	all := decoded(value)
	if len(all) > maxTags {
		return wants(fmt.Sprintf("at most %d tags, as ECS does", maxTags), "would end")
	}
	for key, text := range all {
		if key == "" || utf8.RuneCountInString(key) > maxTagKey || utf8.RuneCountInString(text) > maxTagValue {
			return wants(fmt.Sprintf("keys of at most %d characters and values of at most %d, as ECS does",
				maxTagKey, maxTagValue), "would end")
		}
		if reserved(key) || reserved(text) {
			return wants("tags without aws: in front, which is for AWS alone", "would end")
		}
	}
	return ""
}

// oddInTag matches what is not in the pattern of API_Tag.
var oddInTag = pattern.New(`[^\p{L}\p{Z}\p{N}_.:/=+@-]`)

// OddTag returns the first character in ECS_CONTAINER_INSTANCE_TAGS that AWS's rules for tags do not list. The ECS
// agent takes it; whether ECS refuses the registration is not documented.
func (f *File) OddTag() (character string) {
	value, _ := f.Get("ECS_CONTAINER_INSTANCE_TAGS")
	all := decoded(value)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if odd := oddInTag.FindString(key + all[key]); odd != "" {
			return odd
		}
	}
	return ""
}

func reserved(text string) bool { return strings.HasPrefix(strings.ToLower(text), "aws:") }

// decoded reads what stringMap has accepted.
func decoded(value string) (all map[string]string) {
	_ = unmarshal(value, &all)
	return all
}

func ports(value string, env map[string]string) string {
	return firstJSON[[]uint16]("a JSON list of ports", "would reserve its default ports alone")(value, env)
}

func routes(value string, _ map[string]string) string {
	var networks []string
	err := unmarshal(value, &networks)
	notNetwork := func(n string) bool { _, err := netip.ParsePrefix(n); return err != nil }
	if err != nil || slices.ContainsFunc(networks, notNetwork) {
		return wants(`a JSON list of networks such as ["10.0.15.0/24"]`, "would end")
	}
	return ""
}

// drivers: aws/amazon-ecs-agent, agent/dockerclient/logging_drivers.go.
var drivers = []string{"json-file", "syslog", "journald", "gelf", "fluentd", "awslogs", "splunk", "logentries",
	"sumologic", "none", "awsfirelens"}

func loggingDrivers(value string, _ map[string]string) string {
	var names []string
	if err := json.NewDecoder(strings.NewReader(value)).Decode(&names); err != nil {
		return wants(wantList, "would have its default drivers alone")
	}
	for _, name := range names {
		if !slices.Contains(drivers, name) {
			return fmt.Sprintf(" has %.40q, which is no driver that the ECS agent knows; it would end", name)
		}
	}
	return ""
}
