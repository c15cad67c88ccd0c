package client

import (
	"iter"
	"maps"
	"slices"
)

// All returns the checks with their names, in the order of these.
func (h *Health) All() iter.Seq2[string, Check] {
	return func(yield func(string, Check) bool) {
		for _, name := range slices.Sorted(maps.Keys(h.Checks)) {
			for _, c := range h.Checks[name] {
				if !yield(name, c) {
					return
				}
			}
		}
	}
}
