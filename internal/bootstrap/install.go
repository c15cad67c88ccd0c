package bootstrap

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"sevagent/internal/cli"
)

// Values of --install-ecs.
const (
	installAuto  = "auto"
	installNever = "never"
)

// ecsKeyFingerprint is of the primary key that Amazon signs amazon-ecs-init with, through subkeys: Amazon ECS Developer
// Guide, "Updating the Amazon ECS agent on an external instance". The key itself comes from where Amazon's own
// installer takes it from; whatever comes from there counts only if it is this one.
const (
	ecsKeyFingerprint = "F34C3DDAE72926B079BEAEC6BCE9D9A42D51784F"
	ecsKeyURL         = "https://raw.githubusercontent.com/aws/amazon-ecs-agent/master/scripts/amazon-ecs-agent.gpg"
)

// testOnlyFingerprint takes the place of Amazon's key.
var testOnlyFingerprint string

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

// checkSource wants https, a file's path, or http on loopback, which is for tests.
func checkSource(flag, source string) error {
	u, err := url.Parse(source)
	if source == "" || filepath.IsAbs(source) || err == nil && allowedURL(u) {
		return nil
	}
	return fmt.Errorf("%s is %q, want an https:// URL or a file's absolute path", flag, source)
}

func allowedURL(u *url.URL) bool {
	return u.Scheme == "https" && u.Host != "" || u.Scheme == "http" && loopback(u.Hostname())
}

// missingPackages are those to install: none where --services=none, since who starts services has installed them, and
// none without apt, where the AMI has the ECS agent.
func (n *node) missingPackages(ctx context.Context) (missing []string, err error) {
	if n.installECS == installNever || n.services == servicesNone {
		return nil, nil
	}
	for _, tool := range []string{"apt-get", "dpkg-query"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, nil
		}
	}
	if _, err := exec.LookPath("docker"); err != nil { // docker.io or docker-ce, as the AMI has it
		missing = append(missing, packageDocker)
	}
	status, err := exec.CommandContext(ctx, "dpkg-query", "--show", "--showformat=${Status}", packageECSInit).Output()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil || string(status) != "install ok installed" { // an error says that dpkg has never heard of it
		missing = append(missing, packageECSInit)
	}
	return missing, nil
}

// install brings Docker from the distribution, and the ECS agent from Amazon's bucket, its signature verified.
func (n *node) install(ctx context.Context, missing []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Minute, errors.New("not done within 15m"))
	defer cancel()
	if err := apt(ctx, "update"); err != nil {
		return err
	}
	for _, name := range missing {
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
	source, keySource := n.ecsPackage, n.ecsKey
	if source == "" {
		source = ecsPackageURL(n.target.Region)
	}
	if keySource == "" {
		keySource = ecsKeyURL
	}
	deb, sig, armored := filepath.Join(dir, "amazon-ecs-init.deb"), filepath.Join(dir, "deb.asc"), filepath.Join(dir, "key.asc")
	for _, f := range []struct {
		from, to string
		limit    int64
	}{{keySource, armored, maxKey}, {source + ".asc", sig, maxKey}, {source, deb, maxPackage}} {
		if err := download(ctx, f.from, f.to, f.limit); err != nil {
			return err
		}
	}
	if err := verify(ctx, dir, armored, sig, deb); err != nil {
		return fmt.Errorf("verify %s: %w", source, err)
	}
	return apt(ctx, "install", "--yes", "--option=Dpkg::Options::=--force-confold", deb)
}

// ecsPackageURL is of the regional bucket: Amazon ECS Developer Guide, as above. SEV-SNP is AMD's: amd64 only.
func ecsPackageURL(region string) string {
	domain := "amazonaws.com"
	if strings.HasPrefix(region, "cn-") {
		domain = "amazonaws.com.cn"
	}
	return fmt.Sprintf("https://s3.%s.%s/amazon-ecs-agent-%s/amazon-ecs-init-latest.amd64.deb", region, domain, region)
}

// apt runs apt-get, which waits for others who hold its lock. Its error is the last line that it wrote.
func apt(ctx context.Context, args ...string) error {
	args = append([]string{"--quiet", "--option=DPkg::Lock::Timeout=300"}, args...)
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l", "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return fmt.Errorf("%s: %w: %s", strings.Join(append([]string{"apt-get"}, args[2:]...), " "), err, lines[len(lines)-1])
}

