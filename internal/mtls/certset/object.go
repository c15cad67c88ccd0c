package certset

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// object is what a secret looks like as JSON.
type object struct {
	is      bool                         // one JSON object, and nothing else
	err     error                        // it begins like one, and is malformed here
	known   map[string][]json.RawMessage // by the keys that mean something
	overlap []json.RawMessage            // of ca_overlap
	unknown []string
}

// parseObject reads token by token, since json.Unmarshal lets the last of two equal keys win and ignores their case.
func parseObject(content []byte) (o object) {
	if !bytes.HasPrefix(bytes.TrimSpace(content), []byte("{")) {
		return o
	}
	known := make(map[string][]json.RawMessage)
	dec := json.NewDecoder(bytes.NewReader(content))
	malformed := func() object {
		return object{err: fmt.Errorf("malformed at byte %d", dec.InputOffset())}
	}
	if _, err := dec.Token(); err != nil {
		return malformed()
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return malformed()
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return malformed()
		}
		if k := key.(string); slices.Contains(jsonFields, k) {
			known[k] = append(known[k], raw)
		} else if k == caOverlap {
			o.overlap = append(o.overlap, raw)
		} else {
			o.unknown = append(o.unknown, k)
		}
	}
	if _, err := dec.Token(); err != nil {
		return malformed()
	}
	if len(bytes.TrimSpace(content[dec.InputOffset():])) != 0 {
		return malformed()
	}
	o.is, o.known = true, known
	return o
}

// warnings names the unknown keys, unless they look like a secret in the wrong place.
func (o object) warnings() []string {
	var names []string
	hidden := 0
	for _, k := range o.unknown {
		if len(k) <= 32 && k != "" && strings.Trim(k, "abcdefghijklmnopqrstuvwxyz_-") == "" {
			names = append(names, k)
		} else {
			hidden++
		}
	}
	slices.Sort(names)
	var w []string
	for _, k := range slices.Compact(names) {
		w = append(w, fmt.Sprintf("unknown key %s is not published", k))
	}
	if hidden > 0 {
		w = append(w, fmt.Sprintf("unknown keys, not named here, are not published: %d", hidden))
	}
	return w
}
