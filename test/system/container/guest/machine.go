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

	"sevagent/internal/sim/simaws"
)

const (
	secret  = "/etc/lab/secret.json"
	signals = "/run/lab/signals.json"
)

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

// registering is how long the ECS agent takes to register, in which it does not listen.
const registering = time.Second

// ecs stands in for the ECS agent: it reads its cluster, registers and then answers that it is registered there.
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
	agent, err := simaws.NewECSAgent(":51678")
	if err != nil {
		return err
	}
	defer agent.Close()
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(registering):
	}
	arn := "arn:aws:ecs:us-east-2:111122223333:container-instance/" + cluster + "/0123456789abcdef"
	if err := agent.Register(cluster, arn); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
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
