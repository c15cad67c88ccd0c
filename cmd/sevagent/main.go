// Command sevagent is the daemon of a confidential ECS node, and the local command line to it.
//
// sevagent run proves at boot that the node is a working SEV-SNP guest, keeps the published certificates equal to
// what Secrets Manager says, and answers containers on a Unix socket. The other commands ask it.
//
// It is all in package agent. What is installed is this program and bootstrap in one file, cmd/sevagentd.
package main

import (
	"sevagent/internal/agent"
	"sevagent/internal/cli"
)

func main() { cli.Main("sevagent", agent.Run) }
