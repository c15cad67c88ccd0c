//go:build node

// Package leak proves that private keys which are born on a node leave it by nothing but the published directory: real
// agents order certificates, and all that leaves them is recorded and searched.
package leak

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
	"sevagent/test/lab"
	"sevagent/test/lab/search"
)

// Sources of keys.
const (
	privateCA = "Private CA"
	acme      = "ACME"
	spiffe    = "SPIFFE"
	onDisk    = "allow_disk" // Private CA, with a published directory on the disk
	planted   = "planted"
)

// Places that something is expected in, besides others.
const (
	packets     = "packets of all interfaces"
	privateCAIs = "requests to Private CA, answers"
	acmeIs      = "requests over ACME, answers"
	workloadAPI = "SPIFFE Workload API"
	disk        = "blocks of the disk"
	proc        = "/proc of the agents"
)

// TestKeysStay has agents order certificates from all sources, and searches everything that leaves them for their keys.
// SEVAGENT_ISSUANCES is the number of certificates.
func TestKeysStay(t *testing.T) {
	issuances := must.Get(strconv.Atoi(cmp.Or(os.Getenv("SEVAGENT_ISSUANCES"), "60")))(t, "read SEVAGENT_ISSUANCES")
	const each = 4 // nodes with Private CA and ACME, and as many with SPIFFE
	p := newProof(t)
	third := (issuances + 3*each - 1) / (3 * each) // of a node
	spire := p.startSPIRE()
	if !spire {
		t.Log("SPIFFE is not part of this run: test/run system/spire builds SPIRE")
		third = (issuances + 2*each - 1) / (2 * each)
	}
	t.Run("nodes", func(t *testing.T) {
		for i := range each {
			t.Run(fmt.Sprint("ordering ", i), func(t *testing.T) { t.Parallel(); p.order(t, i, third) })
			if spire {
				t.Run(fmt.Sprint("pushed ", i), func(t *testing.T) { t.Parallel(); p.push(t, each+i, third) })
			}
		}
	})
	if t.Failed() {
		return
	}
	p.controls(2 * each)
	p.search()
}

// order has a node order certificates from Private CA and over ACME. An agent orders six an hour from each source, so
// the node boots after that.
func (p *proof) order(t *testing.T, i, count int) {
	challenges := lab.FreeAddress(t)
	host := fmt.Sprintf("node-%d.cluster.test", i)
	p.challenges.Store(host, challenges)
	n := p.newNode(t, i, fmt.Sprintf(`
  - {name: client, from: acm-pca, gives: [client], ca: %q, evidence: extension}
  - {name: server, from: acme, gives: [server], directory: %q, roots: /etc/sevagent/roots.pem, dns: [%s],
     key: ecdsa-p384, challenge: http-01, challenge_listen: %q}
`, p.ca.ARN(), p.directory, host, challenges))
	last := make(map[string]string) // keys by their files
	for done := 0; done < count; {
		n.boot()
		for orders := 0; orders < 6 && done < count; orders++ {
			var renewed sync.WaitGroup
			for _, name := range []string{"client", "server"} {
				if orders > 0 {
					body := fmt.Sprintf(`{"renew": %q}`, name)
					renewed.Go(func() { n.ask(t, http.MethodPost, "http://socket/v1/refresh", body) })
				}
			}
			renewed.Wait()
			for file, source := range map[string]string{"client.key": privateCA, "server.key": acme} {
				lab.Until(t, "a new "+file, func() error { // an order that failed is tried again
					text, err := os.ReadFile(filepath.Join(n.published, file))
					if err == nil && string(text) == last[file] {
						err = errors.New("it is as it was")
					}
					last[file] = string(text)
					return err
				})
				if !p.certified(t, source, last[file]) {
					t.Errorf("%s has come back", file)
				}
			}
			done++
		}
		n.shut()
	}
	n.unmount()
}

