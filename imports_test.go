package sevagent_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

// table says which packages of the module, and which foreign ones, a package may import. A foreign entry stands for
// everything below it. The standard library is open to all, but for the pure packages: see pure.
var table = map[string][]string{
	"client":                       {},
	"client/certs":                 {},
	"internal/snp":                 {},
	"internal/evidence":            {},
	"internal/ecsconfig":           {},
	"internal/cli":                 {cobra},
	"internal/atomicfile":          {},
	"internal/appraise":            {"internal/snp", goSEVGuest, "github.com/google/logger"},
	"internal/attest":              {"internal/snp", "internal/evidence", "internal/appraise", "internal/atomicfile", prometheus, "golang.org/x/sys", "golang.org/x/time"},
	"internal/mtls":                {"client", "internal/mtls/guard", prometheus, "golang.org/x/sys"},
	"internal/mtls/guard":          {"client", "github.com/fsnotify/fsnotify", "golang.org/x/sys"},
	"internal/cgroup":              {},
	"internal/cluster":             {aws, "github.com/aws/smithy-go"},
	"internal/cluster/clustertest": {},
	"internal/probe":               {prometheus},
	"internal/readers":             {"internal/cgroup", prometheus, "golang.org/x/sys"},
	"internal/reload":              {"internal/cgroup", prometheus},
	"internal/configfile":          {"go.yaml.in/yaml"},
	"internal/config":              {"internal/appraise", "internal/configfile", "internal/snp", "go.yaml.in/yaml"},
	"internal/localapi":            {"internal/appraise", "internal/attest", "internal/cgroup", "internal/evidence", prometheus, "golang.org/x/sys", "golang.org/x/sync"},
	"internal/sim":                 {"internal/snp", "golang.org/x/sys"},
	"internal/sim/tsmfs":           {"internal/sim", "internal/snp", "github.com/hanwen/go-fuse"},
	"internal/sim/cuse":            {"internal/sim", "golang.org/x/sys"},
	"internal/sim/simaws":          {},
	"internal/sim/simca":           {},
	"internal/sim/simscript":       {"github.com/rogpeppe/go-internal"},
	"internal/agent": {"client", "client/certs", "internal/probe", "internal/readers", "internal/reload", "internal/atomicfile", "internal/configfile", "internal/cli", "internal/appraise", "internal/attest", "internal/config", "internal/evidence", "internal/localapi", "internal/mtls",
		aws, "github.com/aws/smithy-go", systemd, cobra, prometheus, "golang.org/x/sync", "golang.org/x/sys"},
	"cmd/sevagent":       {"internal/agent", "internal/cli"},
	"cmd/sevagent/front": {"internal/atomicfile", "internal/configfile", "golang.org/x/sys"},
	"cmd/sevagentd":      {"internal/agent", "internal/bootstrap", "internal/cli"},
	"cmd/bootstrap":      {"internal/bootstrap", "internal/cli"},
	"internal/bootstrap": {"client", "internal/cli", "internal/atomicfile", "internal/config", "internal/ecsconfig", aws, "github.com/aws/smithy-go", systemd, cobra, "github.com/spf13/pflag"},
	"cmd/sevctl":         {"internal/cli", "internal/ctl"},
	"internal/ctl":       {"internal/cli", "internal/atomicfile", "internal/cluster", aws, "golang.org/x/sys", "internal/appraise", "internal/config", "internal/evidence", "internal/snp", cobra},
	"cmd/sevsim":         {"internal/cli", "internal/sim", cobra, "golang.org/x/sync", "golang.org/x/sys"},
	"packaging/generate": {"internal/agent", "internal/bootstrap", "internal/ctl", cobra, "github.com/spf13/pflag"},

	"examples/enclave-client":            {"client/certs"},
	"examples/enclave-client/enclave":    {},
	"examples/enclave-client/server":     {"examples/enclave-client/enclave"},
	"examples/enclave-gateway/gateway":   {"examples/enclave-client/enclave"},
	"examples/enclave-gateway/processor": {"client/certs"},
	"examples/attested-tls":              {},
	"examples/attested-tls/client":       {"client", "examples/attested-tls"},
	"examples/attested-tls/server":       {"examples/attested-tls", "internal/appraise", "internal/config", "internal/evidence"},
}

const (
	goSEVGuest = "github.com/google/go-sev-guest"
	prometheus = "github.com/prometheus/client_golang"
	aws        = "github.com/aws/aws-sdk-go-v2"
	systemd    = "github.com/coreos/go-systemd/v22"
	cobra      = "github.com/spf13/cobra"
)

