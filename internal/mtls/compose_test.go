package mtls

import (
	"errors"
	"slices"
	"testing"
	"time"

	"sevagent/internal/mtls/certset"
)

func TestFallBack(t *testing.T) {
	bundle := func(secret, version string) *certset.Bundle { return &certset.Bundle{Secret: secret, Version: version} }
	both := func(secret string) offer {
		return offer{secret, bundle(secret, "new"), bundle(secret, "old"), false, nil}
	}
	onlyNew := func(secret string) offer { return offer{secret, bundle(secret, "new"), nil, false, nil} }
	onlyOld := func(secret string) offer { return offer{secret, nil, bundle(secret, "old"), false, nil} }
	reject := func(secret string) error {
		return &certset.RejectError{Secret: secret, Field: "client_cert", Reason: "expired"}
	}

	held := &certset.HeldError{Secret: "a", Until: time.Now()}
	collision := func(a, b string) error { return &certset.CollisionError{Secrets: [2]string{a, b}} }
	of := func(o ...offer) []offer { return o }
	for name, c := range map[string]struct {
		offers   []offer
		ready    bool
		reason   error
		want     []string // the versions chosen next; nil: nothing could be replaced
		rejected []int
	}{
		"the one at fault": {of(both("a"), both("b")), true, reject("b"), []string{"new", "old"}, []int{1}},
		"held":             {of(both("a"), both("b")), true, held, []string{"old", "new"}, []int{0}},
		"both that collide": {of(both("a"), both("b"), both("c")), true, collision("a", "c"),
			[]string{"old", "new", "old"}, []int{0, 2}},
		"collision with a published": {of(onlyOld("a"), both("b")), true, collision("a", "b"), []string{"old", "old"},
			[]int{1}},
		"the fault of a published": {of(onlyOld("a"), both("b"), both("c")), true, reject("a"),
			[]string{"old", "old", "old"}, []int{1, 2}},
		"another reason": {of(both("a"), both("b")), true, errors.New("x"), []string{"old", "old"},
			[]int{0, 1}},
		"new secret, ready":     {of(both("a"), onlyNew("b")), true, reject("b"), []string{"new", ""}, []int{1}},
		"new secret, not ready": {of(both("a"), onlyNew("b")), false, reject("b"), nil, []int{1}},
		"collision, one can fall back": {of(both("a"), onlyNew("b")),
			false, collision("a", "b"), []string{"old", "new"},
			[]int{0, 1}},
		"nothing new": {of(onlyOld("a"), onlyOld("b")), true, reject("a"), nil, nil},
	} {
		chosen, err := choose(c.offers, c.ready)
		if err != nil {
			t.Errorf("%s: choose: %v", name, err)
			continue
		}
		before := slices.Clone(chosen)
		next, rejected := fallBack(c.offers, chosen, c.ready, c.reason)
		var got []string
		for _, b := range next {
			got = append(got, b.Version)
		}
		if !slices.Equal(got, c.want) || !slices.Equal(rejected, c.rejected) {
			t.Errorf("%s: chose %q, rejected %v; want %q and %v", name, got, rejected, c.want, c.rejected)
		}
		if !slices.Equal(chosen, before) {
			t.Errorf("%s: the choice before was changed", name)
		}
	}
}

// What has fallen back cannot fall back again, so that compose ends.
func TestFallBackEnds(t *testing.T) {
	older, newer := &certset.Bundle{Secret: "a", Version: "old"}, &certset.Bundle{Secret: "a", Version: "new"}
	offers := []offer{{"a", newer, older, false, nil}}
	for _, reason := range []error{errors.New("x"), &certset.RejectError{Secret: "a"}} {
		chosen, _ := choose(offers, true)
		chosen, _ = fallBack(offers, chosen, true, reason)
		if next, rejected := fallBack(offers, chosen, true, reason); next != nil || rejected != nil {
			t.Errorf("%v: chose %v and rejected %v a second time", reason, next, rejected)
		}
	}
}

// A version that was held and cannot be published now for another reason is not due again at once: that would be a
// loop.
func TestComposeIsDueOnce(t *testing.T) {
	now := time.Now()
	held := &secret{name: "a", candidate: new(certset.Bundle), heldUntil: now.Add(-time.Second), changed: true}
	list := secrets{held, {name: "b"}}
	if !list.due(now) {
		t.Error("a version whose time has come is not due")
	}
	if _, err := list.compose(false, now, nil); err == nil || list.due(now) {
		t.Errorf("b has given nothing (%v), and compose is due again", err)
	}
	held.dropCandidate()
	if !list.due(now) {
		t.Error("nothing is due although the version is gone that others may have been rejected for")
	}
}

func TestChoose(t *testing.T) {
	_, err := choose([]offer{{secret: "a"}}, false)
	if err == nil || err.Error() != "secret a has given nothing to publish yet" {
		t.Errorf("before the node is ready: %v, want an error that names the secret", err)
	}
	chosen, err := choose([]offer{{secret: "a"}}, true)
	if err != nil || len(chosen) != 1 || chosen[0].Secret != "a" || chosen[0].Version != "" {
		t.Errorf("once it is: %v, %v; want a bundle without a version", chosen, err)
	}
}
