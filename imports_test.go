package sevagent_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// table says which packages of the module, and which foreign ones, a package may import. A foreign entry stands for
// everything below it. The standard library is open to all, but for the pure packages: see pure.
var table = map[string][]string{
	"client":                 {},
	"internal/snp":           {},
	"internal/evidence":      {},
	"internal/ecsconfig":     {},
	"internal/atomicfile":    {},
	"internal/appraise":      {"internal/snp", goSEVGuest, "github.com/google/logger"},
	"internal/attest":        {"internal/snp", "internal/evidence", "internal/appraise", prometheus, "golang.org/x/sys", "golang.org/x/time"},
	"internal/mtls":          {"internal/atomicfile", prometheus, "github.com/fsnotify/fsnotify", "golang.org/x/sys", "golang.org/x/sync"},
	"internal/config":        {"internal/appraise", "internal/snp", "go.yaml.in/yaml"},
	"internal/localapi":      {"internal/appraise", "internal/attest", "internal/evidence", prometheus, "golang.org/x/sys", "golang.org/x/sync"},
	"internal/sim":           {"internal/snp", "golang.org/x/sys"},
	"internal/sim/tsmfs":     {"internal/sim", "internal/snp", "github.com/hanwen/go-fuse"},
	"internal/sim/simaws":    {},
	"internal/sim/simca":     {},
	"internal/sim/simscript": {"github.com/rogpeppe/go-internal"},
	"cmd/sevagent": {"client", "internal/appraise", "internal/atomicfile", "internal/attest", "internal/config", "internal/evidence", "internal/localapi", "internal/mtls",
		aws, "github.com/aws/smithy-go", systemd, cobra, prometheus, "golang.org/x/sync", "golang.org/x/sys"},
	"cmd/bootstrap": {"client", "internal/atomicfile", "internal/config", "internal/ecsconfig", aws, systemd, cobra, "github.com/spf13/pflag"},
	"cmd/sevctl":    {"internal/appraise", "internal/config", "internal/evidence", "internal/snp", cobra},
	"cmd/sevsim":    {"internal/sim", cobra, "golang.org/x/sync", "golang.org/x/sys"},
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
	"cmd/sevagent":  append([]string{aws + "/service/ec2", aws + "/service/ecs", aws + "/service/autoscaling", aws + "/service/cloudformation"}, simulation...),
	"cmd/bootstrap": append([]string{aws + "/service/secretsmanager"}, simulation...),
	"cmd/sevctl":    append([]string{aws + "/service/secretsmanager", aws + "/service/cloudformation"}, simulation...),
}

var simulation = []string{module + "internal/sim", goSEVGuest + "/client", goSEVGuest + "/testing"}

const module = "sevagent/"

type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
}

// list runs go list; it knows what a package imports without its tests.
func list(t *testing.T, args ...string) (packages []listed) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Imports,Deps"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// below reports whether a package is root, or in a folder below it.
func below(pkg, root string) bool { return pkg == root || strings.HasPrefix(pkg, root+"/") }

func TestImports(t *testing.T) {
	packages := list(t, "-deps", "./...")
	standard := make(map[string]bool)
	for _, p := range packages {
		standard[p.ImportPath] = p.Standard
	}
	for _, p := range packages {
		name, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue
		}
		allowed, ok := table[name]
		if !ok && name != "test" && !strings.HasPrefix(name, "test/") && !strings.HasPrefix(name, "examples/") {
			t.Errorf("%s has no row in the table of imports_test.go", name)
		}
		for _, imported := range p.Imports {
			if standard[imported] {
				if slices.Contains(pure, name) && slices.Contains([]string{"os", "net", "io/fs", "syscall", "net/http"}, imported) {
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
			if !ok {
				t.Errorf("%s imports %s, which its row in imports_test.go does not allow", name, strings.TrimPrefix(imported, module))
			}
		}
	}
}

func TestImportsOfBinaries(t *testing.T) {
	for binary, forbidden := range never {
		for _, p := range list(t, "./"+binary) {
			for _, dep := range p.Deps {
				for _, f := range forbidden {
					if below(dep, f) && dep != goSEVGuest+"/client/linuxabi" {
						t.Errorf("%s links %s", binary, dep)
					}
				}
			}
		}
	}
}