// pure packages do no I/O.
var pure = []string{"internal/snp", "internal/ecsconfig"}

// never names, for each binary, what must not be linked into it.
var never = map[string][]string{
	"cmd/sevagent":       append([]string{module + "internal/bootstrap"}, clients...),
	"internal/agent":     append([]string{module + "internal/bootstrap"}, clients...),
	"cmd/bootstrap":      append([]string{aws + "/service/secretsmanager", module + "internal/agent"}, simulation...),
	"internal/bootstrap": append([]string{aws + "/service/secretsmanager", module + "internal/agent"}, simulation...),
	// Two programs in one file. It links CloudFormation's client, which only bootstrap reaches: neither of the two packages
	// imports the other.
	"cmd/sevagentd": append([]string{aws + "/service/ec2", aws + "/service/ecs", aws + "/service/autoscaling"}, simulation...),
	// What it is apart for.
	"cmd/sevagent/front": {"net/http", "crypto/tls", "net", aws, cobra, prometheus, systemd, goSEVGuest, module + "internal/appraise", module + "internal/config"},
	"cmd/sevctl":         append([]string{aws + "/service/secretsmanager", aws + "/service/cloudformation", module + "internal/cluster/clustertest"}, simulation...),
}

// clients of AWS that the agent has no use for.
var clients = append([]string{aws + "/service/ec2", aws + "/service/ecs", aws + "/service/autoscaling", aws + "/service/cloudformation"}, simulation...)

var simulation = []string{module + "internal/sim", goSEVGuest + "/client", goSEVGuest + "/testing"}

const module = "sevagent/"

type listed struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
}

// list runs go list once, over the module and all that it depends on.
var list = sync.OnceValues(func() (map[string]listed, error) {
	cmd := exec.Command("go", "list", "-tags", "node", "-deps", "-json=ImportPath,Standard,Imports,Deps,TestImports,XTestImports", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.String())
	}
	packages := make(map[string]listed)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, err
		}
		packages[p.ImportPath] = p
	}
})

// below reports whether a package is root, or in a folder below it.
func below(pkg, root string) bool { return pkg == root || strings.HasPrefix(pkg, root+"/") }

// doesIO reports whether a package of the standard library reaches outside the process.
func doesIO(pkg string) bool {
	return below(pkg, "os") || below(pkg, "net") && pkg != "net/netip" && pkg != "net/url" || slices.Contains([]string{"io/fs", "io/ioutil", "syscall"}, pkg)
}

// registersFlags reports whether a package is go-sev-guest's client, which puts flags into the process and opens devices
// on its own. Its constants of the kernel's interface are another matter.
func registersFlags(pkg string) bool {
	return below(pkg, goSEVGuest+"/client") && pkg != goSEVGuest+"/client/linuxabi"
}

func TestImports(t *testing.T) {
	packages, err := list()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		name, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue
		}
		allowed, ok := table[name]
		free := below(name, "test") // tests, and programs that only they build
		if !ok && !free {
			t.Errorf("%s has no row in the table of imports_test.go", name)
		}
		for _, imported := range p.Imports {
			if packages[imported].Standard {
				if slices.Contains(pure, name) && doesIO(imported) {
					t.Errorf("%s imports %s, and is to do no I/O", name, imported)
				}
				continue
			}
			ok := slices.ContainsFunc(allowed, func(a string) bool {
				if strings.Contains(a, ".") {
					return below(imported, a)
				}
				// The simulator's parts may be taken by whoever may take the simulator.
				return imported == module+a || a == "internal/sim" && below(imported, module+a)
			})
			if !ok && !free {
				t.Errorf("%s imports %s, which its row in imports_test.go does not allow", name, strings.TrimPrefix(imported, module))
			}
		}
		// Tests are free of the table, but not of this.
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if registersFlags(imported) {
				t.Errorf("%s, or a test of it, imports %s", name, imported)
			}
		}
	}
}

func TestImportsOfBinaries(t *testing.T) {
	packages, err := list()
	if err != nil {
		t.Fatal(err)
	}
	for binary, forbidden := range never {
		p, ok := packages[module+binary]
		if !ok {
			t.Errorf("%s is not there", binary)
		}
		for _, dep := range p.Deps {
			for _, f := range forbidden {
				if below(dep, f) && dep != goSEVGuest+"/client/linuxabi" {
					t.Errorf("%s links %s", binary, dep)
				}
			}
		}
	}
}
