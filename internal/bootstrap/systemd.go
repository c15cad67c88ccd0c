package bootstrap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Values of Options.Services.
const (
	ServicesSystemd = "systemd"
	ServicesNone    = "none"
)

const (
	agentUnit  = "sevagent.service"
	ecsUnit    = "ecs.service"
	signalUnit = "sevagent-signal.service"
)

// systemd is what bootstrap asks of systemd: methods of *dbus.Conn.
type systemd interface {
	ReloadContext(ctx context.Context) error
	EnableUnitFilesContext(ctx context.Context, files []string, runtime, force bool) (
		bool, []dbus.EnableUnitFileChange, error)
	ResetFailedUnitContext(ctx context.Context, unit string) error
	StartUnitContext(ctx context.Context, unit, mode string, ch chan<- string) (int, error)
	RestartUnitContext(ctx context.Context, unit, mode string, ch chan<- string) (int, error)
	StopUnitContext(ctx context.Context, unit, mode string, ch chan<- string) (int, error)
	MaskUnitFilesContext(ctx context.Context, files []string, runtime, force bool) ([]dbus.MaskUnitFileChange, error)
	UnmaskUnitFilesContext(ctx context.Context, files []string, runtime bool) ([]dbus.UnmaskUnitFileChange, error)
	GetAllPropertiesContext(ctx context.Context, unit string) (map[string]any, error)
	Close()
}

// units starts services. The zero value starts none: the caller of bootstrap does.
type units struct{ systemd systemd }

func (m machine) units(ctx context.Context, services string) (units, error) {
	if services == ServicesNone {
		return units{}, nil
	}
	conn, err := m.connect(ctx)
	if err != nil {
		err = fmt.Errorf("connect to systemd: %w", err)
		return units{}, advised{err, "use --services=" + ServicesNone + " where there is none"}
	}
	return units{conn}, nil
}

func (u units) close() {
	if u.systemd != nil {
		u.systemd.Close()
	}
}

