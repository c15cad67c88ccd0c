package sevagent_test

import (
	"bytes"
	"debug/elf"
	"debug/gosym"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"sevagent/internal/must"
)

// table has the packages of the module, and the foreign ones, that a package may import. A foreign entry stands for
// everything below it. All may import the standard library, except for the pure packages: see pure.
var table = map[string][]string{
	"client":       {"internal/evidence"},
	"client/certs": {},
	"verify": {
		"internal/appraise", "internal/appraise/second", "internal/config", "internal/evidence", "internal/nitro",
		"internal/snp",
	},
	"internal/snp":        {},
	"internal/evidence":   {"internal/strictjson", "internal/pattern"},
	"internal/nitro":      {"internal/pattern"},
	"internal/strictjson": {},
	"internal/ecsconfig":  {"internal/pattern"},
	"internal/must":       {},
	"internal/visible":    {},
	"internal/pattern":    {},
	"internal/suggest":    {},
	"internal/promtext":   {},
	"internal/promtext/promtexttest": {
		"internal/must", "internal/promtext", prometheus, "github.com/prometheus/client_model",
		"github.com/prometheus/common",
	},
	"internal/look":                {},
	"internal/visible/visibletest": {},
	"internal/cli": {
		"internal/atomicfile", "internal/suggest", "internal/visible", cobra, "github.com/spf13/pflag", "golang.org/x/sys",
	},
	"internal/cli/clitest":     {"internal/must"},
	"internal/atomicfile":      {},
	"internal/awsconfig":       {aws, "github.com/aws/smithy-go"},
	"internal/appraise":        {"internal/nitro", "internal/snp", "internal/pattern"},
	"internal/appraise/second": {"internal/appraise", "internal/snp", goSEVGuest, "github.com/google/logger"},
	"internal/tpm":             {"internal/nitro", "golang.org/x/sys"},
	"internal/attest": {
		"client", "internal/snp", "internal/evidence", "internal/appraise", "internal/atomicfile", "internal/nitro",
		"internal/promtext", "golang.org/x/sys", "golang.org/x/time",
	},
	"internal/mtls": {
		"client", "internal/config", "internal/mtls/certset", "internal/mtls/directory", "internal/mtls/guard",
		"internal/mtls/source", "internal/promtext",
	},
	"internal/mtls/source":     {"client"},
	"internal/mtls/issue":      {"client", "internal/mtls/source"},
	"internal/mtls/issue/acme": {"internal/mtls/issue", "internal/mtls/source", "golang.org/x/crypto/acme"},
	"internal/mtls/issue/privateca": {
		"internal/awsconfig", "internal/mtls/issue", "internal/mtls/source", aws, "github.com/aws/smithy-go",
	},
	"internal/mtls/spiffe":         {"client", "internal/cgroup", "internal/mtls/source"},
	"internal/mtls/certset":        {"internal/pattern"},
	"internal/mtls/directory":      {"internal/mtls/certset", "internal/mtls/guard", "golang.org/x/sys"},
	"internal/mtls/guard":          {"client", "github.com/fsnotify/fsnotify", "golang.org/x/sys"},
	"internal/mtls/mtlstest":       {"internal/must", "internal/sim"},
	"internal/cgroup":              {"internal/pattern"},
	"internal/sockets":             {},
	"internal/cluster":             {"internal/visible", aws, "github.com/aws/smithy-go", "internal/pattern"},
	"internal/cluster/clustertest": {},
	"internal/probe":               {"client", "internal/promtext", "internal/visible"},
	"internal/watch":               {"github.com/fsnotify/fsnotify"},
	"internal/bundle":              {"internal/config", "internal/pattern", "internal/visible"},
	"internal/readers":             {"client", "internal/cgroup", "internal/promtext", "golang.org/x/sys"},
	"internal/config": {
		"internal/appraise", "internal/nitro", "internal/snp", "internal/suggest", "go.yaml.in/yaml", "internal/pattern",
	},
	"internal/localapi": {
		"client", "internal/appraise", "internal/attest", "internal/cgroup", "internal/evidence",
		"internal/look", "internal/promtext", "internal/sockets", "internal/strictjson", "internal/visible",
		"golang.org/x/sys", "golang.org/x/sync",
	},
	"internal/sim":           {"internal/snp", "golang.org/x/sys"},
	"internal/sim/tsmfs":     {"internal/sim", "internal/sim/simfuse", "internal/snp", "github.com/hanwen/go-fuse"},
	"internal/sim/cuse":      {"internal/sim", "golang.org/x/sys"},
	"internal/sim/simaws":    {"internal/sim/simca"},
	"internal/sim/simdevice": {"internal/attest", "internal/sim", "internal/snp"},
	"internal/sim/simca":     {},
	"internal/sim/simnitro":  {},
	"internal/sim/nitrotpm":  {"internal/sim/simfuse", "internal/sim/simnitro", "github.com/hanwen/go-fuse"},
	"internal/sim/simfuse":   {"github.com/hanwen/go-fuse", "golang.org/x/sys"},
	"internal/sim/simscript": {"github.com/rogpeppe/go-internal"},
	"internal/agent": {
		"client", "client/certs", "internal/appraise", "internal/attest", "internal/awsconfig", "internal/cli",
		"internal/config", "internal/ecsconfig", "internal/evidence", "internal/localapi", "internal/mtls",
		"internal/nitro",
		"internal/mtls/issue", "internal/mtls/issue/acme", "internal/mtls/issue/privateca", "internal/mtls/source",
		"internal/mtls/spiffe", "internal/probe", "internal/promtext", "internal/readers", "internal/strictjson",
		"internal/tpm", aws, systemd, "golang.org/x/sync", "golang.org/x/sys",
	},
	"cmd/sevagent": {
		"client", "internal/agent", "internal/attest", "internal/bundle", "internal/cli", "internal/config",
		"internal/evidence", "internal/visible", "internal/watch", cobra, "golang.org/x/sys",
	},
	"cmd/bootstrap": {"internal/bootstrap", "internal/cli", cobra, "github.com/spf13/pflag"},
	"internal/bootstrap": {
		"client", "internal/atomicfile", "internal/awsconfig", "internal/cli", "internal/config", "internal/ecsconfig",
		"internal/sockets", aws, "github.com/aws/smithy-go", systemd, "internal/pattern",
	},
	"cmd/sevctl": {
		"internal/cli", "internal/cluster", "internal/appraise", "internal/config", "internal/evidence",
		"internal/look", "internal/nitro", "internal/snp", "internal/visible", "verify",
		aws, cobra, "github.com/spf13/pflag", "golang.org/x/sync", "internal/pattern",
	},
	"cmd/sevsim":        {"internal/cli", "internal/nitro", "internal/sim", cobra, "golang.org/x/sync", "golang.org/x/sys"},
	"packaging/notices": {},

	"docs/evidence": {"internal/appraise", "verify"},

	"examples/program":                   {},
	"examples/enclave-client":            {"client/certs", "examples/program"},
	"examples/enclave-client/server":     {"examples/program"},
	"examples/enclave-gateway/gateway":   {"examples/program"},
	"examples/enclave-gateway/processor": {"client/certs", "examples/program"},
	"examples/attested-tls":              {},
	"examples/attested-tls/client": {
		"client", "client/certs", "examples/attested-tls", "examples/program", "verify",
	},
	"examples/attested-tls/server": { // which simulates the enclave that it stands for
		"examples/attested-tls", "examples/program", "internal/sim/simnitro", "verify",
	},
}

