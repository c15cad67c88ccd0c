package nitrotpm

import (
	"bytes"
	"crypto/rsa"
	"encoding/binary"
	"maps"
	"math"
	"slices"
)

// Handles of hierarchies: TPM 2.0 Library, part 2, table "TPM_RH".
const (
	rhOwner       = 0x40000001
	rhNull        = 0x40000007
	rhEndorsement = 0x4000000b
)

// object is a key: the primary one, which is the same for every template.
type object struct {
	public []byte // TPMT_PUBLIC
	name   []byte
	value  []byte
	key    *rsa.PrivateKey
}

func (t *TPM) exists(handle uint32) bool {
	switch handle >> 24 {
	case 0x01:
		return t.indices[handle] != nil
	case 0x80, 0x81:
		return t.objects[handle] != nil
	}
	return handle == rhOwner || handle == rhNull || handle == rhEndorsement
}

// name returns the name of an entity: of a hierarchy, its handle.
func (t *TPM) name(handle uint32) []byte {
	if x := t.indices[handle]; x != nil {
		return x.name()
	}
	if o := t.objects[handle]; o != nil {
		return o.name
	}
	return binary.BigEndian.AppendUint32(nil, handle)
}

// authValue returns what authorises the use of an entity, without the zeros at its end.
func (t *TPM) authValue(handle uint32) []byte {
	if x := t.indices[handle]; x != nil {
		return x.value
	}
	if o := t.objects[handle]; o != nil {
		return o.value
	}
	if handle == rhOwner && t.shows(FaultOwner) {
		return []byte("a password of the owner's")
	}
	return nil
}

// createPrimary makes an RSA key for any template that has room for it: TPMT_PUBLIC with an empty unique field.
func (t *TPM) createPrimary(c *command, out *writer) uint32 {
	sensitive := reader{rest: c.params.sized()}
	value := sensitive.sized()
	template := c.params.sized()
	c.params.sized() // outsideInfo
	if c.params.u32() != 0 || c.handles[0] == rhNull {
		return parameter(rcValue, 4) // creationPCR
	}
	r := reader{rest: template}
	kind, nameAlg := r.u16(), r.u16()
	r.u32()   // attributes
	r.sized() // policy
	if symmetric := r.u16(); symmetric != algNull {
		r.u16() // bits
		r.u16() // mode
	}
	scheme, bits := r.u16(), r.u16()
	r.u32() // exponent
	fixed := len(template) - len(r.rest)
	r.sized()
	if r.short || kind != algRSA || nameAlg != algSHA256 || scheme != algNull || bits != 2048 {
		return parameter(rcValue, 2)
	}
	key, err := t.key()
	if err != nil {
		return 0x101 // TPM_RC_FAILURE
	}
	public := writer(slices.Clone(template[:fixed]))
	public.sized(key.N.FillBytes(make([]byte, bits/8)))
	o := &object{public: public, value: trim(value), key: key}
	o.name = binary.BigEndian.AppendUint16(nil, nameAlg)
	o.name = append(o.name, digest(nameAlg, public)...)
	handle := uint32(0x80000000)
	for t.objects[handle] != nil {
		handle++
	}
	t.objects[handle] = o

	creation := writer{0, 0, 0, 0} // TPMS_CREATION_DATA: no PCRs
	creation.sized(nil)
	creation = append(creation, 1) // TPMA_LOCALITY
	creation.u16(algNull)
	for range 3 { // parent's name and qualified name, outsideInfo
		creation.sized(nil)
	}
	out.u32(handle)
	out.sized(public)
	out.sized(creation)
	out.sized(digest(nameAlg, creation))
	out.u16(0x8021) // TPM_ST_CREATION
	out.u32(c.handles[0])
	out.sized(random(32))
	out.sized(o.name)
	return 0
}

