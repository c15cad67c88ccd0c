package ecsconfig

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// What ECS takes as the name and the value of a container instance's attribute, without the backslash, which would
// not survive the file: https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_Attribute.html
var (
	attributeName  = regexp.MustCompile(`^[A-Za-z0-9_/.-]{1,128}$`)
	attributeValue = regexp.MustCompile(`^[A-Za-z0-9_.@/:-]([A-Za-z0-9_.@/: -]{0,126}[A-Za-z0-9_.@/:-])?$`)
)

// MergeAttributes adds attributes to a value of ECS_INSTANCE_ATTRIBUTES, "" or a JSON object, and returns the new
// value: one line of JSON, names in order, the others' attributes kept.
func MergeAttributes(existing string, add map[string]string) (string, error) {
	all := make(map[string]string)
	if strings.TrimSpace(existing) != "" {
		if err := json.Unmarshal([]byte(existing), &all); err != nil {
			return "", fmt.Errorf("read ECS_INSTANCE_ATTRIBUTES: not a JSON object of text values: %w", err)
		}
	}
	maps.Copy(all, add)
	var b strings.Builder
	for i, name := range slices.Sorted(maps.Keys(all)) {
		if !attributeName.MatchString(name) {
			return "", fmt.Errorf("attribute %q: a name has 1 to 128 letters, digits, - _ . and /", name)
		}
		if !attributeValue.MatchString(all[name]) {
			return "", fmt.Errorf("attribute %s: value %q: 1 to 128 letters, digits, - _ . @ / : and inner blanks", name, all[name])
		}
		if i > 0 {
			b.WriteByte(',')
		}
		// Neither has a character that JSON escapes.
		fmt.Fprintf(&b, `"%s":"%s"`, name, all[name])
	}
	return "{" + b.String() + "}", nil
}