// check reports the units that systemd does not know, or must not start.
func (u units) check(ctx context.Context, names ...string) error {
	if u.systemd == nil {
		return nil
	}
	// An earlier run may have masked it: refuseECS.
	if _, err := u.systemd.UnmaskUnitFilesContext(ctx, []string{ecsUnit}, true); err != nil {
		return fmt.Errorf("unmask %s: %w", ecsUnit, err)
	}
	if err := u.reload(ctx); err != nil { // a package may just have brought them
		return err
	}
	var errs []error
	for _, name := range names {
		p, err := u.systemd.GetAllPropertiesContext(ctx, name)
		if state, _ := p["LoadState"].(string); err == nil && state != "loaded" {
			err = errors.New(state)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("look for %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// reload makes systemd read its files again.
func (u units) reload(ctx context.Context) error {
	if u.systemd == nil {
		return nil
	}
	if err := u.systemd.ReloadContext(ctx); err != nil {
		return fmt.Errorf("reload systemd: %w", err)
	}
	return nil
}

// startAgent starts sevagent.service, or restarts it if its configuration has changed, and waits until it is ready: it
// has passed the gate then, and published the first certificates. User data can wait for that, since the unit is not
// ordered after cloud-final.service.
func (u units) startAgent(ctx context.Context, changed bool, timeout time.Duration) error {
	if u.systemd == nil {
		return nil
	}
	if err := u.enable(ctx, agentUnit); err != nil {
		return err
	}
	// A unit that has failed too often would not be started. An error means that it has not been loaded yet.
	_ = u.systemd.ResetFailedUnitContext(ctx, agentUnit)
	waiting, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready within %v", timeout))
	defer cancel()
	began := time.Now()
	job := make(chan string, 1) // the connection blocks until the result is received
	if _, err := u.startOrRestart(changed)(waiting, agentUnit, "replace", job); err != nil {
		return fmt.Errorf("%s: %w", agentUnit, err)
	}
	select {
	case result := <-job:
		if result == "done" {
			return nil
		}
		return u.explain(ctx, agentUnit, "job "+result, began)
	case <-waiting.Done():
		return u.explain(context.WithoutCancel(ctx), agentUnit, context.Cause(waiting).Error(), began)
	}
}

// runsECS reports whether ecs.service is known to run.
func (u units) runsECS(ctx context.Context) bool {
	if u.systemd == nil {
		return false
	}
	p, err := u.systemd.GetAllPropertiesContext(ctx, ecsUnit)
	return err == nil && p["ActiveState"] == "active"
}

// refuseECS keeps ecs.service from starting until the next boot, or until bootstrap has finished: on Amazon Linux it is
// queued already, behind the user data, and would join with the AMI's configuration.
func (u units) refuseECS(ctx context.Context) error {
	if u.systemd == nil {
		return nil
	}
	p, _ := u.systemd.GetAllPropertiesContext(ctx, ecsUnit)
	_, err := u.systemd.MaskUnitFilesContext(ctx, []string{ecsUnit}, true, true)
	if p["LoadState"] != "loaded" {
		return err
	}
	if _, stopErr := u.systemd.StopUnitContext(ctx, ecsUnit, "replace", nil); stopErr != nil {
		err = errors.Join(err, fmt.Errorf("stop %s: %w", ecsUnit, stopErr))
	}
	return err
}

// enable makes a unit start at every boot, if its [Install] section asks for that.
func (u units) enable(ctx context.Context, unit string) error {
	_, changes, err := u.systemd.EnableUnitFilesContext(ctx, []string{unit}, false, false)
	if err == nil && len(changes) > 0 {
		err = u.systemd.ReloadContext(ctx)
	}
	if err != nil {
		return fmt.Errorf("enable %s: %w", unit, err)
	}
	return nil
}

// start enables a unit and queues a job that starts it, or restarts it if its configuration has changed. Nothing may
// wait for the job: ecs.service is ordered after cloud-final.service, within which bootstrap runs, so that waiting
// would never end (aws/amazon-ecs-agent issues 1707 and 4818), and sevagent-signal.service after ecs.service. That one
// is enabled in case the node reboots before it has registered.
func (u units) start(ctx context.Context, unit string, changed bool) error {
	if u.systemd == nil {
		return nil
	}
	if err := u.enable(ctx, unit); err != nil {
		return err
	}
	_ = u.systemd.ResetFailedUnitContext(ctx, unit) // as in startAgent
	// Without a channel the call returns once the job is queued.
	if _, err := u.startOrRestart(changed)(ctx, unit, "replace", nil); err != nil {
		return fmt.Errorf("%s: %w", unit, err)
	}
	return nil
}

func (u units) startOrRestart(changed bool) func(context.Context, string, string, chan<- string) (int, error) {
	if changed {
		return u.systemd.RestartUnitContext
	}
	return u.systemd.StartUnitContext
}

// explain returns the error of a service that did not start, with the reason that the service itself gave, if any.
func (u units) explain(ctx context.Context, unit, what string, since time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p, err := u.systemd.GetAllPropertiesContext(ctx, unit)
	if result, _ := p["Result"].(string); err == nil && result != "" && result != "success" {
		what += ", result " + result
		if status, _ := p["ExecMainStatus"].(int32); status != 0 {
			what += fmt.Sprintf(", exit status %d", status)
		}
	}
	reason := lastWords(ctx, unit, since)
	if status, _ := p["StatusText"].(string); reason == "" {
		reason = status
	}
	err = fmt.Errorf("%s: %s", unit, what)
	if reason != "" {
		err = fmt.Errorf("%w: %s", err, reason)
	}
	return advised{err, "see 'journalctl -u " + unit + "'"}
}

// lastWords returns the last line that a unit's processes wrote to the journal, "" if there is none or no journalctl.
// It prefers a command's own error, "sevagent: …", to what was logged around it.
func lastWords(ctx context.Context, unit string, since time.Time) (line string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=20",
		fmt.Sprintf("--since=@%d", since.Unix()), "_SYSTEMD_UNIT="+unit)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &out
	if cmd.Run() != nil {
		return ""
	}
	var own string
	for text := range strings.Lines(out.String()) {
		text = strings.TrimSpace(text)
		if after, ok := strings.CutPrefix(text, "sevagent: "); ok {
			own, _, _ = strings.Cut(after, "; ") // without the advice
		} else if text != "" {
			line = fromLog(text)
		}
	}
	if own != "" {
		return own
	}
	return line
}

// fromLog turns a line that the agent logged as JSON into a phrase.
func fromLog(line string) string {
	var entry struct{ Msg, Err string }
	if json.Unmarshal([]byte(line), &entry) != nil || entry.Msg == "" {
		return line
	}
	if entry.Err == "" {
		return entry.Msg
	}
	return entry.Msg + ": " + entry.Err
}
