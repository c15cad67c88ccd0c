package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"sevagent/internal/sim"
	"sevagent/internal/sim/tsmfs"
)

// deviceCommand serves a simulated device to other processes: by ioctl to programs under 'sevsim exec' and, on request
// and as root, as the file system of configfs-tsm.
func deviceCommand() *cobra.Command {
	var dir, socket, mount string
	var latency time.Duration
	cmd := &cobra.Command{
		Use: "device", Short: "Serve a simulated SNP device until stopped", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o := sim.DefaultOptions(time.Now())
			o.Latency = latency
			psp, err := loadOrNew(dir, o)
			if err != nil {
				return err
			}
			psp.FaultFile = filepath.Join(dir, "fault")
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				return fmt.Errorf("serve the simulated device: %w", err)
			}
			group, ctx := errgroup.WithContext(cmd.Context())
			group.Go(func() error { return psp.ServeIoctl(ctx, l) })
			if mount != "" {
				fs, err := tsmfs.Mount(mount, psp)
				if err != nil {
					return err
				}
				group.Go(func() error {
					<-ctx.Done()
					return fs.Unmount()
				})
			}
			fmt.Fprintln(cmd.OutOrStdout(), "ready")
			return group.Wait()
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIRECTORY` of the root, made if missing: roots.pem\n"+
		"and policy.yaml are for verifiers, a file named fault\nmakes requests fail")
	cmd.Flags().StringVar(&socket, "socket", "", "`SOCKET` for 'sevsim exec'")
	cmd.Flags().StringVar(&mount, "configfs", "", "mount configfs-tsm's report directory at `PATH`\n(needs root)")
	cmd.Flags().DurationVar(&latency, "latency", 0, "how long a report takes; hardware needs 8ms")
	cmd.MarkFlagRequired("dir")
	cmd.MarkFlagRequired("socket")
	return cmd
}

// loadOrNew loads the root from dir, or makes one and saves it there.
func loadOrNew(dir string, o sim.Options) (*sim.PSP, error) {
	psp, err := sim.Load(dir, o)
	if !errors.Is(err, fs.ErrNotExist) {
		return psp, err
	}
	if psp, err = sim.New(o); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return psp, psp.Save(dir)
}

func currentUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}