// evictControl makes a key persistent, or removes one that is.
func (t *TPM) evictControl(c *command, _ *writer) uint32 {
	persistent, handle := c.params.u32(), c.handles[1]
	o := t.objects[handle]
	switch {
	case o == nil:
		return handleRC(2)
	case handle>>24 == 0x81 && handle == persistent:
		delete(t.objects, handle)
	case handle>>24 != 0x80 || persistent>>24 != 0x81:
		return parameter(rcValue, 1)
	case t.objects[persistent] != nil:
		return rcNVDefined
	default:
		t.objects[persistent] = o
	}
	return 0
}

func (t *TPM) readPublic(c *command, out *writer) uint32 {
	o := t.objects[c.handles[0]]
	if o == nil {
		return handleRC(1)
	}
	out.sized(o.public)
	out.sized(o.name)
	out.sized(append([]byte{0, algSHA256}, digest(algSHA256, t.name(rhEndorsement), o.name)...))
	return 0
}

func (t *TPM) flushContext(c *command, _ *writer) uint32 {
	handle := c.params.u32()
	switch {
	case t.sessions[handle] != nil:
		delete(t.sessions, handle)
	case handle>>24 == 0x80 && t.objects[handle] != nil:
		delete(t.objects, handle)
	default:
		return parameter(rcHandle, 1)
	}
	return 0
}

func (t *TPM) getRandom(c *command, out *writer) uint32 {
	out.sized(random(min(int(c.params.u16()), 64)))
	return 0
}

// Capabilities: part 2, "TPM_CAP".
const (
	capHandles    = 1
	capCommands   = 2
	capProperties = 6
)

// properties are the fixed ones that clients ask for: part 2, "TPM_PT". The vendor's name is that of a NitroTPM.
var properties = map[uint32]uint32{
	0x100: 0x322e3000, 0x105: 0x414d5a4e, 0x106: 0x4e697472, 0x107: 0x6f54504d, // "2.0", "AMZN", "Nitr", "oTPM"
	0x10d: 1024, 0x111: 64, 0x117: maxIndex, 0x11e: maxCommand, 0x11f: maxCommand, 0x120: 64, 0x12c: maxNV,
}

func (t *TPM) getCapability(c *command, out *writer) uint32 {
	capability, from, count := c.params.u32(), c.params.u32(), int(c.params.u32())
	var all []uint32
	values := properties
	switch capability {
	case capHandles:
		switch from >> 24 {
		case 0x01:
			all = slices.Collect(maps.Keys(t.indices))
		case 0x02:
			all = slices.Collect(maps.Keys(t.sessions))
		case 0x80, 0x81:
			all = slices.Collect(maps.Keys(t.objects))
		}
		all = slices.DeleteFunc(all, func(h uint32) bool { return h>>24 != from>>24 })
	case capCommands:
		for code := range t.rules {
			if code != ccNSM || !t.shows(FaultForeign) && !t.shows(FaultUnlisted) {
				all = append(all, code)
			}
		}
	case capProperties:
		if t.shows(FaultForeign) {
			values = maps.Clone(properties)
			values[0x106], values[0x107] = 0x53572020, 0x2054504d // "SW   TPM", as swtpm
		}
		all = slices.Collect(maps.Keys(values))
	default:
		return parameter(rcValue, 1)
	}
	slices.Sort(all)
	at, _ := slices.BinarySearch(all, from)
	all = all[at:]
	more := byte(0)
	if count = min(count, 254); len(all) > count { // MAX_CAP_HANDLES
		all, more = all[:count], 1
	}
	*out = append(*out, more)
	out.u32(capability)
	out.u32(uint32(len(all)))
	for _, n := range all {
		switch capability {
		case capCommands: // TPMA_CC: 16 bits of the index, the vendor's bit
			n = n&0xffff | n&0x20000000
			out.u32(n)
		case capProperties:
			out.u32(n)
			out.u32(values[n])
		default:
			out.u32(n)
		}
	}
	return 0
}

// index is an index of NV memory.
type index struct {
	handle     uint32
	nameAlg    uint16
	attributes uint32
	policy     []byte
	value      []byte
	data       []byte
}

