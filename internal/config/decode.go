package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a configuration or policy file in bytes, maxDepth the nesting that aliases could multiply.
const (
	maxFile  = 1 << 20
	maxNodes = 10_000
)

// place is where a key was set.
type place struct {
	file string
	line int
}

func (p place) String() string {
	if p.file == "" {
		return "default"
	}
	return fmt.Sprintf("%s:%d", p.file, p.line)
}

// decoder fills structs from YAML nodes and collects every mistake on the way.
type decoder struct {
	file   string
	places map[string]place // by key, "mtls.path"
	nodes  int
	errs   []error
}

func (d *decoder) mistake(n *yaml.Node, key, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	if key != "" {
		what = key + ": " + what
	}
	d.errs = append(d.errs, fmt.Errorf("%s:%d: %s", d.file, max(n.Line, 1), what))
}

// read decodes one document into the struct that into points to. An empty file sets nothing.
func (d *decoder) read(data []byte, into any) {
	if len(data) > maxFile {
		d.errs = append(d.errs, fmt.Errorf("%s:1: the file is larger than %d bytes", d.file, maxFile))
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
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		if err != nil {
			d.syntax(err)
		} else {
			d.mistake(&second, "", "a second YAML document; one file holds one")
		}
	}
	d.value(doc.Content[0], "", reflect.ValueOf(into).Elem())
}

// syntax reports an error of the YAML parser, which words them "yaml: line 3: …".
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
	d.errs = append(d.errs, fmt.Errorf("%s:%d: not YAML: %s", d.file, line, text))
}

// value decodes a node into v.
func (d *decoder) value(n *yaml.Node, key string, v reflect.Value) {
	if d.nodes++; d.nodes > maxNodes {
		if d.nodes == maxNodes+1 {
			d.mistake(n, key, "more than %d values in one file", maxNodes)
		}
		return
	}
	if n.Kind == yaml.AliasNode {
		d.mistake(n, key, "an alias; write the value out")
		return
	}
	d.places[key] = place{d.file, n.Line}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a section without keys sets nothing
	}
	if parse := scalarParser(v.Type()); parse != nil {
		if n.Kind != yaml.ScalarNode {
			d.mistake(n, key, "want one value, not a list or a mapping")
			return
		}
		parsed, err := parse(n)
		if err != nil {
			d.mistake(n, key, "%s", err)
			return
		}
		v.Set(reflect.ValueOf(parsed).Convert(v.Type()))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, key, v)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.mistake(n, key, "want a list")
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			d.value(item, fmt.Sprintf("%s[%d]", key, i), list.Index(i))
		}
		v.Set(list)
	default:
		panic("config: no decoder for " + v.Type().String())
	}
}

func (d *decoder) mapping(n *yaml.Node, key string, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.mistake(n, key, "want a mapping with keys such as %s", strings.Join(fieldNames(v.Type())[:1], ", "))
		return
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		full := strings.TrimPrefix(key+"."+name.Value, ".")
		if line, ok := seen[name.Value]; ok {
			d.mistake(name, full, "set twice; first in line %d", line)
			continue
		}
		seen[name.Value] = name.Line
		field, ok := fieldByName(v, name.Value)
		if !ok {
			d.mistake(name, full, "unknown key; there are %s", strings.Join(fieldNames(v.Type()), ", "))
			continue
		}
		d.value(value, full, field)
	}
}

func fieldByName(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("yaml"); tag == name && tag != "-" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func fieldNames(t reflect.Type) (names []string) {
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("yaml"); tag != "" && tag != "-" {
			names = append(names, tag)
		}
	}
	slices.Sort(names)
	return names
}

// scalarParser returns how a type is read from one YAML scalar, or nil for structs and lists.
func scalarParser(t reflect.Type) func(*yaml.Node) (any, error) {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return func(n *yaml.Node) (any, error) {
			d, err := time.ParseDuration(n.Value)
			if err != nil {
				return nil, fmt.Errorf("%q is not a duration such as \"5m\" or \"30s\"", n.Value)
			}
			return d, nil
		}
	case reflect.TypeFor[fs.FileMode]():
		return func(n *yaml.Node) (any, error) {
			mode, err := strconv.ParseUint(n.Value, 8, 32)
			if err != nil || mode > 0o777 {
				return nil, fmt.Errorf("%q is not an octal mode such as \"0440\"", n.Value)
			}
			return fs.FileMode(mode), nil
		}
	case reflect.TypeFor[Owner]():
		return func(n *yaml.Node) (any, error) {
			uid, gid, _ := strings.Cut(n.Value, ":")
			u, errU := strconv.ParseUint(uid, 10, 31)
			g, errG := strconv.ParseUint(gid, 10, 31)
			if errU != nil || errG != nil {
				return nil, fmt.Errorf("%q is not numeric \"uid:gid\"", n.Value)
			}
			return Owner{UID: int(u), GID: int(g)}, nil
		}
	}
	switch t.Kind() {
	case reflect.String:
		return func(n *yaml.Node) (any, error) {
			if n.Tag != "!!str" {
				return nil, fmt.Errorf("%s is not text; quote it", n.Value)
			}
			return n.Value, nil
		}
	case reflect.Bool:
		return func(n *yaml.Node) (any, error) {
			if n.Tag != "!!bool" {
				return nil, fmt.Errorf("%q is neither true nor false", n.Value)
			}
			return n.Value == "true" || n.Value == "True" || n.Value == "TRUE", nil
		}
	case reflect.Float64:
		return func(n *yaml.Node) (any, error) {
			f, err := strconv.ParseFloat(n.Value, 64)
			if err != nil {
				return nil, fmt.Errorf("%q is not a number", n.Value)
			}
			return f, nil
		}
	case reflect.Int, reflect.Uint8, reflect.Uint32, reflect.Uint64:
		return func(n *yaml.Node) (any, error) {
			i, err := strconv.ParseInt(n.Value, 0, 64)
			if err != nil || i < 0 && t.Kind() != reflect.Int || t.Kind() == reflect.Uint8 && i > 0xff || t.Kind() == reflect.Uint32 && i > 0xffffffff {
				return nil, fmt.Errorf("%q is not a whole number in range", n.Value)
			}
			return i, nil
		}
	}
	return nil
}

// readFile reads at most maxFile bytes and one more.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}
