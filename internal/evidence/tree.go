package evidence

import (
	"crypto/sha512"
	"fmt"
	"math/bits"
)

// MaxDepth bounds the inclusion path of a batch, and with it the batch: 2^MaxDepth leaves.
const MaxDepth = 16

// Tree is a Merkle tree over the leaves of one batch. Leaves are padded to a power of two with a fixed value,
// so that the bits of a leaf's index alone say on which side each sibling stands.
type Tree struct {
	// levels[0] are the leaves; a level holds only nodes that cover a real leaf, pads[i] stands for the others.
	levels [][][Size]byte
}

// pads[i] is the root of a subtree of depth i that holds padding only.
var pads = func() (p [MaxDepth][Size]byte) {
	p[0] = sha512.Sum512([]byte(padLabel))
	for i := 1; i < len(p); i++ {
		p[i] = node(p[i-1], p[i-1])
	}
	return p
}()

func node(left, right [Size]byte) [Size]byte {
	b := make([]byte, 0, len(nodeLabel)+2*Size)
	b = append(b, nodeLabel...)
	b = append(b, left[:]...)
	b = append(b, right[:]...)
	return sha512.Sum512(b)
}

// NewTree builds the tree of 1 to 2^MaxDepth leaves. The root of a lone leaf is that leaf.
func NewTree(leaves [][Size]byte) *Tree {
	if len(leaves) == 0 || len(leaves) > 1<<MaxDepth {
		panic(fmt.Sprintf("evidence: a batch of %d leaves", len(leaves)))
	}
	t := &Tree{levels: [][][Size]byte{leaves}}
	for depth := range bits.Len(uint(len(leaves) - 1)) {
		below := t.levels[depth]
		level := make([][Size]byte, (len(below)+1)/2)
		for i := range level {
			right := pads[depth]
			if 2*i+1 < len(below) {
				right = below[2*i+1]
			}
			level[i] = node(below[2*i], right)
		}
		t.levels = append(t.levels, level)
	}
	return t
}

// Root returns the value that becomes REPORT_DATA.
func (t *Tree) Root() [Size]byte { return t.levels[len(t.levels)-1][0] }

// Path returns the siblings of leaf i from the bottom up.
func (t *Tree) Path(i int) [][Size]byte {
	path := make([][Size]byte, 0, len(t.levels)-1)
	for depth, level := range t.levels[:len(t.levels)-1] {
		sibling := (i >> depth) ^ 1
		if sibling < len(level) {
			path = append(path, level[sibling])
		} else {
			path = append(path, pads[depth])
		}
	}
	return path
}

// Root recomputes the root from a leaf, its index and its path.
func Root(leaf [Size]byte, index int, path [][Size]byte) ([Size]byte, error) {
	if len(path) > MaxDepth {
		return leaf, fmt.Errorf("inclusion path of %d steps, at most %d are allowed", len(path), MaxDepth)
	}
	if index < 0 || index >= 1<<len(path) {
		return leaf, fmt.Errorf("index %d does not fit an inclusion path of %d steps", index, len(path))
	}
	h := leaf
	for depth, sibling := range path {
		if index>>depth&1 == 0 {
			h = node(h, sibling)
		} else {
			h = node(sibling, h)
		}
	}
	return h, nil
}
