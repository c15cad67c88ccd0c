// Package search finds private keys in bytes of all kinds, so that a test can prove that they are not there.
package search

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

const (
	// piece is how much of a secret is enough to be found. All pieces of a secret are looked for as they are, so that
	// parts that lie apart are found, and the first one as text.
	piece = 8
	// chunk is how much is searched at once, overlap how much of it again: more than a key, as a PEM file in JSON.
	chunk   = 1 << 20
	overlap = 64 << 10
	// minRun is the shortest text that is decoded. What is shorter is found as text.
	minRun = 24
	// maxDepth is how often what was decoded is decoded again: a certificate request is base64 in PEM, in base64 in
	// JSON, in base64 in a JSON web signature.
	maxDepth = 5
)

// Searcher looks for many secrets at once: in every form that Forms has, and in what base64, hex and lists of bytes
// stand for.
type Searcher struct {
	needles map[uint64][]needle // by their first 8 bytes
	mayBe   []uint64            // a bit for each hash of them
}

type needle struct {
	name, form string
	rest       []byte // after the first 8 bytes
}

// Hit is a place where a secret was found.
type Hit struct {
	Name string
	Form string // the outermost encoding first
}

// New returns a Searcher that looks for nothing.
func New() *Searcher {
	return &Searcher{needles: make(map[uint64][]needle), mayBe: make([]uint64, 1<<16)}
}

// Add has a secret looked for, such as the scalar of a private key. It has to be random, and 32 bytes or longer.
func (s *Searcher) Add(name string, secret []byte) {
	for form, texts := range Forms(secret) {
		for _, text := range texts {
			first := binary.BigEndian.Uint64(text)
			s.needles[first] = append(s.needles[first], needle{name, form, text[8:]})
			h := hash(first)
			s.mayBe[h>>6] |= 1 << (h & 63)
		}
	}
}

// hash returns 22 bits.
func hash(first uint64) uint64 { return first * 0x9e3779b97f4a7c15 >> 42 }

// Forms returns what to look for, by the name of the encoding. The secret may begin and end anywhere in what is
// encoded.
func Forms(secret []byte) map[string][][]byte {
	reversed := slices.Clone(secret)
	slices.Reverse(reversed)
	forms := make(map[string][][]byte)
	for _, order := range []struct {
		name  string
		bytes []byte
	}{{"", secret}, {"reversed ", reversed}} {
		add := func(form, text string) {
			forms[order.name+form] = append(forms[order.name+form], []byte(text))
		}
		for p := range slices.Chunk(order.bytes, piece) {
			if len(p) == piece {
				add("raw", string(p))
			}
		}
		first := order.bytes[:piece]
		add("hex", fmt.Sprintf("%x", first))
		add("HEX", fmt.Sprintf("%X", first))
		add("decimal", new(big.Int).SetBytes(order.bytes).String()[:2*piece])
		for before := range 3 { // bytes in the same group of three
			for name, e := range map[string]*base64.Encoding{
				"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding,
			} {
				text := e.EncodeToString(append(make([]byte, before), order.bytes...))
				text = text[(before*8+5)/6:] // without what depends on the bytes before
				add(fmt.Sprintf("%s at %d", name, before), text[:2*piece])
			}
		}
	}
	return forms
}

// Search returns the secrets that are in data, each once, by their names.
func (s *Searcher) Search(data []byte) map[string]Hit {
	found := make(map[string]Hit)
	for begin := 0; ; begin += chunk {
		s.search(data[begin:min(begin+chunk+overlap, len(data))], "", 0, found)
		if begin+chunk >= len(data) {
			return found
		}
	}
}

// search looks at data, at its text without line breaks, and at what that decodes to.
func (s *Searcher) search(data []byte, path string, depth int, found map[string]Hit) {
	s.scan(data, path, found)
	if depth == maxDepth {
		return
	}
	for _, base := range []int{10, 16} {
		for list := range lists(data, base) {
			s.search(list, path+"list: ", depth+1, found)
		}
	}
	for run := range runs(data) {
		s.scan(run, path+"text: ", found)
		if len(run) < minRun {
			continue
		}
		for phase := range 4 { // what comes before may have been joined to it
			if decoded := decode(run[phase:]); len(decoded) > 0 {
				s.search(decoded, path+"base64: ", depth+1, found)
			}
		}
		for digits := range bytes.FieldsFuncSeq(run, func(r rune) bool { return !isHex(byte(r)) }) {
			for phase := range min(2, len(digits)/minRun*2) {
				decoded := make([]byte, len(digits)/2)
				n, _ := hex.Decode(decoded, digits[phase:len(digits)-(len(digits)-phase)%2])
				s.search(decoded[:n], path+"hex: ", depth+1, found)
			}
		}
	}
}

