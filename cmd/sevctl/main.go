// Command sevctl is for operators and relying parties: it verifies evidence offline.
package main

import (
	"sevagent/internal/cli"
	"sevagent/internal/ctl"
)

func main() { cli.Main("sevctl", ctl.Run) }