// push has a node take the certificates that SPIRE pushes, whose keys SPIRE's agent makes.
func (p *proof) push(t *testing.T, i, count int) {
	id := fmt.Sprintf("spiffe://example.org/node-%d", i)
	p.spire.Entry(id, "unix:uid:0", 16*time.Second) // that is 26 in all, and the next comes after half of it
	n := p.newNode(t, i, fmt.Sprintf(`
  - {name: node, from: spiffe, gives: [client, server], id: %q}
`, id))
	n.boot()
	last := ""
	for range count {
		lab.Until(t, "the next certificate", func() error {
			generation, err := lab.Current(n.published)
			if err != nil || generation == last {
				return cmp.Or(err, errors.New("nothing new"))
			}
			text, err := os.ReadFile(filepath.Join(generation, "client.key"))
			if last = generation; err == nil && !p.certified(t, spiffe, string(text)) {
				err = errors.New("the same key")
			}
			return err
		})
	}
	n.shut()
	n.unmount()
}

// controls are what has to be found: the key of a node whose published directory is on the disk, and one that is
// planted where requests, packets, environments and files are.
func (p *proof) controls(i int) {
	t := p.t
	text := []byte(mtlstest.KeyPEM(t, mtlstest.NewKey(t)))
	p.certified(t, planted, string(text))

	n := p.newNode(t, i, fmt.Sprintf("\n  - {name: client, from: acm-pca, gives: [client], ca: %q}\n", p.ca.ARN()))
	n.disk = true
	n.env = append(n.env, "PLANTED="+base64.StdEncoding.EncodeToString(text))
	n.boot()
	p.certified(t, onDisk, lab.Read(t, filepath.Join(n.published, "client.key")))
	file := filepath.Join(n.root, "var/tmp/planted")
	lab.Write(t, file, string(text))
	syscall.Sync()
	must.Do(t, os.Remove(file), "remove a file")
	n.shut()
	n.unmount()

	inner := must.Get(json.Marshal(map[string]string{"csr": base64.RawURLEncoding.EncodeToString(text)}))(t, "encode")
	for address, body := range map[string]map[string]string{
		p.privateCA: {"Csr": base64.StdEncoding.EncodeToString(text)},
		p.directory: {"payload": base64.RawURLEncoding.EncodeToString(inner)},
	} {
		encoded := must.Get(json.Marshal(body))(t, "encode a request")
		res := must.Get(p.acmeClient.Post(address, "application/json", bytes.NewReader(encoded)))(t, "plant a key")
		res.Body.Close()
	}
}