// scan looks at data as it is.
func (s *Searcher) scan(data []byte, path string, found map[string]Hit) {
	var window uint64
	for i, b := range data {
		window = window<<8 | uint64(b)
		if i < 7 {
			continue
		}
		if h := hash(window); s.mayBe[h>>6]&(1<<(h&63)) == 0 {
			continue
		}
		for _, n := range s.needles[window] {
			if _, known := found[n.name]; !known && bytes.HasPrefix(data[i+1:], n.rest) {
				found[n.name] = Hit{n.name, path + n.form}
			}
		}
	}
}

// lists yields what lists of bytes stand for: decimal, as Go and JSON print them, or hex, as openssl, dumps and Go
// source have them.
func lists(data []byte, base int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		var list []byte
		value, digits := 0, 0
		for i := 0; i <= len(data); i++ {
			c := byte(']')
			if i < len(data) {
				c = data[i]
			}
			digit := strings.IndexByte("0123456789abcdef", c|' ')
			switch {
			case '0' <= c && digit >= 0 && digit < base && digits < 3:
				value, digits = value*base+digit, digits+1
				continue
			case c == 'x' && digits == 1 && value == 0:
				digits = 0
				continue
			}
			inList := value < 256 && strings.IndexByte(" ,:\r\n\t", c) >= 0
			if digits > 0 && value < 256 {
				list = append(list, byte(value))
			}
			value, digits = 0, 0
			if inList {
				continue
			}
			if len(list) >= minRun && !yield(list) {
				return
			}
			list = list[:0]
		}
	}
}

// runs yields the stretches of data that may be base64, of both alphabets, without what breaks it into lines: in a
// file, in JSON, in JSON in JSON, and in a URL. The armor of PEM does not belong to them.
func runs(data []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		var run []byte
		flush := func() bool {
			for part := range bytes.SplitSeq(run, []byte("-----")) {
				if len(part) >= 2*piece && !yield(part) {
					return false
				}
			}
			run = run[:0]
			return true
		}
		for i := 0; i < len(data); {
			c, n := unescape(data[i:])
			switch {
			case isBase64(c):
				run = append(run, c)
			case c == '\n' || c == '\r':
				for i+n < len(data) && (data[i+n] == ' ' || data[i+n] == '\t') { // an indented block
					n++
				}
			default:
				if len(run) > 0 && !flush() {
					return
				}
			}
			i += n
		}
		flush()
	}
}

// unescape returns the first character of a text, and how many bytes stand for it: more than one for what JSON, any
// number of times, and URLs escape.
func unescape(text []byte) (c byte, n int) {
	switch c = text[0]; c {
	case '\\':
		n = len(text) - len(bytes.TrimLeft(text, `\`))
		if n == len(text) {
			return ' ', n
		}
		switch c = text[n]; c {
		case 'n', 'r':
			return '\n', n + 1
		case '/':
			return c, n + 1
		case 'u':
			var code [2]byte
			if len(text) >= n+5 {
				if _, err := hex.Decode(code[:], text[n+1:n+5]); err == nil && code[0] == 0 {
					return code[1], n + 5
				}
			}
		}
		return ' ', n
	case '%':
		var code [1]byte
		if len(text) >= 3 {
			if _, err := hex.Decode(code[:], text[1:3]); err == nil {
				return code[0], 3
			}
		}
		return ' ', 1
	}
	return c, 1
}

func isBase64(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("+/-_", c) >= 0
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// decode decodes base64 of either alphabet as far as it goes.
func decode(run []byte) []byte {
	text := bytes.Map(func(r rune) rune {
		switch r {
		case '-':
			return '+'
		case '_':
			return '/'
		}
		return r
	}, run)
	text = text[:len(text)-len(text)%4]
	decoded := make([]byte, base64.RawStdEncoding.DecodedLen(len(text)))
	n, _ := base64.RawStdEncoding.Decode(decoded, text)
	return decoded[:n]
}
