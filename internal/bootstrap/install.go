package bootstrap

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sevagent/internal/cli"
	"sevagent/internal/pattern"
)

// Install is whether and from where to install the ECS agent on a node of the Debian family.
type Install struct {
	When    string // InstallAuto or InstallNever
	Package string // URL or path of amazon-ecs-init's deb, its signature beside it as .asc; empty: Amazon's
	Key     string // URL or path of the key that signed it; empty: Amazon's
}

// Values of Install.When.
const (
	InstallAuto  = "auto"
	InstallNever = "never"
)

// ecsKeyFingerprint is of the primary key that Amazon signs amazon-ecs-init with, through subkeys: Amazon ECS Developer
// Guide, "Updating the Amazon ECS agent on an external instance". The key itself comes from where Amazon's own
// installer (aws/amazon-ecs-agent, scripts/ecs-anywhere-install.sh) takes it. What comes from there needs no parsing
// before it is used: gpgv names the primary key of a signature that it accepts, and only this one counts.
const (
	ecsKeyFingerprint = "F34C3DDAE72926B079BEAEC6BCE9D9A42D51784F"
	ecsKeyURL         = "https://raw.githubusercontent.com/aws/amazon-ecs-agent/master/scripts/amazon-ecs-agent.gpg"
)

// Limits in bytes: the package has the agent's image in it, some 100 MB.
const (
	maxPackage = 1 << 30
	maxKey     = 1 << 20
)

// What a node of the Debian family needs.
const (
	packageDocker  = "docker.io"
	packageECSInit = "amazon-ecs-init"
)

func (i Install) check() error {
	var m mistakes
	if i.When != InstallAuto && i.When != InstallNever {
		m.add("--install-ecs is %q, want %s or %s", i.When, InstallAuto, InstallNever)
	}
	for _, f := range [][2]string{{"--ecs-package", i.Package}, {"--ecs-key", i.Key}} {
		u, err := url.Parse(f[1])
		if f[1] != "" && !filepath.IsAbs(f[1]) && (err != nil || !allowedURL(u)) {
			m.add("%s is %q, want an https:// URL or a file's absolute path", f[0], f[1])
		}
	}
	return errors.Join(m...)
}

// allowedURL reports whether u is https, or http on loopback, which is for tests.
func allowedURL(u *url.URL) bool {
	return u.Scheme == "https" && u.Host != "" || u.Scheme == "http" && loopback(u.Hostname())
}

// planInstall finds the packages to install: none without systemd, since the caller who starts services has installed
// them, and none without apt, where the AMI has the ECS agent.
func (n *node) planInstall(ctx context.Context) error {
	if n.Install.When == InstallNever || n.Services == ServicesNone {
		return nil
	}
	for _, tool := range []string{"apt-get", "dpkg-query"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil
		}
	}
	if _, err := exec.LookPath("docker"); err != nil { // docker.io or docker-ce, as the AMI has it
		n.missing = append(n.missing, packageDocker)
	}
	query := exec.CommandContext(ctx, "dpkg-query", "--show", "--showformat=${Status}", packageECSInit)
	status, err := query.Output()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil || string(status) != "install ok installed" { // an error means that dpkg does not know the package
		n.missing = append(n.missing, packageECSInit)
	}
	return nil
}

// install brings Docker from the distribution, and the ECS agent from Amazon's bucket, its signature verified.
func (n *node) install(ctx context.Context) error {
	if n.missing == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Minute, errors.New("not done within 15m"))
	defer cancel()
	if err := apt(ctx, "update"); err != nil {
		return err
	}
	for _, name := range n.missing {
		var err error
		if name == packageECSInit {
			err = n.installECSInit(ctx)
		} else {
			err = apt(ctx, "install", "--yes", name)
		}
		if err != nil {
			return err
		}
	}
	n.report("install", "%v", n.missing)
	return nil
}

func (n *node) installECSInit(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "bootstrap-") // only root can change what is in it
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // apt reads it as another user
		return err
	}
	source, keySource := n.Install.Package, n.Install.Key
	if source == "" {
		source = ecsPackageURL(n.Target.Region)
	}
	if keySource == "" {
		keySource = ecsKeyURL
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	deb, sig, key := file("amazon-ecs-init.deb"), file("deb.asc"), file("key.asc")
	for _, f := range []struct {
		from, to string
		limit    int64
	}{{keySource, key, maxKey}, {source + ".asc", sig, maxKey}, {source, deb, maxPackage}} {
		if err := download(ctx, downloader(), f.from, f.to, f.limit); err != nil {
			return err
		}
	}
	if err := verify(ctx, n.machine.ecsKey, key, sig, deb); err != nil {
		return fmt.Errorf("verify %s: %w", source, err)
	}
	return apt(ctx, "install", "--yes", "--option=Dpkg::Options::=--force-confold", deb)
}

