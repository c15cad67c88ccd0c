// Package suggest finds what a mistyped word was meant to be.
package suggest

// Closest returns the known word that is closest to word, or "" if none is close: more than a third of it would have to
// change.
func Closest(word string, known []string) string {
	best, bestDistance := "", 1+len(word)/3
	for _, k := range known {
		if d := distance(word, k); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is how many bytes have to be replaced, added, removed or swapped with the next. What is far longer than any
// word that we know is far from all of them.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	var before, last []int // the rows for the two bytes of a before this one
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			substitute := last[j]
			if a[i] != b[j] {
				substitute++
			}
			row[j+1] = min(substitute, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
