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

// Values of --services.
const (
	servicesSystemd = "systemd"
	servicesNone    = "none"
)

const (
	agentUnit  = "sevagent.service"
	ecsUnit    = "ecs.service"
	signalUnit = "sevagent-signal.service"
)

// systemd is what bootstrap asks of systemd: methods of *dbus.Conn.
type systemd interface {
	ReloadContext(ctx context.Context) error
	EnableUnitFilesContext(ctx context.Context, files []string, runtime, force bool) (bool, []dbus.EnableUnitFileChange, error)
	ResetFailedUnitContext(ctx context.Context, unit string) error
	StartUnitContext(ctx context.Context, unit, mode string, ch chan<- string) (int, error)
	RestartUnitContext(ctx context.Context, unit, mode string, ch chan<- string) (int, error)
	StopUnitContext(ctx context.Context, unit, mode string, ch chan<- string) (int, error)
	MaskUnitFilesContext(ctx context.Context, files []string, runtime, force bool) ([]dbus.MaskUnitFileChange, error)
	UnmaskUnitFilesContext(ctx context.Context, files []string, runtime bool) ([]dbus.UnmaskUnitFileChange, error)
	GetAllPropertiesContext(ctx context.Context, unit string) (map[string]any, error)
	Close()
}

// testOnlyConnect takes the place of a connection to the system bus.
var testOnlyConnect func(ctx context.Context) (systemd, error)

// units starts services. The zero value starts none: somebody else does.
type units struct{ systemd systemd }

func connectUnits(ctx context.Context, services string) (units, error) {
	if services == servicesNone {
		return units{}, nil
	}
	connect := testOnlyConnect
	if connect == nil {
		connect = func(ctx context.Context) (systemd, error) { return dbus.NewSystemConnectionContext(ctx) }
	}
	conn, err := connect(ctx)
	if err != nil {
		return units{}, advised{fmt.Errorf("connect to systemd: %w", err), "use --services=" + servicesNone + " where there is none"}
	}
	return units{conn}, nil
}

func (u units) close() {
	if u.systemd != nil {
		u.systemd.Close()
	}
}

// check says which of the units systemd does not know, or must not start.
func (u units) check(ctx context.Context, names ...string) error {
	if u.systemd == nil {
		return nil
	}
	if _, err := u.systemd.UnmaskUnitFilesContext(ctx, []string{ecsUnit}, true); err != nil { // what refuseECS did in an earlier run
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

// startAgent starts sevagent.service, or restarts it if its configuration has changed, and waits until it is ready: the
// gate is passed then, and the first certificates are published. That can be waited for within user data, since the unit
// is not ordered after cloud-final.service.
func (u units) startAgent(ctx context.Context, changed bool, timeout time.Duration) error {
	if u.systemd == nil {
		return nil
	}
	if err := u.enable(ctx, agentUnit); err != nil {
		return err
	}
	// What has failed too often before would not be started. An error says that it has not been loaded yet.
	_ = u.systemd.ResetFailedUnitContext(ctx, agentUnit)
	start := u.systemd.StartUnitContext
	if changed {
		start = u.systemd.RestartUnitContext
	}
	waiting, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready within %v", timeout))
	defer cancel()
	began := time.Now()
	job := make(chan string, 1) // the connection blocks until its result is taken
	if _, err := start(waiting, agentUnit, "replace", job); err != nil {
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

// startECS starts ecs.service without waiting: the unit is ordered after cloud-final.service, within which
// bootstrap runs, so that waiting would never end (aws/amazon-ecs-agent issues 1707 and 4818). One that runs already
// is restarted if its configuration has changed.
func (u units) startECS(ctx context.Context, changed bool) error {
	if u.systemd == nil {
		return nil
	}
	if err := u.enable(ctx, ecsUnit); err != nil {
		return err
	}
	start := u.systemd.StartUnitContext
	if changed {
		start = u.systemd.RestartUnitContext
	}
	return queueJob(ctx, ecsUnit, start)
}

// runsECS reports whether ecs.service is known to run.
func (u units) runsECS(ctx context.Context) bool {
	if u.systemd == nil {
		return false
	}
	p, err := u.systemd.GetAllPropertiesContext(ctx, ecsUnit)
	return err == nil && p["ActiveState"] == "active"
}

// refuseECS keeps ecs.service from being started until the next boot, or until bootstrap has run well: on Amazon Linux it
// is queued already, behind the user data, and would join with what the AMI says.
func (u units) refuseECS(ctx context.Context) error {
	if u.systemd == nil {
		return nil
	}
	p, _ := u.systemd.GetAllPropertiesContext(ctx, ecsUnit)
	_, err := u.systemd.MaskUnitFilesContext(ctx, []string{ecsUnit}, true, true)
	if p["LoadState"] != "loaded" {
		return err
	}
	return errors.Join(err, queueJob(ctx, ecsUnit, u.systemd.StopUnitContext))
}

// startSignal starts, without waiting, what waits for the node's registration, and enables it, in case that the node
// reboots before.
func (u units) startSignal(ctx context.Context) error {
	if u.systemd == nil {
		return nil
	}
	if err := u.enable(ctx, signalUnit); err != nil {
		return err
	}
	return queueJob(ctx, signalUnit, u.systemd.StartUnitContext)
}

// enable makes a unit start at every boot, if it says of itself when.
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

// queueJob asks for a job in mode replace. Without a channel the call returns once the job is queued.
func queueJob(ctx context.Context, unit string, start func(context.Context, string, string, chan<- string) (int, error)) error {
	if _, err := start(ctx, unit, "replace", nil); err != nil {
		return fmt.Errorf("%s: %w", unit, err)
	}
	return nil
}

// explain is the error of a service that did not start: in its own last words where they can be had.
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

// lastWords is the last line that a unit's processes wrote to the journal, "" if there is none or no journalctl. A
// command's own error, "sevagent: …", goes before what it logged around it.
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
			own, _, _ = strings.Cut(after, "; ") // less the advice
		} else if text != "" {
			line = fromLog(text)
		}
	}
	if own != "" {
		return own
	}
	return line
}

// fromLog makes a phrase of a line that the agent logged as JSON.
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
