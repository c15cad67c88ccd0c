package cli

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestUsageErrors: what is missing is named with an example, what is mistyped is guessed at, and each is a usage error.
func TestUsageErrors(t *testing.T) {
	root := func() *cobra.Command {
		run := func(*cobra.Command, []string) error { return nil }
		verify := &cobra.Command{Use: "verify CLUSTER [PROFILE]", Short: "Verify", Args: cobra.RangeArgs(1, 2), RunE: run,
			Example: "  tool verify prod \\\n    --region r\n  tool verify x"}
		verify.Flags().String("region", "", "the `REGION`")
		verify.Flags().Duration("wait", 0, "for so long")
		verify.Flags().Bool("all", false, "all of them")
		group := &cobra.Command{Use: "policy", Short: "Policies"}
		group.AddCommand(&cobra.Command{Use: "explain POLICY", Short: "Explain", Args: cobra.ExactArgs(1), RunE: run},
			&cobra.Command{Use: "pin --report FILE | --from-fleet CLUSTER", Short: "Pin", RunE: run})
		root := &cobra.Command{Use: "tool", Short: "Do something"}
		root.AddCommand(verify, group)
		return root
	}
	for line, want := range map[string]string{
		"":                    "a command is missing: policy, verify or version, as in 'tool policy explain POLICY'",
		"policy":              "a command is missing: explain or pin, as in 'tool policy explain POLICY'",
		"verify":              "CLUSTER is missing, as in 'tool verify prod --region r'",
		"policy explain":      "POLICY is missing, as in 'tool policy explain POLICY'",
		"verify a b c":        `unexpected argument "c": 'tool verify' accepts 2; see 'tool verify --help'`,
		"policy pin x":        `unexpected argument "x": 'tool policy pin' accepts 0; see 'tool policy pin --help'`,
		"verfiy":              `unknown command "verfiy" of 'tool'; did you mean verify?`,
		"policy expl":         `unknown command "expl" of 'tool policy'; did you mean explain?`,
		"walk":                `unknown command "walk" of 'tool'; see 'tool --help'`,
		"help verfiy":         `unknown command "verfiy" of 'tool'; did you mean verify?`,
		"help policy walk":    `unknown command "walk" of 'tool policy'; see 'tool policy --help'`,
		"verify x --regoin r": "unknown flag: --regoin; did you mean --region?",
		"verify x --nope":     "unknown flag: --nope",
		"verify x -q":         "unknown shorthand flag: 'q' in -q",
		"verify x --region":   "--region needs a value: --region REGION",
		"verify x --wait 5":   `--wait is "5", want a duration such as 90s or 5m`,
		"verify x --all=no!":  `--all is "no!", want true or false`,
		"completion":          "a command is missing: bash, fish, powershell or zsh, as in 'tool completion bash'",
		"completion tcsh":     `unknown command "tcsh" of 'tool completion'; did you mean bash, fish or zsh?`,
		"completion zsh x":    `unexpected argument "x": 'tool completion zsh' accepts 0; see 'tool completion zsh --help'`,
		"completion zsh":      "",
		"help policy explain": "",
		"help":                "",
		"--version":           "",
		"-v":                  "",
		"verify x":            "",
	} {
		err := Execute(context.Background(), root(), strings.Fields(line), nil, io.Discard, io.Discard)
		switch m, _ := err.(marked); {
		case want == "" && err != nil, want != "" && (err == nil || err.Error() != want):
			t.Errorf("tool %s: %v, want %s", line, err, want)
		case want != "" && m.status != statusUsage:
			t.Errorf("tool %s: status %d, want %d", line, m.status, statusUsage)
		}
	}
}
