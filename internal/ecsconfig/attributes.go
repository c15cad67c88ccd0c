package ecsconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"sevagent/internal/pattern"
)

const instanceAttributes = "ECS_INSTANCE_ATTRIBUTES"

// maxAttributes is how many custom attributes ECS accepts for a container instance:
// https://docs.aws.amazon.com/AmazonECS/latest/developerguide/service-quotas.html
const maxAttributes = 10

// What ECS accepts as the name and the value of an attribute:
// https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_Attribute.html
var (
	attributeName  = pattern.New(`^[A-Za-z0-9_./\\-]{1,128}$`)
	attributeValue = pattern.New(`^[A-Za-z0-9_./\\@:-]([A-Za-z0-9_./\\@: -]{0,126}[A-Za-z0-9_./\\@:-])?$`)
)

// Attributes returns those in ECS_INSTANCE_ATTRIBUTES, or why the ECS agent could not read them.
func (f *File) Attributes() (map[string]string, error) {
	value, _ := f.Get(instanceAttributes)
	return parseAttributes(value)
}

// SetAttributes makes ours the attributes whose names begin with prefix, and leaves others as they are. It refuses if
// the ECS agent could not read what is there, since attributes of others would be lost silently, and what ECS would
// not accept.
func (f *File) SetAttributes(prefix string, ours map[string]string) error {
	places, err := f.places(instanceAttributes)
	if err != nil {
		return fmt.Errorf("set %s: %w", instanceAttributes, err)
	}
	var existing string
	if len(places) > 0 {
		i := places[len(places)-1]
		for _, p := range f.Problems() {
			if p.Line == i+1 {
				return fmt.Errorf("set %s: %v", instanceAttributes, p)
			}
		}
		existing, _ = f.Get(instanceAttributes)
	}
	value, err := mergeAttributes(existing, prefix, ours)
	if err != nil || value == existing {
		return err
	}
	return f.Set(instanceAttributes, value)
}

// mergeAttributes returns the new value of ECS_INSTANCE_ATTRIBUTES: one line of JSON, sorted by name. Attributes of
// others stay as they are: their owner answers for whether ECS accepts them. If nothing is new, existing keeps its
// bytes.
func mergeAttributes(existing, prefix string, ours map[string]string) (string, error) {
	if err := checkAttributes(ours); err != nil {
		return "", err
	}
	there, err := parseAttributes(existing)
	if err != nil {
		return "", err
	}
	all := maps.Clone(there)
	maps.DeleteFunc(all, func(name, _ string) bool { return strings.HasPrefix(name, prefix) })
	others := len(all)
	maps.Copy(all, ours)
	switch {
	case len(all) > maxAttributes:
		return "", fmt.Errorf("%s has %d attributes besides %d of sevagent, ECS accepts %d together; remove %d",
			instanceAttributes, others, len(all)-others, maxAttributes, len(all)-maxAttributes)
	case maps.Equal(all, there):
		return existing, nil
	}
	return encodeJSON(all), nil
}

func checkAttributes(ours map[string]string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(ours)) {
		if !attributeName.MatchString(name) {
			errs = append(errs, fmt.Errorf("attribute %q: a name has 1 to 128 letters, digits, - _ . and /", name))
		}
		if !attributeValue.MatchString(ours[name]) {
			errs = append(errs, fmt.Errorf("attribute %q: value %q: 1 to 128 letters, digits, - _ . @ / : and blanks within",
				name, ours[name]))
		}
	}
	return errors.Join(errs...)
}

// parseAttributes never returns nil without an error.
func parseAttributes(value string) (map[string]string, error) {
	all := make(map[string]string)
	if value == "" {
		return all, nil
	}
	if !utf8.ValidString(value) { // the decoder would replace that, and change attributes of others
		return nil, fmt.Errorf("%s is not UTF-8", instanceAttributes)
	}
	if unmarshal(value, &all) != nil {
		quoted := ""
		if inQuotes(value) != "" {
			quoted = ", without quotes around it"
		}
		return nil, fmt.Errorf("%s wants %s%s", instanceAttributes, wantMap, quoted)
	}
	if all == nil { // null
		all = make(map[string]string)
	}
	return all, nil
}

// encodeJSON is json.Marshal without \u003c for <, which people would have to decode.
func encodeJSON(v map[string]string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // a map of strings always encodes
	}
	return strings.TrimSuffix(b.String(), "\n")
}
