package bootstrap

import (
	"cmp"
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"

	"sevagent/internal/cli"
	"sevagent/internal/pattern"
)

// Limits in bytes of what is read from the end of the ECS agent's log, and of the reason that is taken from it.
const (
	maxECSLog    = 256 << 10
	maxECSReason = 1 << 10
)

// lastECSError returns what the ECS agent logged last as an error, "" if nothing.
func lastECSError(path string) (reason string) {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxECSLog {
		if _, err := f.Seek(-maxECSLog, io.SeekEnd); err != nil {
			return ""
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxECSLog))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		reason = cmp.Or(ecsError(strings.TrimSpace(line)), reason)
	}
	return cli.Visible(strings.ToValidUTF8(reason[:min(len(reason), maxECSReason)], "?"))
}

// ecsField is a field of a line in the ECS agent's usual form, quoted as Go does: level=error time=… msg="…" error="…"
// (aws/amazon-ecs-agent: ecs-agent/logger/log.go).
var ecsField = pattern.New(`(?:^|\s)(level|msg|error|err)=("(?:[^"\\]|\\.)*"|\S+)`)

// ecsOldLine is such a line in the form of agents before 2020.
var ecsOldLine = pattern.New(`^\S+ \[(?:ERROR|CRITICAL)\] (.*)`)

// ecsError returns the message and the error of a line with the level error or critical, in any form that the ECS agent
// writes, and "" for other lines.
func ecsError(line string) string {
	if m := ecsOldLine.FindStringSubmatch(line); m != nil {
		return m[1]
	}
	fields := make(map[string]any)
	if json.Unmarshal([]byte(line), &fields) != nil {
		for _, m := range ecsField.FindAllStringSubmatch(line, -1) {
			value, err := strconv.Unquote(m[2])
			if err != nil {
				value = m[2]
			}
			fields[m[1]] = value
		}
	}
	if level := fields["level"]; level != "error" && level != "critical" {
		return ""
	}
	var parts []string
	for _, name := range []string{"msg", "error", "err"} {
		if text, _ := fields[name].(string); text != "" {
			parts = append(parts, strings.TrimRight(text, ": "))
		}
	}
	return strings.Join(parts, ": ")
}
