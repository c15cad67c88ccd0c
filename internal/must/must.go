// Package must is for the steps of a test that are not what it tests: it ends the test, with what was tried, if one
// fails.
package must

import (
	"fmt"
	"testing"
)

// Do ends the test if err is not nil. The text says what was tried, as in an error: "start the agent".
func Do(t testing.TB, err error, text string, args ...any) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", fmt.Sprintf(text, args...), err)
	}
}

// Get returns a function that returns value, or ends the test as Do does:
//
//	dir := must.Get(os.Open(path))(t, "open the published directory")
func Get[T any](value T, err error) func(t testing.TB, text string, args ...any) T {
	return func(t testing.TB, text string, args ...any) T {
		t.Helper()
		Do(t, err, text, args...)
		return value
	}
}
