package ecsconfig

import "strings"

// ReadECSInit returns what ecs-init reads: each line, trimmed, split at its first '='; the last of two wins. ecs-init
// knows no comments, so that one with a '=' in it is a variable whose name begins with '#' or ';', which reaches the
// agent's environment and does no harm.
func ReadECSInit(data []byte) map[string]string {
	env := make(map[string]string)
	for line := range strings.SplitSeq(string(data), "\n") {
		if key, value, ok := cutECSInit(line); ok {
			env[key] = value
		}
	}
	return env
}

// cutECSInit reads one line as ecs-init does, which trims all white space of Unicode, not only ASCII's
// (aws/amazon-ecs-agent: ecs-init/docker/docker.go, getEnvVars).
func cutECSInit(line string) (key, value string, ok bool) {
	return strings.Cut(strings.TrimSpace(line), "=")
}

// isComment reports whether ecs-init has taken a key from a comment.
func isComment(key string) bool {
	return strings.HasPrefix(key, "#") || strings.HasPrefix(key, ";")
}
