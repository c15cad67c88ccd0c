package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"sevagent/internal/sim"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/tsmfs"
)

const (
	root    = "/lab/device" // the simulator's, made by the test
	socket  = "/run/lab/device.sock"
	tsm     = "/sys/kernel/config/tsm/report"
	byIoctl = "/etc/lab/ioctl" // if it is there: no configfs, but a device node
	secret  = "/etc/lab/secret.json"
	signals = "/run/lab/signals.json"
)

// device is the machine's SNP device: configfs-tsm where the kernel has it, or a node in /dev and the other end of its
// ioctls.
func device(ctx context.Context) error {
	psp, err := sim.Load(root, sim.DefaultOptions(time.Now()))
	if err != nil {
		return err
	}
	psp.FaultFile = "/etc/lab/fault"
	if err := os.MkdirAll("/run/lab", 0o755); err != nil {
		return err
	}
	os.Remove(socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return psp.ServeIoctl(ctx, l) })
	if _, err := os.Stat(byIoctl); errors.Is(err, fs.ErrNotExist) {
		// sysfs has no place for it where the kernel has no configfs.
		if err := unix.Mount("tmpfs", "/sys/kernel", "tmpfs", 0, ""); err != nil {
			return err
		}
		if err := os.MkdirAll(tsm, 0o755); err != nil {
			return err
		}
		server, err := tsmfs.Mount(tsm, psp)
		if err != nil {
			return err
		}
		group.Go(func() error {
			<-ctx.Done()
			return server.Unmount()
		})
	} else if err := unix.Mknod("/dev/sev-guest", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil &&
		!errors.Is(err, fs.ErrExist) { // opens as /dev/null does
		return err
	}
	daemon.SdNotify(false, daemon.SdNotifyReady)
	return group.Wait()
}

// aws is the metadata service at its own address, and Secrets Manager and CloudFormation where the manager's default
// environment says.
func aws(ctx context.Context) error {
	if out, err := exec.Command("ip", "address", "replace", "169.254.169.254/32", "dev",
		"lo").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	instance := simaws.DefaultInstance()
	if id, err := os.ReadFile("/etc/lab/instance-id"); err == nil {
		instance.ID = strings.TrimSpace(string(id))
	}
	secrets := &simaws.Secrets{Region: instance.Region, AccountID: instance.AccountID}
	if text, err := os.ReadFile(secret); err == nil {
		secrets.Put("node/mtls", string(text))
	}
	stacks := &simaws.CloudFormation{Region: instance.Region, AccountID: instance.AccountID}
	stacks.SetStack("lab", "CREATE_IN_PROGRESS")
	stacks.SetResource("lab", "Ready", "CREATE_IN_PROGRESS", true)
	stacks.SetResource("lab", "Group", "CREATE_COMPLETE", false)
	if err := os.MkdirAll("/run/lab", 0o755); err != nil {
		return err
	}
	told := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stacks.ServeHTTP(w, r)
		text, _ := json.Marshal(stacks.Signals())
		os.WriteFile(signals, text, 0o644)
	})
	group, ctx := errgroup.WithContext(ctx)
	for address, handler := range map[string]http.Handler{
		"169.254.169.254:80": &simaws.IMDS{Instance: instance}, "127.0.0.1:4501": secrets, "127.0.0.1:4502": told,
	} {
		if err := serve(ctx, group, address, handler); err != nil {
			return err
		}
	}
	daemon.SdNotify(false, daemon.SdNotifyReady)
	return group.Wait()
}

// ecs stands in for the ECS agent: it reads its cluster and answers that it is registered there.
func ecs(ctx context.Context) error {
	f, err := os.Open("/etc/ecs/ecs.config")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	cluster := "default"
	for s := bufio.NewScanner(f); err == nil && s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), "ECS_CLUSTER="); ok {
			cluster = value
		}
	}
	agent := new(simaws.ECSAgent)
	agent.Register(cluster, "arn:aws:ecs:us-east-2:111122223333:container-instance/"+cluster+"/0123456789abcdef")
	group, ctx := errgroup.WithContext(ctx)
	if err := serve(ctx, group, "127.0.0.1:51678", agent); err != nil {
		return err
	}
	return group.Wait()
}

func serve(ctx context.Context, group *errgroup.Group, address string, handler http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	group.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}
