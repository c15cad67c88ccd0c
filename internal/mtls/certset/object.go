package certset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// object is what a secret looks like as JSON.
type object struct {
	is      bool                         // one JSON object, and nothing else
	err     error                        // it begins like one, and is malformed here
	members map[string][]json.RawMessage // more than one value: the key stands there more than once
	keys    []string                     // of members, in their order
}

// parseObject reads token by token, since json.Unmarshal lets the last of two equal keys win and ignores their case.
func parseObject(content []byte) (o object) {
	if !bytes.HasPrefix(bytes.TrimSpace(content), []byte("{")) {
		return o
	}
	members := make(map[string][]json.RawMessage)
	dec := json.NewDecoder(bytes.NewReader(content))
	malformed := func() object {
		return object{err: fmt.Errorf("malformed at byte %d%s", dec.InputOffset(), whyMalformed(content))}
	}
	if _, err := dec.Token(); err != nil {
		return malformed()
	}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return malformed()
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return malformed()
		}
		key := token.(string)
		if members[key] == nil {
			o.keys = append(o.keys, key)
		}
		members[key] = append(members[key], raw)
	}
	if _, err := dec.Token(); err != nil {
		return malformed()
	}
	if len(bytes.TrimSpace(content[dec.InputOffset():])) != 0 {
		return malformed()
	}
	o.is, o.members = true, members
	return o
}

// whyMalformed says what is wrong with JSON where that is one of the usual mistakes.
func whyMalformed(content []byte) string {
	e, ok := errors.AsType[*json.SyntaxError](json.Unmarshal(content, new(json.RawMessage)))
	if !ok || e.Offset < 1 {
		return ""
	}
	before := bytes.TrimSpace(content[:e.Offset-1])
	switch c := content[e.Offset-1]; {
	case c == '\n' || c == '\r':
		return `; a line break in a value is written \n`
	case c == '\t':
		return `; a tab in a value is written \t`
	case c == '\'':
		return "; JSON has double quotes"
	case c == '}' && bytes.HasSuffix(before, []byte(",")):
		return "; there is no comma before the last brace"
	case int(e.Offset) == len(content):
		return "; it is cut short"
	}
	return ""
}

// text returns the value of a field: text, or a list of texts, as Vault gives a chain. What is null, as Terraform's
// jsonencode writes what is not set, is blank.
func (o object) text(key string) (string, error) {
	values := o.members[key]
	if len(values) == 0 {
		return "", nil
	}
	if len(values) > 1 {
		return "", errors.New("appears twice")
	}
	var one *string
	if json.Unmarshal(values[0], &one) == nil {
		if one == nil {
			return "", nil
		}
		return *one, nil
	}
	var list []string
	if json.Unmarshal(values[0], &list) != nil {
		return "", errors.New("is not a string")
	}
	return strings.Join(list, "\n"), nil
}

// unknown names the keys that are not among those in use, unless they look like a secret in the wrong place.
func (o object) unknown(used []string) (warnings []string) {
	var names []string
	hidden := 0
	for _, k := range o.keys {
		switch {
		case slices.Contains(used, k):
		case isName(k):
			names = append(names, k)
		default:
			hidden += len(o.members[k])
		}
	}
	slices.Sort(names)
	for _, k := range names {
		warnings = append(warnings, fmt.Sprintf("unknown key %s is not published", k))
	}
	if hidden > 0 {
		warnings = append(warnings, fmt.Sprintf("unknown keys, not named here, are not published: %d", hidden))
	}
	return warnings
}

// isName reports whether a key is one of those that people make up, and no part of the secret.
func isName(key string) bool {
	return len(key) <= 32 && key != "" && strings.Trim(key, "abcdefghijklmnopqrstuvwxyz_-") == ""
}
