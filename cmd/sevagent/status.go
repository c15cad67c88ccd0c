package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sevagent/client"
	"sevagent/internal/cli"
)

// watchInterval is how often "sevagent status --watch" asks.
const watchInterval = 2 * time.Second

var errNotReady = errors.New("read the agent's status: the node is not ready")

func statusCommand(o *options) *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the running agent's state, what is wrong first",
		Long: `Show the running agent's state: what is wrong first, each with its cause, since
when it is so, until when what still works lasts, and what to do. Exit status
0 if the node is ready, 1 if it is not, 3 if the agent does not answer.`,
		Example: "  sevagent status\n  sevagent status --watch\n  sevagent status --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			switch ask := o.client().Status; {
			case asJSON && watch:
				return cli.Usagef("--json and --watch do not go together")
			case watch:
				return watchStatus(cmd.Context(), out, ask)
			default:
				s, err := ask(cmd.Context())
				if err != nil {
					return markUnreachable(err)
				}
				if err := writeStatus(out, s, asJSON); err != nil {
					return err
				}
				if !s.Health.Ready() {
					return errNotReady
				}
				return nil
			}
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every two seconds, until Ctrl-C")
	return cmd
}

func writeStatus(out io.Writer, s *client.Status, asJSON bool) error {
	if asJSON {
		enc := cli.JSON(out)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	newScreen(out, time.Now()).status(s)
	return nil
}

// watchStatus shows the status again and again until ctx ends, which is no failure. On a terminal each takes the place
// of the one before, as far as it fits; elsewhere they follow each other.
func watchStatus(ctx context.Context, out io.Writer, ask func(context.Context) (*client.Status, error)) error {
	const begin, endOfLine, end = "\033[H", "\033[K\n", "\033[J"
	terminal := cli.IsTerminal(out)
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		var b bytes.Buffer
		s, err := ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		now := time.Now()
		look := screen{&b, cli.Width(out), cli.Colours(out), now}
		cli.Fprintf(&b, "%s\n", cli.Wrapped(date(now)+", again every "+cli.Duration(watchInterval)+", Ctrl-C ends",
			look.width, 0, 0))
		if err != nil {
			cli.Fprintf(&b, "%s\n", cli.Wrapped(err.Error(), look.width, 0, 0))
		} else {
			look.status(s)
		}
		text := b.String() + "\n"
		if terminal {
			lines := strings.SplitAfter(b.String(), "\n")
			if height := cli.Height(out); height > 1 {
				lines = lines[:min(len(lines), height-1)]
			}
			text = begin + strings.ReplaceAll(strings.Join(lines, ""), "\n", endOfLine) + end
		}
		if _, err := io.WriteString(out, text); err != nil {
			return fmt.Errorf("show the status: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