// search ends everything, and searches it.
func (p *proof) search() {
	t := p.t
	for name, program := range p.programs {
		program.Stop(t, syscall.SIGTERM)
		io.WriteString(p.at("log of "+name), program.Output.String())
	}
	p.capture.end(t)
	fmt.Fprintf(p.at("state of the simulated Private CA"), "%+v", p.ca)
	lab.MustRun(t, exec.Command("umount", p.disk))
	p.at(disk).Write(must.Get(os.ReadFile(p.disk+".img"))(t, "read the disk"))

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "place\tbytes\tprivate keys\tpublic keys\tplanted\t")
	for _, name := range slices.Sorted(maps.Keys(p.places)) {
		found, size := make(map[string]search.Hit), 0
		for _, s := range p.places[name].streams {
			size += s.Len()
			maps.Copy(found, p.keys.Search(s.Bytes()))
		}
		if size == 0 {
			t.Errorf("%s: there is nothing to search", name)
		}
		counts := make(map[string]int)
		for _, k := range p.known {
			hit, ok := found[k.String()]
			switch has, may := expected(name, k); {
			case ok && !may:
				t.Errorf("%s: found %v as %s", name, k, hit.Form)
			case !ok && has:
				t.Errorf("%s: did not find %v, which is there: this search is worth nothing", name, k)
			case ok && k.source == planted:
				counts[planted]++
			case ok && k.private:
				counts["private"]++
			case ok:
				counts["public"]++
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%t\t\n", name, size, counts["private"], counts["public"], counts[planted] > 0)
	}
	w.Flush()
	t.Logf("keys: %v\n%s", p.count, &table)
	t.Log("not searched: the agents' memory, which is not wiped; swap; a journal, which has what the agents log")
}

// expected reports whether a key has to be found in a place, and whether it may be.
func expected(place string, k key) (has, may bool) {
	switch {
	case k.source == planted:
		may = slices.Contains([]string{packets, privateCAIs, acmeIs, disk, proc}, place)
		return may && k.private, may
	case place == workloadAPI: // where the private keys come from, too
		return k.source == spiffe, k.source == spiffe
	case k.private:
		return place == disk && k.source == onDisk, place == disk && k.source == onDisk
	case place == packets, place == privateCAIs:
		return k.source == privateCA || k.source == onDisk, true
	default:
		return place == acmeIs && k.source == acme, true
	}
}

// key is what is looked for: a private key, or its public key.
type key struct {
	private bool
	source  string
	number  int
}

func (k key) String() string {
	kind := "public"
	if k.private {
		kind = "private"
	}
	return fmt.Sprintf("the %s key %d from %s", kind, k.number, k.source)
}

// proof is a CA of each kind, the keys that were certified, and what is to be searched for them.
type proof struct {
	t       *testing.T
	capture *capture
	disk    string // where it is mounted; the image's name ends in .img
	env     []string

	ca         *simaws.PrivateCA
	privateCA  string // URL
	directory  string // of ACME
	roots      string
	acmeClient *http.Client
	challenges sync.Map // addresses by host
	spire      *lab.SPIRE

	mu     sync.Mutex
	keys   *search.Searcher
	count  map[string]int // keys by source
	known  []key
	seen   map[string]bool // scalars
	places map[string]*place
	// programs are the others that run, beside agents.
	programs map[string]*lab.Process
}

func newProof(t *testing.T) *proof {
	t.Helper()
	p := &proof{
		t: t, disk: filepath.Join(lab.Work(), "disk"), keys: search.New(), count: make(map[string]int),
		seen: make(map[string]bool), places: make(map[string]*place), programs: make(map[string]*lab.Process),
	}
	lab.MustRun(t, exec.Command("truncate", "-s", "256M", p.disk+".img"))
	lab.MustRun(t, exec.Command("mkfs.ext4", "-q", "-F", p.disk+".img"))
	must.Do(t, os.Mkdir(p.disk, 0o755), "make a directory")
	lab.MustRun(t, exec.Command("mount", "-o", "loop,nodiscard", p.disk+".img", p.disk))

	p.capture = startCapture(t, p.at(packets))
	instance := simaws.DefaultInstance()
	metadata := p.serve("requests for metadata, answers", &simaws.IMDS{Instance: instance})
	p.ca = &simaws.PrivateCA{Region: instance.Region, AccountID: instance.AccountID}
	p.ca.SetCA(lab.NewCA(t, "Private CA"))
	p.privateCA = p.serve(privateCAIs, p.ca)
	p.env = lab.Environment("AWS_EC2_METADATA_SERVICE_ENDPOINT="+metadata, "AWS_ENDPOINT_URL_ACM_PCA="+p.privateCA)
	p.startPebble()
	return p
}

// startPebble starts Pebble, which has the agents prove their names by http-01, behind a proxy that sees into TLS.
func (p *proof) startPebble() {
	t := p.t
	ca := lab.NewCA(t, "TLS of the authority")
	leaf := must.Get(ca.Issue("pebble", time.Now(), time.Now().Add(time.Hour)))(t, "issue Pebble's certificate")
	dir := t.TempDir()
	lab.Write(t, filepath.Join(dir, "cert.pem"), leaf.Cert)
	lab.Write(t, filepath.Join(dir, "key.pem"), leaf.Key)
	toNode := p.serve("answers to http-01", proxy(nil, func(r *http.Request) string {
		address, _ := p.challenges.Load(r.Host[:max(0, strings.LastIndex(r.Host, ":"))])
		return fmt.Sprint("http://", address)
	}))
	port := must.Get(url.Parse(toNode))(t, "parse a URL").Port()
	listen, manage := lab.FreeAddress(t), lab.FreeAddress(t)
	config := must.Get(json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "managementListenAddress": manage, "keyAlgorithm": "ecdsa",
		"certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": json.Number(port), "tlsPort": 1, "retryAfter": map[string]int{"authz": 1, "order": 1},
	}}))(t, "encode Pebble's configuration")
	lab.Write(t, filepath.Join(dir, "pebble.json"), string(config))
	cmd := exec.Command(lab.Pinned("pebble", "pebble"), "-config", filepath.Join(dir, "pebble.json"),
		"-dnsserver", lab.StartResolver(t))
	cmd.Env = lab.Environment("PEBBLE_VA_NOSLEEP=1")
	pebble := lab.Start(t, "pebble", cmd)
	lab.UntilOpen(t, pebble, listen)
	lab.UntilOpen(t, pebble, manage)
	p.programs["Pebble"] = pebble

	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	p.acmeClient = &http.Client{Transport: transport}
	pair := must.Get(tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key)))(t, "load the proxy's certificate")
	p.directory = p.serveTLS(acmeIs, proxy(transport, func(*http.Request) string { return "https://" + listen }),
		&tls.Config{Certificates: []tls.Certificate{pair}}) + "/dir"
	res := must.Get(p.acmeClient.Get("https://"+manage+"/roots/0"))(t, "get Pebble's root")
	defer res.Body.Close()
	p.roots = ca.PEM() + string(must.Get(io.ReadAll(res.Body))(t, "read Pebble's root"))
}

