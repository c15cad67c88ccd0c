package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
	"sevagent/internal/sim/simaws"
)

// metadataCommand serves instance metadata alone, and as badly as its flags say.
func metadataCommand() *cobra.Command {
	service := &simaws.IMDS{Instance: simaws.DefaultInstance()}
	var listen, fault, below string
	var items []string
	var after, lasts time.Duration
	cmd := &cobra.Command{
		Use:   "metadata",
		Short: "Serve a simulated instance's metadata until stopped",
		Long: `Serve a simulated instance's metadata until stopped, by IMDSv2 only. Programs
find it by AWS_EC2_METADATA_SERVICE_ENDPOINT, or at 169.254.169.254:80 where
that is an address of a network namespace of one's own.

A service that is late: --after 20s. Switched off: --fault 403. Silent for a
while: --fault hang --fault-for 30s. Credentials that come late:
--fault 404 --fault-for 12s --fault-below meta-data/iam/.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := parseFault(fault)
			if err != nil {
				return cli.Usage(err)
			}
			for _, item := range items {
				path, value, ok := strings.Cut(item, "=")
				if !ok {
					return cli.Usagef("--set %s: want PATH=VALUE, such as meta-data/tags/instance/Name=a", item)
				}
				service.Set(path, value)
			}
			port, err := simaws.NewPort(listen)
			if err != nil {
				return err
			}
			defer port.Close()
			fmt.Fprintf(cmd.OutOrStdout(), "AWS_EC2_METADATA_SERVICE_ENDPOINT=%s\n", port.URL())
			select {
			case <-time.After(after):
			case <-cmd.Context().Done():
				return nil
			}
			if lasts == 0 {
				lasts = math.MaxInt64
			}
			service.FailFor(lasts, status, below)
			if err := port.Open(service); err != nil {
				return fmt.Errorf("serve metadata: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "ready")
			<-cmd.Context().Done()
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:0", "`ADDRESS` to listen on; port 0: any that is free\n")
	f.DurationVar(&after, "after", 0, "refuse connections for so long")
	f.StringVar(&fault, "fault", "", "an HTTP `STATUS` for every request, or hang")
	f.DurationVar(&lasts, "fault-for", 0, "then the fault ends (default never)")
	f.StringVar(&below, "fault-below", "", "what begins with this `PATH` below /latest/ fails")
	f.StringArrayVar(&items, "set", nil, "`PATH=VALUE`: an item below /latest/,\nsuch as user-data")
	instanceFlags(cmd, &service.Instance)
	return cmd
}

func parseFault(text string) (status int, err error) {
	switch text {
	case "":
		return 0, nil
	case "hang":
		return simaws.Hang, nil
	}
	if status, err = strconv.Atoi(text); err != nil || status < 400 || status > 599 {
		return 0, fmt.Errorf("--fault %s: want an HTTP status from 400 to 599, or hang", text)
	}
	return status, nil
}
