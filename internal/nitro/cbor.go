package nitro

import "fmt"

// Major types of CBOR items: RFC 8949, section 3.1.
const (
	majorUint = iota
	majorNegative
	majorBytes
	majorText
	majorArray
	majorMap
	majorTag
	majorSimple
)

const (
	indefinite = 31   // additional information of an item without a length
	stop       = 0xff // ends such an item
	null       = 0xf6
)

// maxDepth bounds how deep items that nobody asked for are nested.
const maxDepth = 4

// reader reads CBOR as AWS writes it: maps and arrays may have no length. After the first mistake it returns zero
// values, and ends every loop. Strings in pieces and tags are mistakes.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%d bytes before the end of the CBOR: %s", len(r.rest), fmt.Sprintf(format, args...))
	}
}

// head reads the head of an item. n is its number, length or value; many reports that the length is indefinite.
func (r *reader) head() (major byte, n uint64, many bool) {
	if r.err == nil && len(r.rest) == 0 {
		r.fail("it is cut off")
	}
	if r.err != nil {
		return majorSimple, 0, false
	}
	first := r.rest[0]
	major, n = first>>5, uint64(first&31)
	size := 0
	switch {
	case n == indefinite:
		if major != majorArray && major != majorMap {
			r.fail("an item of the major type %d has no length", major)
			return majorSimple, 0, false
		}
		many = true
	case n > 27:
		r.fail("a reserved head %#x", first)
		return majorSimple, 0, false
	case n > 23:
		size = 1 << (n - 24)
	}
	if len(r.rest) < 1+size {
		r.fail("it is cut off")
		return majorSimple, 0, false
	}
	if size > 0 {
		n = 0
		for _, b := range r.rest[1 : 1+size] {
			n = n<<8 | uint64(b)
		}
	}
	r.rest = r.rest[1+size:]
	return major, n, many
}

// want reads the head of an item of one major type, with a length.
func (r *reader) want(major byte, what string) uint64 {
	got, n, many := r.head()
	if r.err == nil && (got != major || many) {
		r.fail("%s is an item of the major type %d, want %d", what, got, major)
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *reader) uint(what string) uint64 { return r.want(majorUint, what) }

// bytes reads a byte string of at most most bytes, whose slice is not a copy.
func (r *reader) bytes(most int, what string) []byte {
	return r.take(r.want(majorBytes, what), most, what)
}

func (r *reader) text(most int, what string) string {
	return string(r.take(r.want(majorText, what), most, what))
}

func (r *reader) take(n uint64, most int, what string) []byte {
	if r.err == nil && (n > uint64(most) || n > uint64(len(r.rest))) {
		r.fail("%s has %d bytes; at most %d are allowed, and %d are there", what, n, most, len(r.rest))
	}
	if r.err != nil {
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// optional reads a byte string or null. The result is nil for null only.
func (r *reader) optional(most int, what string) []byte {
	if r.err == nil && len(r.rest) > 0 && r.rest[0] == null {
		r.rest = r.rest[1:]
		return nil
	}
	return r.bytes(most, what)
}

// items calls item for each item of an array, or for each key of a map, of which there may be at most most.
func (r *reader) items(major byte, most int, what string, item func()) {
	got, n, many := r.head()
	if r.err == nil && got != major {
		r.fail("%s is an item of the major type %d, want %d", what, got, major)
	}
	r.each(n, many, most, what, item)
}

func (r *reader) each(n uint64, many bool, most int, what string, item func()) {
	for i := uint64(0); r.err == nil && (many || i < n); i++ {
		if many && len(r.rest) > 0 && r.rest[0] == stop {
			r.rest = r.rest[1:]
			return
		}
		if i >= uint64(most) || !many && n > uint64(most) {
			r.fail("%s has more than %d entries", what, most)
			return
		}
		item()
	}
}

// skip passes over an item of any type but a tag.
func (r *reader) skip(depth int) {
	major, n, many := r.head()
	const most = 64
	switch {
	case r.err != nil:
	case depth == 0:
		r.fail("nested too deep")
	case major == majorBytes || major == majorText:
		r.take(n, MaxDocument, "a string")
	case major == majorArray:
		r.each(n, many, most, "an array", func() { r.skip(depth - 1) })
	case major == majorMap:
		r.each(n, many, most, "a map", func() { r.skip(depth - 1); r.skip(depth - 1) })
	case major == majorTag:
		r.fail("a tag")
	}
}

// end returns the first mistake, which may be that something follows.
func (r *reader) end() error {
	if len(r.rest) > 0 {
		r.fail("the item ends, and something follows")
	}
	return r.err
}