// startSPIRE starts SPIRE, with all that it stores on the disk, if it is built.
func (p *proof) startSPIRE() bool {
	for _, program := range []string{"spire-server", "spire-agent"} {
		if _, err := os.Stat(lab.Pinned("spire", program)); err != nil {
			return false
		}
	}
	dir := filepath.Join(p.disk, "spire")
	p.spire = lab.NewSPIRE(p.t, dir, "DEBUG")
	p.programs["SPIRE's agent"], p.programs["SPIRE's server"] = p.spire.Agent(), p.spire.Process
	return true
}

// certified notes a key, and reports whether it is a new one.
func (p *proof) certified(t *testing.T, source, text string) bool {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("a key from %s is not PEM", source)
	}
	parsed, ok := must.Get(x509.ParsePKCS8PrivateKey(block.Bytes))(t, "parse a key from %s", source).(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("a key from %s is not one for ECDSA", source)
	}
	scalar := must.Get(parsed.Bytes())(t, "encode a key")
	point := must.Get(parsed.PublicKey.Bytes())(t, "encode a public key")
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen[string(scalar)] {
		return false
	}
	p.seen[string(scalar)] = true
	for private, secret := range map[bool][]byte{true: scalar, false: point[1:]} {
		k := key{private, source, p.count[source]}
		p.known = append(p.known, k)
		p.keys.Add(k.String(), secret)
	}
	p.count[source]++
	return true
}

// node is a machine whose root file system is that of the host below, and above what it writes, on the disk.
type node struct {
	*proof
	t               *testing.T
	root, published string // as the test sees them
	address         string // of the agent
	disk            bool   // the published directory is on it
	env             []string
	workload        net.Listener // of the Workload API; nil: none
	device          *lab.Process
	agent           *lab.Agent
	http            *http.Client
}

func (p *proof) newNode(t *testing.T, i int, issue string) *node {
	t.Helper()
	root := filepath.Join(lab.Work(), "nodes", fmt.Sprint(i))
	upper := filepath.Join(p.disk, fmt.Sprint(i))
	n := &node{proof: p, t: t, root: root, published: root + lab.Published, address: lab.FreeAddress(t), env: p.env}
	for _, dir := range []string{root, upper + "/upper", upper + "/work"} {
		must.Do(t, os.MkdirAll(dir, 0o755), "make a directory")
	}
	mount := func(args ...string) { t.Helper(); lab.MustRun(t, exec.Command("mount", args...)) }
	mount("-t", "overlay", "-o", fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%[1]s/work", upper), "overlay", root)
	mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", root+"/run")
	mount("-t", "proc", "proc", root+"/proc")
	mount("--bind", "/dev", root+"/dev")
	mount("--bind", "-o", "ro", lab.Bin(""), root+"/mnt")
	for _, dir := range []string{"/run/sevagent", lab.Published} {
		must.Do(t, os.MkdirAll(root+dir, 0o755), "make a directory")
	}
	lab.Write(t, root+lab.ConfigDir+"/roots.pem", p.roots)
	lab.Write(t, root+lab.ConfigDir+"/config.yaml", fmt.Sprintf(
		"log: {level: debug}\nattestation: {policy: /run/device/policy.yaml, device: /run/sev-guest,\n"+
			"  transport: ioctl, rate: 50, burst: 64}\nlisten: {tcp: %q}\nmtls:\n  issue:%s", n.address, issue))
	const rdev = 1<<8 | 3 // opens as /dev/null does; sevsim exec diverts its ioctls
	must.Do(t, syscall.Mknod(root+"/run/sev-guest", syscall.S_IFCHR|0o600, rdev), "make a device node")
	n.device = lab.Start(t, "sevsim", exec.Command(lab.Bin("sevsim"), "device", "--dir", root+"/run/device",
		"--socket", root+"/run/device.sock"))
	lab.Until(t, "the simulated device", func() error {
		if text := n.device.Output.String(); text != "ready\n" {
			return errors.New(text)
		}
		return nil
	})
	if p.spire != nil {
		n.relay(root + "/run/spire/agent/public/api.sock")
	}
	socket := root + "/run/sevagent/sevagent.sock"
	n.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			if address == "socket:80" {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
		DisableKeepAlives: true,
	}}
	return n
}