// Attributes of an index: part 2, "TPMA_NV".
const (
	nvAuthWrite = 0x00000004
	nvAuthRead  = 0x00040000
	nvNoDA      = 0x02000000
	nvWritten   = 0x20000000
)

func (x *index) public() []byte {
	var w writer
	w.u32(x.handle)
	w.u16(x.nameAlg)
	w.u32(x.attributes)
	w.sized(x.policy)
	w.u16(uint16(len(x.data)))
	return w
}

func (x *index) name() []byte {
	return append(binary.BigEndian.AppendUint16(nil, x.nameAlg), digest(x.nameAlg, x.public())...)
}

// write writes into the data, which is all ones before the first time.
func (x *index) write(data []byte, offset int) {
	if x.attributes&nvWritten == 0 {
		x.attributes |= nvWritten
		copy(x.data, bytes.Repeat([]byte{math.MaxUint8}, len(x.data)))
	}
	copy(x.data[offset:], data)
}

func (t *TPM) nvDefine(c *command, out *writer) uint32 {
	value := c.params.sized()
	public := reader{rest: c.params.sized()}
	x := &index{handle: public.u32(), nameAlg: public.u16(), attributes: public.u32(), policy: public.sized(),
		value: trim(value)}
	size := int(public.u16())
	largest := maxIndex
	if t.shows(FaultForeign) {
		largest = 2048
	}
	used := 256
	for _, other := range t.indices {
		used += 256 + len(other.data)
	}
	switch {
	case public.short || len(public.rest) > 0 || size > largest:
		return parameter(rcSize, 2)
	case c.handles[0] != rhOwner:
		return handleRC(1)
	case x.handle>>24 != 1 || hasher(x.nameAlg) == nil:
		return parameter(rcValue, 2)
	case x.attributes&nvWritten != 0 || x.attributes&(nvAuthRead|nvAuthWrite) != nvAuthRead|nvAuthWrite:
		return parameter(rcAttributes, 2)
	case len(value) > hasher(x.nameAlg)().Size():
		return parameter(rcSize, 1)
	case t.indices[x.handle] != nil:
		return rcNVDefined
	case used+size > room:
		return rcNVSpace
	}
	x.data = make([]byte, size)
	t.indices[x.handle] = x
	return 0
}

func (t *TPM) nvUndefine(c *command, _ *writer) uint32 {
	if t.indices[c.handles[1]] == nil || c.handles[0] != rhOwner {
		return handleRC(2)
	}
	delete(t.indices, c.handles[1])
	return 0
}

func (t *TPM) nvReadPublic(c *command, out *writer) uint32 {
	x := t.indices[c.handles[0]]
	if x == nil {
		return handleRC(1)
	}
	out.sized(x.public())
	out.sized(x.name())
	return 0
}

// opened returns the index of a command that authorises itself by the index's own value.
func (t *TPM) opened(c *command) (*index, uint32) {
	x := t.indices[c.handles[1]]
	if x == nil {
		return nil, handleRC(2)
	}
	if c.handles[0] != c.handles[1] {
		return nil, rcNVAuth
	}
	return x, 0
}

func (t *TPM) nvWrite(c *command, _ *writer) uint32 {
	x, rc := t.opened(c)
	data, offset := c.params.sized(), int(c.params.u16())
	switch {
	case rc != 0:
		return rc
	case c.params.short:
		return rcInsufficient
	case len(data) > maxNV:
		return parameter(rcSize, 1)
	case offset+len(data) > len(x.data):
		return rcNVRange
	}
	x.write(data, offset)
	return 0
}

func (t *TPM) nvRead(c *command, out *writer) uint32 {
	x, rc := t.opened(c)
	size, offset := int(c.params.u16()), int(c.params.u16())
	switch {
	case rc != 0:
		return rc
	case x.attributes&nvWritten == 0:
		return rcNVUnwritten
	case size > maxNV:
		return parameter(rcSize, 1)
	case offset+size > len(x.data):
		return rcNVRange
	}
	out.sized(x.data[offset : offset+size])
	return 0
}
