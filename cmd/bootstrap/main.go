// Command bootstrap runs once, from EC2 user data, and leaves either the machine that was asked for or none: it
// checks everything, then writes, then starts. Run again, it changes nothing.
//
// It reads the instance metadata by IMDSv2 only, configures sevagent, starts it and waits for its proof, writes
// /etc/ecs/ecs.config with attributes from the verified report, and starts the ECS agent; on Ubuntu it installs that
// before. If any step fails, it tells CloudFormation at once, with the reason.
//
// Whether the node has joined, it cannot tell: on Amazon Linux the ECS agent starts only after the user data. So it
// leaves /etc/sevagent/signal.json, and starts sevagent-signal.service without waiting. That runs 'bootstrap signal', which
// waits for the registration and tells CloudFormation of it.
//
// A node tells its stack once. What it told is in /var/lib/sevagent/signaled.json, so that neither a reboot nor a second run
// meddles with a rolling update of other nodes.
//
// It is all in package bootstrap.
package main

import (
	"sevagent/internal/bootstrap"
	"sevagent/internal/cli"
)

func main() { cli.Main("bootstrap", bootstrap.Run) }