// boot starts the agent on an empty tmpfs, and waits until it is ready.
func (n *node) boot() {
	n.t.Helper()
	if n.disk {
		lab.Write(n.t, n.root+lab.ConfigDir+"/conf.d/90-disk.yaml", "mtls: {allow_disk: true}\n")
	} else {
		lab.MustRun(n.t, exec.Command("mount", "-t", "tmpfs", "tmpfs", n.published))
	}
	cmd := exec.Command("/mnt/sevsim", "exec", "--device", "/run/device.sock", "--", "/mnt/sevagent", "run")
	cmd.Env, cmd.Dir, cmd.SysProcAttr = n.env, "/", &syscall.SysProcAttr{Chroot: n.root}
	n.agent = lab.StartAgent(n.t, n.root+"/run/sevagent/sevagent.sock", cmd)
	n.agent.UntilReady()
}

// unmount ends the node's file systems.
func (n *node) unmount() {
	n.t.Helper()
	n.device.Stop(n.t, syscall.SIGTERM)
	if n.workload != nil {
		n.workload.Close()
	}
	lab.MustRun(n.t, exec.Command("umount", "--recursive", n.root))
}

// shut notes what the agent tells, has open and has written to memory, and ends it, and the tmpfs.
func (n *node) shut() {
	t := n.t
	t.Helper()
	for _, host := range []string{"socket", n.address} {
		for _, path := range []string{"/healthz", "/readyz", "/metrics", "/v1/status", "/v1/certificates", "/"} {
			n.ask(t, http.MethodGet, "http://"+host+path, "")
		}
	}
	n.ask(t, http.MethodPost, "http://socket/v1/evidence", `{"nonce": "AAECAwQFBgcICQoLDA0ODw", "bind": "client"}`)
	p := fmt.Sprintf("/proc/%d/", n.agent.Pid)
	for _, name := range []string{"environ", "cmdline", "comm", "maps", "status", "stat", "limits", "mountinfo"} {
		n.at(proc).Write([]byte(lab.Read(t, p+name)))
	}
	for _, fd := range must.Get(os.ReadDir(p+"fd"))(t, "list the agent's descriptors") {
		link, _ := os.Readlink(p + "fd/" + fd.Name())
		info, _ := os.ReadFile(p + "fdinfo/" + fd.Name())
		fmt.Fprintf(n.at(proc), "%s %s", link, info)
	}
	n.agent.Stop(t, syscall.SIGTERM)
	io.WriteString(n.at("logs of the agents"), n.agent.Output.String())
	must.Do(t, filepath.WalkDir(n.root+"/run", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n.at("files in /run").Write([]byte(path + "\n" + lab.Read(t, path)))
		}
		return err
	}), "read /run")
	if !n.disk {
		must.Do(t, syscall.Unmount(n.published, 0), "end the tmpfs")
	}
}

// ask asks the agent, and notes the answer. It may be that an order has failed.
func (n *node) ask(t *testing.T, method, address, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	must.Do(t, err, "make a request")
	res, err := n.http.Do(req)
	if err != nil {
		t.Errorf("ask the agent: %v", err)
		return
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK && res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%s %s %s: %s, %v\n%s", method, address, body, res.Status, err, answer)
	}
	fmt.Fprintf(n.at("answers of the local API"), "%v\n%s", res.Header, answer)
}
