//go:build aws

package aws_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sevagent/test/lab"
)

// TestByHand runs the commands with which the emulator's README starts and asks it, as written but for the port.
func TestByHand(t *testing.T) {
	t.Parallel()
	text := lab.Read(t, filepath.Join(lab.Repository(), "test/aws/emulator/README.md"))
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(text, -1)
	if len(blocks) != 3 {
		t.Fatalf("the README has %d blocks of commands, want three: start, ask, its own tests", len(blocks))
	}
	makes, start, _ := strings.Cut(strings.TrimSpace(blocks[0][1]), "\n")
	shell := func(script string) *exec.Cmd {
		cmd := exec.Command("bash", "-euc", script)
		cmd.Dir = lab.Repository()
		return cmd
	}
	// What it would install is there already.
	out, err := shell(strings.Replace(makes, "make", "make -n", 1)).CombinedOutput()
	if err != nil || !strings.HasPrefix(makes, "make ") {
		t.Errorf("%s: %v\n%s", makes, err, out)
	}
	p := lab.Start(t, "the emulator", shell("exec env "+strings.Replace(start, "--port 4599", "--port 0", 1)))
	var url string
	lab.Until(t, "the emulator's URL", func() error {
		url = strings.TrimSpace(p.Output.String())
		if !strings.HasPrefix(url, "http://127.0.0.1:") {
			return fmt.Errorf("it printed %q", url)
		}
		return nil
	})
	ask := strings.Replace(blocks[1][1], "http://127.0.0.1:4599", url, 1)
	out, err = shell("export AWS_CONFIG_FILE=/dev/null AWS_PAGER= NO_PROXY=127.0.0.1\n" + ask).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Vpcs") {
		t.Errorf("%s: %v\n%s", ask, err, out)
	}
}
