// Command sevagentd is what is installed as /usr/libexec/sevagent/sevagentd, and what bootstrap beside it is a symbolic
// link to: sevagent, or bootstrap where it is called by that name. The two share nine tenths of what they link, and a
// package has room for that only once.
package main

import (
	"os"
	"path/filepath"

	"sevagent/internal/agent"
	"sevagent/internal/bootstrap"
	"sevagent/internal/cli"
)

func main() {
	if len(os.Args) > 0 && filepath.Base(os.Args[0]) == "bootstrap" {
		cli.Main("bootstrap", bootstrap.Run)
		return
	}
	cli.Main("sevagent", agent.Run)
}