const (
	goSEVGuest = "github.com/google/go-sev-guest"
	prometheus = "github.com/prometheus/client_golang"
	aws        = "github.com/aws/aws-sdk-go-v2"
	systemd    = "github.com/coreos/go-systemd/v22"
	cobra      = "github.com/spf13/cobra"
)

// pure packages do no I/O.
var pure = []string{
	"internal/snp", "internal/nitro", "internal/strictjson", "internal/ecsconfig", "internal/mtls/certset",
}

// never names, for each binary that packages install, what must not be linked into it. TestLinks reads the files.
var never = map[string][]string{
	"sevagent": slices.Concat([]string{module + "internal/bootstrap"}, clients, profiles, proto, simulation),
	"bootstrap": slices.Concat(
		[]string{aws + "/service/secretsmanager", module + "internal/agent"}, profiles, proto, simulation),
	"sevctl": append([]string{
		aws + "/service/secretsmanager", aws + "/service/cloudformation", module + "internal/cluster/clustertest",
	}, simulation...),
}

// clients of AWS that the agent does not need.
var clients = []string{
	aws + "/service/ec2", aws + "/service/ecs", aws + "/service/autoscaling", aws + "/service/cloudformation",
}

// proto is protocol buffers, which take a megabyte of memory, and what links them. Nodes do without a second opinion.
var proto = []string{"google.golang.org/protobuf", goSEVGuest, prometheus}

