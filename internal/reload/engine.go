package reload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sevagent/internal/cgroup"
)

// Limits of requests to Docker.
const (
	requestTimeout = 5 * time.Second
	maxList        = 8 << 20 // bytes; a container takes two or three thousand
	maxMessage     = 4 << 10 // bytes of an error's body
	maxShown       = 200     // bytes of it in an error
	maxHeader      = 64 << 10
)

// newestMinor is the newest Engine API version that we speak, 1.44: the newest of Docker 25, which the ECS-optimized
// AL2023 AMI has, and the oldest of Docker 29 (moby/moby#51186). What we use has been the same since 1.24.
const newestMinor = 44

// label marks a container that wants a signal; its value is the signal's name.
const label = "io.sevagent.reload"

// errGone means that the container no longer runs, so that it has nothing to reload.
var errGone = errors.New("the container does not run")

// engine is Docker's Engine API.
type engine struct {
	client *http.Client
}

func newEngine(socket string) *engine {
	return &engine{&http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{ // no Proxy: its environment variables must not lead elsewhere
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// container is an entry of GET /containers/json.
type container struct {
	ID      string `json:"Id"`
	Names   []string
	Created int64 // seconds of Unix time
	Labels  map[string]string
	Mounts  []struct{ Source string } // on the host
}

func (c *container) name() string {
	if len(c.Names) == 0 {
		return ""
	}
	return strings.TrimPrefix(c.Names[0], "/")
}

// mounts reports whether one of the directories, or something in one, is mounted in c.
func (c *container) mounts(dirs []string) bool {
	for _, m := range c.Mounts {
		source := filepath.Clean(m.Source)
		for _, dir := range dirs {
			if source == dir || strings.HasPrefix(source, dir+"/") {
				return true
			}
		}
	}
	return false
}

// list returns the running containers with the label.
func (e *engine) list(ctx context.Context) ([]container, error) {
	filters, err := json.Marshal(map[string][]string{"label": {label}, "status": {"running"}})
	if err != nil {
		panic(err) // strings
	}
	var list []container
	path := "/containers/json?filters=" + url.QueryEscape(string(filters))
	if err := e.call(ctx, http.MethodGet, path, &list); err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range list {
		if !cgroup.IsContainerID(c.ID) {
			return nil, fmt.Errorf("list containers: %.80q is no container ID", c.ID)
		}
	}
	return list, nil
}

// kill sends a signal to the first process of a container.
func (e *engine) kill(ctx context.Context, id, signal string) error {
	return e.call(ctx, http.MethodPost, "/containers/"+id+"/kill?signal="+signal, nil)
}

// call makes a request in a version that the daemon knows, and decodes the response into out if that is not nil.
func (e *engine) call(ctx context.Context, method, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	version, err := e.version(ctx)
	if err != nil {
		return err
	}
	resp, err := e.do(ctx, method, "/v"+version+path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNoContent && out == nil:
		return nil
	case resp.StatusCode == http.StatusOK && out != nil:
		return decode(resp.Body, out)
	case (resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusConflict) &&
		method == http.MethodPost:
		return fmt.Errorf("%w: %s", errGone, message(resp.Body))
	}
	return fmt.Errorf("docker answers %d: %s", resp.StatusCode, message(resp.Body))
}

// version asks for the daemon's newest version, as Docker's own client does, and returns the older of that and ours.
// The path has no version, so that every daemon knows it.
func (e *engine) version(ctx context.Context) (string, error) {
	resp, err := e.do(ctx, http.MethodGet, "/_ping")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("docker answers a ping with %d: %s", resp.StatusCode, message(resp.Body))
	}
	text := resp.Header.Get("Api-Version")
	minor, err := strconv.ParseUint(strings.TrimPrefix(text, "1."), 10, 16)
	if err != nil || !strings.HasPrefix(text, "1.") {
		return "", fmt.Errorf("docker answers a ping with API version %.20q", text)
	}
	return fmt.Sprintf("1.%d", min(minor, newestMinor)), nil
}

func (e *engine) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.client.Do(req)
	if err, ok := errors.AsType[*url.Error](err); ok {
		return nil, err.Err // without the URL
	}
	return resp, err
}

func decode(r io.Reader, out any) error {
	text, err := io.ReadAll(io.LimitReader(r, maxList+1))
	if err != nil {
		return err
	}
	if len(text) > maxList {
		return fmt.Errorf("the response has more than %d bytes", maxList)
	}
	return json.Unmarshal(text, out)
}

// message returns the text of an error response: that of {"message": "…"}, or else the body.
func message(r io.Reader) string {
	text, err := io.ReadAll(io.LimitReader(r, maxMessage))
	if err != nil {
		return err.Error()
	}
	var answer struct{ Message string }
	if json.Unmarshal(text, &answer) != nil || answer.Message == "" {
		answer.Message = strings.TrimSpace(string(text))
	}
	return fmt.Sprintf("%.*s", maxShown, strings.ToValidUTF8(answer.Message, "?"))
}

// signals are those that a container may ask for. We send none that stops a container.
var signals = []string{"SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"}

// parseSignal returns the full name of a signal, which the label may give without SIG and, as docker kill takes it, in
// any case.
func parseSignal(value string) (string, error) {
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(value), "SIG")
	for _, signal := range signals {
		if signal == name {
			return signal, nil
		}
	}
	return "", fmt.Errorf("label %s is %.40q, not one of %s", label, value, strings.Join(signals, ", "))
}
