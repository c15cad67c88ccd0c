package bootstrap

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/aws/smithy-go"
)

func TestPauses(t *testing.T) {
	p := Pauses{250 * time.Millisecond, 10 * time.Second}
	other := errors.New("not listed")
	tooMany := &smithy.GenericAPIError{Code: "ThrottlingException"}
	throttled := worded{fmt.Errorf("describe: %w", tooMany), "rate exceeded"}
	for _, c := range []struct {
		err  error
		n    int
		want time.Duration // the longest
	}{
		{other, 1, 250 * time.Millisecond},
		{other, 2, 500 * time.Millisecond},
		{other, 6, 8 * time.Second},
		{other, 5000, 10 * time.Second},
		{throttled, 1, 4 * time.Second},
		{throttled, 2, 8 * time.Second},
		{throttled, 5000, 15 * time.Second},
	} {
		if got := p.After(c.err, c.n, 0); got != c.want {
			t.Errorf("after %v, failure %d: at most %v, want %v", c.err, c.n, got, c.want)
		}
		if got := p.After(c.err, c.n, 1); got != c.want/2 {
			t.Errorf("after %v, failure %d: at least %v, want %v", c.err, c.n, got, c.want/2)
		}
	}
}
