package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"sevagent/internal/pattern"
	"sevagent/internal/suggest"
)

// maxNodes bounds the keys and values that are looked at in one file. Aliases, which could multiply them, are refused.
const maxNodes = 10_000

// decoder fills structs from YAML, driven by their yaml tags, and collects every mistake on the way.
type decoder struct {
	mistakes
	file  string // the one being read
	order int
	root  reflect.Type // what it is read into, for suggestions
	nodes int

	unknowns int // unknown keys in the file
}

func newDecoder() *decoder {
	return &decoder{mistakes: mistakes{places: make(map[string]place), failed: make(map[string]bool)}}
}

func (d *decoder) line(n int) place { return place{d.file, d.order, max(n, 1)} }

// wrong records a mistake in a node.
func (d *decoder) wrong(n *yaml.Node, key, format string, args ...any) {
	d.failed[key] = true
	d.at(d.line(n.Line), key, format, args...)
}

// read decodes the one document of a file into the struct that into points to. An empty file sets nothing.
func (d *decoder) read(file string, data []byte, into any) {
	d.file, d.nodes, d.unknowns = file, 0, 0
	d.order++
	d.root = reflect.TypeOf(into).Elem()
	if len(data) > maxFile {
		d.at(d.line(1), "", "the file is larger than %d bytes", maxFile)
		return
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			d.syntax(err)
		}
		return
	}
	d.value(doc.Content[0], "", reflect.ValueOf(into).Elem())
	if err := dec.Decode(&second); err == nil {
		d.at(d.line(second.Line), "", "a second YAML document; one file holds one")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
	}
}

// syntax reports an error of the YAML parser, which words them "yaml: line 3: …". After one, the rest of the file
// cannot be read.
func (d *decoder) syntax(err error) {
	text := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " ")
	line := 1
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				line, text = n, what
			}
		}
	}
	d.at(d.line(line), "", "not YAML: %s", quotedPart.ReplaceAllStringFunc(text, cut))
}

// quotedPart is what the YAML parser repeats of the file.
var quotedPart = pattern.New(`'.*'`)

// count reports whether another node may be looked at.
func (d *decoder) count(n *yaml.Node) bool {
	if d.nodes++; d.nodes == maxNodes+1 {
		d.at(d.line(n.Line), "", "more than %d keys and values in one file", maxNodes)
	}
	return d.nodes <= maxNodes
}

// value decodes a node into v.
func (d *decoder) value(n *yaml.Node, key string, v reflect.Value) {
	if !d.count(n) {
		return
	}
	d.places[key] = d.line(n.Line)
	delete(d.failed, key) // what an earlier file had there is gone
	switch {
	case n.Kind == yaml.AliasNode:
		d.wrong(n, key, "an alias; write the value out")
		return
	case n.Style&yaml.TaggedStyle != 0:
		d.wrong(n, key, "a tag, %s; leave it out", quote(cut(n.Tag)))
		return
	}
	if parse := scalarParser(v.Type()); parse != nil {
		if n.Kind != yaml.ScalarNode {
			d.wrong(n, key, "want one value, not a list or a mapping")
		} else if n.Tag == "!!null" {
			d.wrong(n, key, "no value; give one or remove the key")
		} else if parsed, err := parse(n); err != nil {
			d.wrong(n, key, "%s", err)
		} else {
			v.Set(reflect.ValueOf(parsed).Convert(v.Type()))
		}
		return
	}
	if v.Type() == reflect.TypeFor[Secret]() {
		delete(d.places, key+".name") // of an earlier file
		if n.Kind == yaml.ScalarNode {
			d.value(n, key, v.FieldByName("Name"))
			return
		}
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, key, v)
	case reflect.Slice:
		d.list(n, key, v)
	default:
		panic("config: no decoder for " + v.Type().String())
	}
}