// profiles are what the SDK links for credentials that nodes do not use: internal/awsconfig has those that they do.
var profiles = []string{
	aws + "/config", aws + "/service/sso", aws + "/service/ssooidc", aws + "/service/signin", aws + "/service/sts",
}

var simulation = []string{
	module + "internal/sim", module + "internal/must", "testing", goSEVGuest + "/client", goSEVGuest + "/testing",
}

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
	cmd := exec.Command("go", "list", "-tags", "node", "-deps",
		"-json=ImportPath,Standard,Imports,Deps,TestImports,XTestImports", "./...")
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
	return below(pkg, "os") || below(pkg, "net") && pkg != "net/netip" && pkg != "net/url" ||
		slices.Contains([]string{"io/fs", "io/ioutil", "syscall"}, pkg)
}

// registersFlags reports whether a package is go-sev-guest's client, which puts flags into the process and opens
// devices on its own. Its constants of the kernel's interface are another matter.
func registersFlags(pkg string) bool {
	return below(pkg, goSEVGuest+"/client") && pkg != goSEVGuest+"/client/linuxabi"
}

func TestImports(t *testing.T) {
	packages := must.Get(list())(t, "list the packages")
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
					t.Errorf("%s imports %s, but must do no I/O", name, imported)
				}
				continue
			}
			ok := slices.ContainsFunc(allowed, func(a string) bool {
				if strings.Contains(a, ".") {
					return below(imported, a)
				}
				// A package that may import the simulator may import its parts.
				return imported == module+a || a == "internal/sim" && below(imported, module+a)
			})
			if !ok && !free {
				t.Errorf("%s imports %s, which its row in imports_test.go does not allow",
					name, strings.TrimPrefix(imported, module))
			}
		}
		// The table does not bind tests, but this does.
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if registersFlags(imported) {
				t.Errorf("%s, or a test of it, imports %s", name, imported)
			}
		}
	}
}

// TestLinks reads, from the programs themselves, the packages that are linked into them. The programs are those in the
// folders of SEVAGENT_PROGRAMS, which tools/package sets to what it is about to pack; without it they are built here.
func TestLinks(t *testing.T) {
	folders := filepath.SplitList(os.Getenv("SEVAGENT_PROGRAMS"))
	if len(folders) == 0 {
		folders = []string{t.TempDir()}
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", folders[0], "./cmd/...")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the programs: %v\n%s", err, out)
		}
	}
	for program, forbidden := range never {
		i := slices.IndexFunc(folders, func(dir string) bool {
			_, err := os.Stat(filepath.Join(dir, program))
			return err == nil
		})
		if i < 0 {
			t.Errorf("%s is in none of %q", program, folders)
			continue
		}
		linked, err := linkedPackages(filepath.Join(folders[i], program))
		if err != nil {
			t.Errorf("read the packages of %s: %v", program, err)
			continue
		}
		if !linked[module+"internal/cli"] || !linked["github.com/spf13/cobra"] {
			t.Errorf("%s does not even link %sinternal/cli: this test does not understand the file", program, module)
		}
		for pkg := range linked {
			for _, f := range forbidden {
				if below(pkg, f) && pkg != goSEVGuest+"/client/linuxabi" {
					t.Errorf("%s links %s", program, pkg)
				}
			}
		}
	}
}

// unused are methods of clients that sevagent and bootstrap link.
var unused = []string{
	aws + "/service/secretsmanager.(*Client).DeleteSecret", aws + "/service/cloudformation.(*Client).DeleteStack",
}

// linkedPackages returns the packages of the functions in a program, which keeps their names for stack traces even if
// its symbols are stripped.
func linkedPackages(path string) (map[string]bool, error) {
	file, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	section := file.Section(".gopclntab")
	if section == nil {
		return nil, errors.New("no section .gopclntab: not a Go program")
	}
	data, err := section.Data()
	if err != nil {
		return nil, err
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, file.Section(".text").Addr))
	if err != nil {
		return nil, err
	}
	packages := make(map[string]bool)
	for _, f := range table.Funcs {
		packages[strings.ReplaceAll(f.PackageName(), "%2e", ".")] = true
		if slices.Contains(unused, f.Name) {
			return nil, fmt.Errorf("it has %s, which nobody calls: something that it links, such as the execution of a "+
				"template, finds methods by name, so that the linker keeps all of everything, four megabytes", f.Name)
		}
	}
	return packages, nil
}
