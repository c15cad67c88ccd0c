// Package bundle packs what somebody who helps from afar needs to know of a node: what the agent says of itself, its
// configuration, its units and its journal. It promises that
//
//   - no private key, no password and no content of a secret is in an archive: it reads no file but those of the
//     configuration, of which it keeps what config.Encode writes, and removes private keys from all that it packs;
//   - what cannot be had is named in the archive, and does not keep the rest out;
//   - nothing takes long: each part has a limit of time and size.
package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sevagent/internal/config"
	"sevagent/internal/pattern"
	"sevagent/internal/visible"
)

// Limits of one part.
const (
	partTime  = 15 * time.Second
	partBytes = 8 << 20
)

// Config says which node to pack.
type Config struct {
	// Socket is the agent's, and Path where its configuration is.
	Socket, Path string
	Version      string
	// Name is the directory in the archive, Now the time of its files.
	Name string
	Now  time.Time
	// Status returns the status as people read it.
	Status func(context.Context) ([]byte, error)
	// Run runs a program and returns its output; nil: the program of that name on the machine.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
}

// units are those whose state and journal are packed. That of the ECS agent is its own.
var units = []string{"sevagent.service", "sevagent.socket", "sevagent-signal.service", "etc-ecs-mtls.mount"}

// properties of a unit, without its environment, which may hold credentials.
const properties = "Id,Description,LoadState,ActiveState,SubState,Result,ActiveEnterTimestamp,InactiveEnterTimestamp," +
	"NRestarts,ExecMainCode,ExecMainStatus,MemoryCurrent,MemoryPeak,TasksCurrent,CPUUsageNSec,FragmentPath," +
	"DropInPaths,NeedDaemonReload,StatusText"

// part is a file of the archive.
type part struct {
	name string
	get  func(context.Context) ([]byte, error)
}

// Pack writes the archive, a tar compressed by gzip, and returns what is not in it, each with the reason.
func Pack(ctx context.Context, w io.Writer, c Config) (missing []string, err error) {
	if c.Run == nil {
		c.Run = run
	}
	files := make(map[string][]byte)
	var names []string
	for _, p := range c.parts() {
		content, err := p.within(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			missing = append(missing, p.name+": "+oneLine(err.Error()))
		}
		if len(content) > 0 {
			files[p.name], names = clean(p.name, content), append(names, p.name)
		}
	}
	compressed := gzip.NewWriter(w)
	archive := tar.NewWriter(compressed)
	write := func(name string, content []byte) error {
		header := &tar.Header{Name: path.Join(c.Name, name), Mode: 0o600, Size: int64(len(content)), ModTime: c.Now}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := archive.Write(content)
		return err
	}
	err = write("README.txt", clean("README.txt", []byte(c.readme(names, missing))))
	for _, name := range names {
		if err == nil {
			err = write(name, files[name])
		}
	}
	if err := errors.Join(err, archive.Close(), compressed.Close()); err != nil {
		return nil, fmt.Errorf("write the archive: %w", err)
	}
	return missing, nil
}

func (c Config) parts() []part {
	text := func(content []byte, err error) func(context.Context) ([]byte, error) {
		return func(context.Context) ([]byte, error) { return content, err }
	}
	list := []part{
		{"version.txt", text([]byte(c.Version+"\n"), nil)},
		{"status.txt", c.Status},
		{"system.txt", c.system},
		{"configuration.yaml", text(c.configuration())},
		{"configuration-files.txt", text(listing(c.Path, false))},
		{"published.txt", text(listing(c.published(), true))},
	}
	for _, a := range []struct{ name, path string }{
		{"status.json", "/v1/status"}, {"readyz.json", "/readyz"}, {"healthz.json", "/healthz"},
		{"certificates.json", "/v1/certificates"}, {"metrics.txt", "/metrics"},
	} {
		list = append(list, part{a.name, func(ctx context.Context) ([]byte, error) {
			return ask(ctx, c.Socket, a.path)
		}})
	}
	return append(list,
		part{"units.txt", func(ctx context.Context) ([]byte, error) {
			args := append([]string{"show", "--no-pager", "--property=" + properties, "--"}, units...)
			return c.Run(ctx, "systemctl", args...)
		}},
		part{"journal.txt", func(ctx context.Context) ([]byte, error) {
			args := []string{"--no-pager", "--quiet", "--lines=5000", "--output=short-iso-precise"}
			for _, unit := range units {
				args = append(args, "--unit="+unit)
			}
			return c.Run(ctx, "journalctl", args...)
		}})
}