// list decodes a list, which replaces the one that was there.
func (d *decoder) list(n *yaml.Node, key string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		what := "want a list"
		if n.Tag == "!!null" {
			what = "no value; write [] for an empty list"
		}
		d.wrong(n, key, "%s", what)
		return
	}
	list := reflect.MakeSlice(v.Type(), 0, min(len(n.Content), maxNodes))
	for i, item := range n.Content {
		if d.nodes >= maxNodes {
			d.count(item)
			break
		}
		list = list.Slice(0, i+1)
		d.value(item, fmt.Sprintf("%s[%d]", key, i), list.Index(i))
	}
	v.Set(list)
}

// mapping decodes the keys that are there into the fields of v and leaves the others as they are.
func (d *decoder) mapping(n *yaml.Node, key string, v reflect.Value) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a section without keys
	}
	if n.Kind != yaml.MappingNode {
		d.wrong(n, key, "want a mapping with the keys %s", strings.Join(fieldNames(v.Type()), ", "))
		return
	}
	if key == "" && d.foreign(n) {
		what := "configuration"
		if d.root != reflect.TypeFor[Config]() {
			what = "policy"
		}
		d.at(d.line(n.Line), "", "not a %s: %s and all other keys are unknown; there are %s",
			what, quote(cut(n.Content[0].Value)), strings.Join(fieldNames(d.root), ", "))
		return
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		if !d.count(name) {
			return
		}
		if name.Kind != yaml.ScalarNode {
			d.at(d.line(name.Line), key, "a key that is not a word")
			continue
		}
		word := name.Value
		if len(word) > 24 || !plainKey.MatchString(word) {
			word = quote(cut(word)) // a key may be any text, and is none of ours
		}
		full := strings.TrimPrefix(key+"."+word, ".")
		if line, ok := seen[name.Value]; ok {
			d.at(d.line(name.Line), full, "set twice, first in line %d", line)
			continue
		}
		seen[name.Value] = name.Line
		if field, ok := fieldByName(v, name.Value); ok {
			d.value(value, full, field)
		} else {
			d.unknown(name, full, v.Type())
		}
	}
}

var plainKey = pattern.New(`^[A-Za-z0-9_-]+$`)

func fieldByName(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("yaml"); tag == name && tag != "-" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// fieldNames returns the keys of a struct, in its order.
func fieldNames(t reflect.Type) (names []string) {
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("yaml"); tag != "" && tag != "-" {
			names = append(names, tag)
		}
	}
	return names
}

// unknown reports a key that is none, up to a few in a file: one with more of them is likely to be another file, which
// may hold what no log should.
func (d *decoder) unknown(n *yaml.Node, full string, t reflect.Type) {
	const most = 5
	switch d.unknowns++; {
	case d.unknowns > most+1:
	case d.unknowns > most:
		d.at(d.line(n.Line), "", "more unknown keys from here on")
	default:
		text := "there are " + strings.Join(fieldNames(t), ", ")
		if best := d.similar(n.Value, t); best != "" {
			text = "did you mean " + best + "?"
		}
		d.at(d.line(n.Line), full, "unknown key; %s", text)
	}
}

// foreign reports whether a file has several keys, and none of them could be meant.
func (d *decoder) foreign(n *yaml.Node) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i].Value
		if slices.Contains(fieldNames(d.root), name) || d.similar(name, d.root) != "" {
			return false
		}
	}
	return len(n.Content) > 2
}

// similar returns what an unknown key may have been meant to be: a similar one in the same mapping, or the same word in
// another section.
func (d *decoder) similar(name string, t reflect.Type) string {
	return cmp.Or(suggest.Closest(name, fieldNames(t)), elsewhere(name, "", d.root))
}

// cut leaves a few characters of what may not be meant for a log.
func cut(s string) string {
	const most = 8
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}

// elsewhere returns the full name of the first key below t whose last word is name.
func elsewhere(name, prefix string, t reflect.Type) string {
	if t.Kind() != reflect.Struct || scalarParser(t) != nil {
		return ""
	}
	for i := range t.NumField() {
		tag := t.Field(i).Tag.Get("yaml")
		switch {
		case tag == "" || tag == "-":
			continue
		case tag == name:
			return prefix + tag
		}
		if found := elsewhere(name, prefix+tag+".", t.Field(i).Type); found != "" {
			return found
		}
	}
	return ""
}