// download copies a URL, or a file, of at most limit bytes. What the network or the server breaks is tried again.
func download(ctx context.Context, from, to string, limit int64) error {
	if filepath.IsAbs(from) {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o644)
	}
	client := &http.Client{CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if !allowedURL(req.URL) || len(via) > 5 {
			return fmt.Errorf("refuse the redirect to %s", req.URL.Redacted())
		}
		return nil
	}}
	var err error
	for attempt := range 5 {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return cli.Unreachable(fmt.Errorf("download %s: %w: %w", from, context.Cause(ctx), err))
			case <-time.After(time.Second << attempt / 2):
			}
		}
		var again bool
		if again, err = get(ctx, client, from, to, limit); err == nil {
			return nil
		}
		err = fmt.Errorf("download %s: %w", from, err)
		if !again {
			return cli.Unreachable(err)
		}
	}
	return cli.Unreachable(err)
}

func get(ctx context.Context, client *http.Client, from, to string, limit int64) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return false, err
	}
	resp, err := client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		return true, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, fmt.Errorf("HTTP status %s", resp.Status)
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

// verify asks gpgv whether a file is signed by the pinned key, or by a subkey that it vouches for. That some key in the
// keyring has signed is not enough: the keyring came from outside.
func verify(ctx context.Context, dir, key, sig, file string) error {
	want := ecsKeyFingerprint
	if testOnlyFingerprint != "" {
		want = testOnlyFingerprint
	}
	data, err := os.ReadFile(key)
	if err != nil {
		return err
	}
	if data, err = dearmor(data); err != nil {
		return fmt.Errorf("read the signing key: %w", err)
	}
	got, err := fingerprint(data)
	if err != nil {
		return fmt.Errorf("read the signing key: %w", err)
	}
	if got != want {
		return fmt.Errorf("the signing key is %s, want %s", got, want)
	}
	ring := filepath.Join(dir, "key.gpg")
	if err := os.WriteFile(ring, data, 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "gpgv", "--status-fd", "1", "--keyring", ring, sig, file)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GNUPGHOME="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	status, err := cmd.Output()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		return fmt.Errorf("gpgv: %w: %s", err, lines[len(lines)-1])
	}
	if !signedBy(status, want) {
		return fmt.Errorf("gpgv: no valid signature by %s", want)
	}
	return nil
}

// signedBy looks for a valid signature whose primary key is the wanted one: the last field of VALIDSIG (GnuPG, doc/DETAILS).
func signedBy(status []byte, want string) bool {
	for s := bufio.NewScanner(bytes.NewReader(status)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) == 12 && fields[0] == "[GNUPG:]" && fields[1] == "VALIDSIG" && fields[11] == want {
			return true
		}
	}
	return false
}

// dearmor returns the bytes of a key that may be ASCII-armored (RFC 9580, section 6). The checksum is of no use to what
// is checked by fingerprint.
func dearmor(data []byte) ([]byte, error) {
	_, after, ok := strings.Cut(strings.ReplaceAll(string(data), "\r\n", "\n"), "-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
	if !ok {
		return data, nil
	}
	block, _, ok := strings.Cut(after, "-----END PGP PUBLIC KEY BLOCK-----")
	_, body, split := strings.Cut("\n"+block, "\n\n") // after the headers
	if !ok || !split {
		return nil, errors.New("the armor has no end")
	}
	var text strings.Builder
	for line := range strings.Lines(body) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "=") {
			text.WriteString(line)
		}
	}
	return base64.StdEncoding.DecodeString(text.String())
}

// fingerprint is of the key that a keyring begins with: SHA-1 over 0x99, the length and the body of a version 4 public key
// packet (RFC 9580, sections 4.2, 5.5.2 and 5.5.4.2).
func fingerprint(ring []byte) (string, error) {
	if len(ring) < 6 {
		return "", errors.New("no key")
	}
	var size, at int
	switch {
	case ring[0] == 0x99: // old format, tag 6, length in two bytes
		size, at = int(binary.BigEndian.Uint16(ring[1:])), 3
	case ring[0] == 0xc6 && ring[1] >= 192 && ring[1] < 224: // new format, likewise
		size, at = (int(ring[1])-192)<<8+int(ring[2])+192, 3
	default:
		return "", errors.New("it does not begin with a public key")
	}
	if len(ring) < at+size || size == 0 || ring[at] != 4 {
		return "", errors.New("no whole public key of version 4")
	}
	h := sha1.New()
	h.Write([]byte{0x99, byte(size >> 8), byte(size)})
	h.Write(ring[at : at+size])
	return strings.ToUpper(hex.EncodeToString(h.Sum(nil))), nil
}