// within gets a part within its limits.
func (p part) within(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, partTime)
	defer cancel()
	content, err := p.get(ctx)
	if len(content) > partBytes {
		content = content[len(content)-partBytes:] // the end of a journal is the latest
		err = errors.Join(err, fmt.Errorf("cut to its last %d bytes", partBytes))
	}
	return content, err
}

var privateKey = pattern.New(`(?s)-----BEGIN [^-]*PRIVATE KEY-----.*?(?:-----END [^-]*PRIVATE KEY-----|$)`)

// clean removes private keys, though there should be none, and makes the rest fit for a terminal.
func clean(name string, content []byte) []byte {
	content = privateKey.ReplaceAll(content, []byte("[a private key was removed here]"))
	if strings.HasSuffix(name, ".json") {
		return []byte(visible.JSON(string(content)))
	}
	return []byte(visible.Lines(string(content)))
}

func (c Config) readme(names, missing []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "What %s knows of its node, packed at %s by 'sevagent bundle'.\n", c.Version,
		c.Now.UTC().Format(time.RFC3339))
	b.WriteString("It has names of secrets, certificates and hosts, but no private key and no secret's content.\n\n")
	for _, name := range names {
		b.WriteString(name + "\n")
	}
	if len(missing) > 0 {
		b.WriteString("\nMissing, in whole or in part:\n\n" + strings.Join(missing, "\n") + "\n")
	}
	return b.String()
}

// configuration is what the files say together; of files with mistakes, only these.
func (c Config) configuration() ([]byte, error) {
	cfg, err := config.Load(c.Path)
	if err != nil {
		return nil, err
	}
	return cfg.Encode()
}

// published is where certificates are published, as far as the configuration says.
func (c Config) published() string {
	cfg, err := config.Load(c.Path)
	if err != nil {
		return config.Default().MTLS.Path
	}
	return cfg.MTLS.Path
}

// listing lists what lies at a path, without opening any file.
func listing(root string, links bool) ([]byte, error) {
	var b bytes.Buffer
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := ""
		if links && info.Mode()&fs.ModeSymlink != 0 {
			if to, err := os.Readlink(name); err == nil {
				target = " -> " + to
			}
		}
		fmt.Fprintf(&b, "%v %s %8d %s %q%s\n", info.Mode(), owner(info), info.Size(),
			info.ModTime().UTC().Format(time.RFC3339), name, target)
		return nil
	})
	return b.Bytes(), err
}

// system says which machine this is.
func (c Config) system(ctx context.Context) ([]byte, error) {
	var b bytes.Buffer
	var errs []error
	for _, args := range [][]string{{"uname", "-srvmo"}, {"uptime"}, {"timedatectl", "show"}} {
		out, err := c.Run(ctx, args[0], args[1:]...)
		errs = append(errs, err)
		fmt.Fprintf(&b, "$ %s\n%s\n", strings.Join(args, " "), out)
	}
	release, err := os.ReadFile("/etc/os-release")
	fmt.Fprintf(&b, "/etc/os-release\n%s", release)
	return b.Bytes(), errors.Join(append(errs, err)...)
}

// ask returns the agent's answer to GET path. Any status is an answer.
func ask(ctx context.Context, socket, path string) ([]byte, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sevagent"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("ask the agent for %s: %w", path, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, partBytes))
	if err != nil {
		return nil, fmt.Errorf("ask the agent for %s: %w", path, err)
	}
	return answer, nil
}

// run returns what a program prints, as far as it got.
func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && len(e.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, oneLine(string(e.Stderr)))
	}
	if err != nil && !strings.Contains(err.Error(), name) {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return out, err
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// owner returns the numeric user and group of a file.
func owner(info fs.FileInfo) string {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return fmt.Sprintf("%d:%d", s.Uid, s.Gid)
	}
	return "?"
}