// scalarParser returns how a type is read from one YAML scalar, or nil for structs and lists.
//
// Modes and owners are read from the text as it stands in the file: without quotes, YAML takes 0440 for a number,
// and other versions of it take 0:0 for one to the base of 60.
func scalarParser(t reflect.Type) func(*yaml.Node) (any, error) {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return parseDuration
	case reflect.TypeFor[fs.FileMode]():
		return parseMode
	case reflect.TypeFor[Owner]():
		return parseOwner
	}
	switch t.Kind() {
	case reflect.String:
		return parseText
	case reflect.Bool:
		return parseBool
	case reflect.Float64:
		return parseNumber
	case reflect.Int, reflect.Uint8, reflect.Uint32, reflect.Uint64:
		return func(n *yaml.Node) (any, error) { return parseWhole(n, t) }
	}
	return nil
}

func parseDuration(n *yaml.Node) (any, error) {
	d, err := time.ParseDuration(n.Value)
	if err != nil {
		return nil, fmt.Errorf("%s is not a duration such as \"5m\"", quote(n.Value))
	}
	return d, nil
}

func parseMode(n *yaml.Node) (any, error) {
	mode, err := strconv.ParseUint(n.Value, 8, 32)
	if err != nil || mode > 0o777 {
		return nil, fmt.Errorf("%s is not an octal mode such as \"0400\", at most \"0777\"", quote(n.Value))
	}
	return fs.FileMode(mode), nil
}

func parseOwner(n *yaml.Node) (any, error) {
	uid, gid, _ := strings.Cut(n.Value, ":")
	u, errU := strconv.ParseUint(uid, 10, 31)
	g, errG := strconv.ParseUint(gid, 10, 31)
	if errU != nil || errG != nil {
		return nil, fmt.Errorf("%s is not a numeric uid:gid such as \"0:0\"", quote(n.Value))
	}
	return Owner{UID: int(u), GID: int(g)}, nil
}

func parseText(n *yaml.Node) (any, error) {
	if n.Tag != "!!str" {
		return nil, fmt.Errorf("%.64s is not text; put it in quotes", n.Value) // a number or the like, so on one line
	}
	return n.Value, nil
}

func parseBool(n *yaml.Node) (any, error) {
	if n.Tag != "!!bool" {
		return nil, fmt.Errorf("%s is neither true nor false", quote(n.Value))
	}
	return strings.EqualFold(n.Value, "true"), nil
}

func parseNumber(n *yaml.Node) (any, error) {
	f, err := strconv.ParseFloat(n.Value, 64)
	if err != nil || n.Tag != "!!int" && n.Tag != "!!float" {
		return nil, fmt.Errorf("%s is not a number", quote(n.Value))
	}
	return f, nil
}

// parseWhole takes decimal numbers without a leading zero, which YAML's versions read differently, and 0x….
func parseWhole(n *yaml.Node, t reflect.Type) (any, error) {
	digits, base := n.Value, 10
	if hex, ok := strings.CutPrefix(digits, "0x"); ok {
		digits, base = hex, 16
	} else if len(digits) > 1 && digits[0] == '0' {
		base = 1 // wrong
	}
	if n.Tag == "!!int" && base > 1 {
		if t.Kind() == reflect.Int {
			if i, err := strconv.ParseInt(digits, base, t.Bits()); err == nil {
				return i, nil
			}
		} else if u, err := strconv.ParseUint(digits, base, t.Bits()); err == nil {
			return u, nil
		}
	}
	if t.Kind() == reflect.Int {
		return nil, fmt.Errorf("%s is not a whole number", quote(n.Value))
	}
	return nil, fmt.Errorf("%s is not a whole number from 0 to %d", quote(n.Value), uint64(1<<t.Bits()-1))
}
