// Package strictjson reads JSON that crosses a trust boundary. encoding/json takes what others read differently: names
// in any case, names that stand twice, unknown names, one value in several spellings. Here a text has one reading,
// whatever reads it, or it is refused. The package is pure.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"unicode/utf8"
)

// MaxDepth bounds how deep objects and arrays are nested; the outermost counts as one.
const MaxDepth = 16

// maxInteger is the largest magnitude that every reader keeps: many hold numbers as IEEE 754 doubles (RFC 7493,
// section 2.2).
const maxInteger = 1<<53 - 1

// Unmarshal decodes the one JSON value in data into a pointer to a zero value. It accepts only what encoding/json
// writes for the decoded value, up to blanks, the order of members and escapes within strings. Hence:
//
//   - Names are spelled as the struct's tags spell them, and none stands twice in an object.
//   - No member is unknown, and none is missing, except that a member with omitempty or omitzero is there if and only
//     if it is not empty.
//   - Numbers are integers within ±(2^53-1), spelled as such: no fraction, no exponent, no -0.
//   - There is no null. Strings are valid UTF-8 without lone surrogates; in []byte, base64 is canonical.
//   - Objects and arrays are nested at most MaxDepth deep.
//
// All but the second rule holds within json.RawMessage, too. After an error the value at into is undefined.
func Unmarshal(data []byte, into any) error {
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	// The decoder goes first: it refuses what is not JSON, which tree and loneSurrogate rely on.
	decodeErr := json.Unmarshal(data, into)
	if _, ok := errors.AsType[*json.SyntaxError](decodeErr); ok {
		return fmt.Errorf("not one JSON value: %w", decodeErr)
	}
	got, err := tree(data, false)
	if err != nil {
		return err
	}
	if loneSurrogate(data) {
		return errors.New("a string has half a surrogate pair")
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](decodeErr); ok {
		return fmt.Errorf("%sunexpected %s", at(e.Field), e.Value)
	}
	if decodeErr != nil {
		return decodeErr
	}
	again, err := json.Marshal(into)
	if err != nil {
		return err
	}
	want, err := tree(again, true)
	if err != nil {
		return err
	}
	return compare("", got, want)
}

// tree returns valid JSON as maps, slices, strings, bools and json.Numbers, and refuses what no type makes good. It
// accepts null if told so, since encoding/json writes it for what is missing.
func tree(data []byte, null bool) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return reader{dec, null}.value("", 1)
}

type reader struct {
	*json.Decoder
	null bool
}

// value reads the value at path, at this depth.
func (r reader) value(path string, depth int) (any, error) {
	token, err := r.Token()
	if err != nil {
		return nil, err
	}
	switch token := token.(type) {
	case nil:
		if !r.null {
			return nil, fmt.Errorf("%sa null; leave out what is absent", at(path))
		}
	case json.Number:
		if !integer(token.String()) {
			return nil, fmt.Errorf("%sa number that is not an integer of at most 53 bits, or not spelled as one",
				at(path))
		}
	case json.Delim:
		if depth > MaxDepth {
			return nil, fmt.Errorf("%snested more than %d deep", at(path), MaxDepth)
		}
		if token == '{' {
			return r.object(path, depth)
		}
		return r.array(path, depth)
	}
	return token, nil
}

func (r reader) object(path string, depth int) (any, error) {
	members := make(map[string]any)
	for r.More() {
		token, err := r.Token()
		if err != nil {
			return nil, err
		}
		name := token.(string) // since data is valid JSON
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("%smember %s stands twice", at(path), quote(name))
		}
		if members[name], err = r.value(join(path, name), depth+1); err != nil {
			return nil, err
		}
	}
	_, err := r.Token()
	return members, err
}

func (r reader) array(path string, depth int) (any, error) {
	items := []any{}
	for r.More() {
		item, err := r.value(path+"["+strconv.Itoa(len(items))+"]", depth+1)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	_, err := r.Token()
	return items, err
}

// integer reports whether a JSON number is an integer in its only spelling, and of at most 53 bits.
func integer(number string) bool {
	n, err := strconv.ParseInt(number, 10, 64)
	return err == nil && -maxInteger <= n && n <= maxInteger && strconv.FormatInt(n, 10) == number
}

// loneSurrogate reports whether a string in valid JSON escapes half a surrogate pair, which decoders replace, keep or
// refuse.
func loneSurrogate(data []byte) bool {
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' { // occurs in strings only
			continue
		}
		i++
		if data[i] != 'u' {
			continue
		}
		switch unit := unit(data[i:]); {
		case unit < 0xD800 || unit > 0xDFFF:
		case unit < 0xDC00 && data[i+5] == '\\' && data[i+6] == 'u' && unit2(data[i+6:]):
			i += 6
		default:
			return true
		}
	}
	return false
}

// unit returns the UTF-16 code unit of an escape, from its u on.
func unit(escape []byte) uint64 {
	n, _ := strconv.ParseUint(string(escape[1:5]), 16, 16) // four digits: it is valid JSON
	return n
}

// unit2 reports whether an escape is the second half of a pair.
func unit2(escape []byte) bool { return unit(escape) >= 0xDC00 && unit(escape) <= 0xDFFF }

// compare reports where a text differs from what encoding/json writes for the value that it gives.
func compare(path string, got, want any) error {
	switch got := got.(type) {
	case map[string]any:
		want, _ := want.(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(got)) {
			if _, ok := want[name]; !ok {
				return fmt.Errorf("%sunknown or empty member %s", at(path), quote(name))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if _, ok := got[name]; !ok {
				return fmt.Errorf("%smissing member %s", at(path), quote(name))
			}
			if err := compare(join(path, name), got[name], want[name]); err != nil {
				return err
			}
		}
	case []any:
		want, _ := want.([]any)
		if len(got) != len(want) {
			return fmt.Errorf("%snot in canonical form", at(path))
		}
		for i := range got {
			if err := compare(path+"["+strconv.Itoa(i)+"]", got[i], want[i]); err != nil {
				return err
			}
		}
	default:
		if !reflect.DeepEqual(got, want) {
			return fmt.Errorf("%snot in canonical form", at(path))
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return quote(name)
	}
	return path + "." + quote(name)
}

// at introduces what is wrong at path.
func at(path string) string {
	if path == "" {
		return ""
	}
	return path + ": "
}

// quote returns a name as it stands if it is a plain word, and otherwise quoted, in ASCII: the text is a stranger's.
func quote(name string) string {
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '.' {
			return strconv.QuoteToASCII(name)
		}
	}
	if name == "" {
		return `""`
	}
	return name
}
