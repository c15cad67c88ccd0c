package verify

import (
	"errors"

	"sevagent/internal/appraise"
	"sevagent/internal/config"
)

// Policy says which genuine reports are acceptable: docs/policy.md. The zero value is aws-shared.
type Policy struct{ policy *appraise.Policy }

// BuiltinPolicy returns a built-in policy, aws-shared or aws-dedicated.
func BuiltinPolicy(name string) (Policy, error) {
	p, err := appraise.Builtin(name)
	if err != nil {
		return Policy{}, err
	}
	return PolicyOf(p), nil
}

// ParsePolicy reads the content of a policy file; name stands for the file in messages and verdicts. If the policy
// names a file of roots, roots is called with its path, which is relative to that of name: os.ReadFile, or what returns
// bytes that are there already. Nil refuses such a policy.
func ParsePolicy(name string, file []byte, roots func(path string) ([]byte, error)) (Policy, error) {
	if roots == nil {
		roots = func(string) ([]byte, error) { return nil, errors.New("roots of its own are not accepted") }
	}
	p, err := config.ParsePolicy(name, file, roots)
	if err != nil {
		return Policy{}, err
	}
	return PolicyOf(p), nil
}

// PolicyOf returns a policy that was decoded before, for the commands of this repository.
func PolicyOf(p appraise.Policy) Policy { return Policy{&p} }

// ComparesRegion reports whether the policy compares the region of evidence with Config.Region.
func (p Policy) ComparesRegion() bool { return p.policy == nil || p.policy.NeedsRegion() }