// ecsPackageURL is of the regional bucket: Amazon ECS Developer Guide, as above. SEV-SNP is AMD's: amd64 only. S3 is
// reached over IPv6 by another name.
func ecsPackageURL(region string) string {
	host, domain := "s3", "amazonaws.com"
	if strings.EqualFold(os.Getenv(dualStack), "true") {
		host = "s3.dualstack"
	}
	if strings.HasPrefix(region, "cn-") {
		domain = "amazonaws.com.cn"
	}
	const file = "amazon-ecs-init-latest.amd64.deb"
	return fmt.Sprintf("https://%s.%s.%s/amazon-ecs-agent-%s/%s", host, region, domain, region, file)
}

// installRetries is for how long a download, or an apt-get, that fails is started again. At first boot, others use
// apt-get too: its option DPkg::Lock::Timeout does not cover the lock of the package lists.
const installRetries = 3 * time.Minute

// apt runs apt-get until it succeeds, or for installRetries. It updates the lists before each further attempt: they may
// be what is wrong.
func apt(ctx context.Context, args ...string) error {
	failed := false
	return again(ctx, func() (again bool, err error) {
		if failed && args[0] != "update" {
			err = aptGet(ctx, "update")
		}
		if err == nil {
			err = aptGet(ctx, args...)
		}
		failed = true
		return err != nil, err
	})
}

// again starts what failed again for installRetries. Unlike a deadline, that does not end an attempt half-way.
func again(ctx context.Context, do func() (again bool, err error)) error {
	until := time.Now().Add(installRetries)
	return retry(ctx, Pauses{2 * time.Second, 20 * time.Second}, func() (again bool, err error) {
		again, err = do()
		return again && ctx.Err() == nil && time.Now().Before(until), err
	})
}

// aptGet runs apt-get once. It waits for others that hold dpkg's lock. Its error is the last line that it wrote.
func aptGet(ctx context.Context, args ...string) error {
	options := []string{"--quiet", "--option=DPkg::Lock::Timeout=300"}
	cmd := exec.CommandContext(ctx, "apt-get", append(options, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l", "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, lastLine(out))
}

func lastLine(output []byte) string {
	text := strings.TrimSpace(string(output))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

var errRedirect = errors.New("refuse the redirect")

// downloader returns a client that follows redirects only to where a download may come from, and that does not wait for
// a server that says nothing.
func downloader() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 30 * time.Second
	return &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if !allowedURL(req.URL) || len(via) > 5 {
			return fmt.Errorf("%w to %s", errRedirect, req.URL.Redacted())
		}
		return nil
	}}
}

// download copies a URL, or a file, of at most limit bytes. It tries again what the network or the server breaks.
func download(ctx context.Context, client *http.Client, from, to string, limit int64) error {
	if filepath.IsAbs(from) {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o644)
	}
	err := again(ctx, func() (again bool, err error) { return get(ctx, client, from, to, limit) })
	if err != nil {
		return cli.Unreachable(fmt.Errorf("download %s: %w", from, err))
	}
	return nil
}

func get(ctx context.Context, client *http.Client, from, to string, limit int64) (again bool, err error) {
	resp, err := request(ctx, client, from)
	if err != nil {
		return !errors.Is(err, errRedirect), err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		again = resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests
		return again, fmt.Errorf("HTTP status %s", resp.Status)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := io.Copy(f, io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return true, err
	}
	if size > limit {
		return false, fmt.Errorf("more than %d bytes", limit)
	}
	return false, f.Close()
}

// request gets a URL, which its error leaves out: the caller's names it.
func request(ctx context.Context, client *http.Client, from string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	return resp, err
}

// verify asks gpgv whether a file is signed by the wanted key, or by a subkey that it vouches for. A signature by some
// key in the keyring is not enough: the keyring came from outside.
func verify(ctx context.Context, want, key, sig, file string) error {
	data, err := os.ReadFile(key)
	if err != nil {
		return err
	}
	ring := filepath.Join(filepath.Dir(key), "key.gpg")
	if err := os.WriteFile(ring, dearmor(data), 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "gpgv", "--status-fd", "1", "--keyring", ring, sig, file)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GNUPGHOME="+filepath.Dir(key))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	status, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("gpgv: %w: %s", err, lastLine(stderr.Bytes()))
	}
	if signers := signedBy(status); !slices.Contains(signers, want) {
		return fmt.Errorf("gpgv: signed by %v, want %s", signers, want)
	}
	return nil
}

// signedBy returns the primary keys of valid signatures: the last field of VALIDSIG (GnuPG, doc/DETAILS).
func signedBy(status []byte) (primary []string) {
	for s := bufio.NewScanner(bytes.NewReader(status)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) == 12 && f[0] == "[GNUPG:]" && f[1] == "VALIDSIG" {
			primary = append(primary, f[11])
		}
	}
	return primary
}

// armorChecksum is the line of an ASCII armor that PEM does not have (RFC 9580, section 6.1).
var armorChecksum = pattern.New(`(?m)^=[A-Za-z0-9+/]{4}\r?$`)

// dearmor returns the bytes of a key that may be ASCII-armored: gpgv reads no armored keyring.
func dearmor(key []byte) []byte {
	if block, _ := pem.Decode(armorChecksum.ReplaceAll(key, nil)); block != nil {
		return block.Bytes
	}
	return key
}
