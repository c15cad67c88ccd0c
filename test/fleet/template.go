package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	refreshCommand = regexp.MustCompile(`(?m)^            runCommand: \["(.*sevagent refresh.*)"\]$`)
	splayOf        = regexp.MustCompile(`shuf -i 0-(\d+) -n 1`)
	commandTarget  = regexp.MustCompile(`RunCommandParameters: \{RunCommandTargets: \[[^\]]*\]\}`)
)

// RefreshCommand returns the command that a rotation push runs on each node, from cloudformation/cluster.yaml in the
// root of this module.
func RefreshCommand(root string) (string, error) {
	file := filepath.Join(root, "cloudformation", "cluster.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	// EventBridge has no parameter for another concurrency than the default (PutTargets, RunCommandParameters).
	m := refreshCommand.FindSubmatch(text)
	if m == nil || !commandTarget.Match(text) {
		return "", fmt.Errorf("%s has no rotation push as this package knows it", file)
	}
	return string(m[1]), nil
}

// PushOf returns the Push of a command. It keeps its place in Run Command unless it leaves its wait to systemd.
func PushOf(command string) (Push, error) {
	m := splayOf.FindStringSubmatch(command)
	if m == nil {
		return Push{}, fmt.Errorf("no splay in %q", command)
	}
	seconds, err := strconv.Atoi(m[1])
	return Push{
		Cluster: nodesOfCluster, Delay: pushDelay, Concurrency: runConcurrency, Hold: pushHold,
		Splay: time.Duration(seconds) * time.Second,
		Keeps: !strings.HasPrefix(command, "systemd-run "),
	}, err
}
