package ecsconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const instanceAttributes = "ECS_INSTANCE_ATTRIBUTES"

// What ECS accepts as the name and the value of an attribute, except the backslash, which the file cannot carry:
// https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_Attribute.html
var (
	attributeName  = regexp.MustCompile(`^[A-Za-z0-9_./-]{1,128}$`)
	attributeValue = regexp.MustCompile(`^[A-Za-z0-9_./@:-]([A-Za-z0-9_./@: -]{0,126}[A-Za-z0-9_./@:-])?$`)
)

// SetAttributes adds attributes to those in ECS_INSTANCE_ATTRIBUTES. It refuses if the readers do not agree on what
// is there: attributes of others would be lost silently.
func (f *File) SetAttributes(add map[string]string) error {
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
	value, err := mergeAttributes(existing, add)
	if err != nil {
		return err
	}
	if len(add) == 0 {
		return nil
	}
	return f.Set(instanceAttributes, value)
}

// mergeAttributes adds attributes to a value of ECS_INSTANCE_ATTRIBUTES, "" or a JSON object, and returns the new
// value: one line of JSON, sorted by name. Attributes that were there stay as they are: their owner answers for whether
// ECS accepts them. If nothing is new, existing keeps its bytes.
func mergeAttributes(existing string, add map[string]string) (string, error) {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(add)) {
		if !attributeName.MatchString(name) {
			errs = append(errs, fmt.Errorf("attribute %q: a name has 1 to 128 letters, digits, - _ . and /", name))
		}
		if !attributeValue.MatchString(add[name]) {
			errs = append(errs,
				fmt.Errorf("attribute %q: value %q: 1 to 128 letters, digits, - _ . @ / : and blanks within", name, add[name]))
		}
	}
	if errs != nil {
		return "", errors.Join(errs...)
	}
	var there map[string]string
	if strings.TrimSpace(existing) != "" {
		if !utf8.ValidString(existing) { // the decoder would replace that, and change attributes of others
			return "", fmt.Errorf("read %s: not UTF-8", instanceAttributes)
		}
		if err := json.Unmarshal([]byte(existing), &there); err != nil {
			return "", fmt.Errorf("read %s: want a JSON object of strings: %w", instanceAttributes, err)
		}
	}
	if there != nil && contains(there, add) && refusal(existing) == "" {
		return existing, nil
	}
	all := make(map[string]string, len(there)+len(add))
	maps.Copy(all, there)
	maps.Copy(all, add)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if reason := refusal(encodeJSON(map[string]string{name: all[name]})); reason != "" {
			errs = append(errs, fmt.Errorf("attribute %q: as JSON, %s", name, reason))
		}
	}
	if errs != nil {
		return "", errors.Join(errs...)
	}
	return encodeJSON(all), nil
}

func contains(all, some map[string]string) bool {
	for name, value := range some {
		if got, ok := all[name]; !ok || got != value {
			return false
		}
	}
	return true
}

// encodeJSON is json.Marshal without \u003c for <, since a backslash cannot be in the file.
func encodeJSON(v map[string]string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // a map of strings always encodes
	}
	return strings.TrimSuffix(b.String(), "\n")
}
