//go:build aws

package aws_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
	"sevagent/test/lab"
)

// firstBoot runs the user data of cluster.yaml in a directory, with programs of the test in front of the PATH.
type firstBoot struct {
	*testing.T
	dir        string
	parameters []string
	env        []string
}

func newFirstBoot(t *testing.T, parameters ...string) *firstBoot {
	b := &firstBoot{T: t, dir: t.TempDir(), parameters: parameters}
	b.program("ip", `[ "$1" != -4 ] || echo default via 10.9.0.1 dev ens5`)
	b.program("sleep", "")
	b.program("bootstrap", `printf '%s\n' "$@" > args; env > env`)
	return b
}

func (b *firstBoot) program(name, script string) {
	lab.WriteProgram(b, filepath.Join(b.dir, name), "#!/bin/bash\n"+script+"\n")
}

// run returns what the script prints, and its exit status.
func (b *firstBoot) run(replace ...string) (out string, status int) {
	b.Helper()
	args := append([]string{filepath.Join(lab.Repository(), "cloudformation/userdata.py")}, b.parameters...)
	text := must.Get(exec.Command(lab.Python("python"), args...).Output())(b, "print the user data")
	path := filepath.Join(b.dir, "part-001")
	replace = append([]string{"/usr/libexec/sevagent/bootstrap", filepath.Join(b.dir, "bootstrap")}, replace...)
	lab.WriteProgram(b, path, strings.NewReplacer(replace...).Replace(string(text)))
	cmd := exec.Command(path)
	cmd.Dir = b.dir
	cmd.Env = append(append(os.Environ(), "PATH="+b.dir+":"+os.Getenv("PATH"), "NO_PROXY=*"), b.env...)
	data, _ := cmd.CombinedOutput()
	return string(data), cmd.ProcessState.ExitCode()
}

func (b *firstBoot) read(name string) string {
	b.Helper()
	return lab.Read(b, filepath.Join(b.dir, name))
}

// hostile are lines of ecs.config that a shell, a list or a template could take apart.
var hostile = []string{
	`ECS_ENGINE_AUTH_DATA={"https://r.example.com":{"username":"o'neil","password":"a,B=c $(id) ${HOME} \u0026 !x"}}`,
	"ECS_INSTANCE_ATTRIBUTES={\"pool\":\"general\",\"tier\":\"back end\"}",
	`ECS_IMAGE_PULL_BEHAVIOR=once`,
	`ECS_LOGLEVEL=$(touch pwned)` + "`touch pwned`",
	`ECS_A=a,ECS_B=b`,
	`ECS_C="q" 'q' \ * ? [x] ~ # ; & | < > ==sevagent== ${!x} {{resolve:ssm:x}}`,
	`ECS_ENABLE_SPOT_INSTANCE_DRAINING=`,
	`_x=`,
}

// TestEcsConfigParameter hands lines of ecs.config to bootstrap, as they stand.
func TestEcsConfigParameter(t *testing.T) {
	t.Parallel()
	lines := "# comment\n\n  " + strings.Join(hostile, "\n\t") + "  \n"
	b := newFirstBoot(t, "AmiId=ami-0123456789abcdef0", "EcsConfig="+lines)
	if out, status := b.run(); status != 0 {
		t.Fatalf("exit status %d: %s", status, out)
	}
	var want []string
	for _, line := range hostile {
		want = append(want, "--ecs-option="+line)
	}
	if got := strings.Split(strings.TrimSuffix(b.read("args"), "\n"), "\n"); !slices.Equal(got, want) {
		t.Errorf("bootstrap was given\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, err := os.Stat(filepath.Join(b.dir, "pwned")); err == nil {
		t.Error("a value was run")
	}

	t.Run("none", func(t *testing.T) {
		b := newFirstBoot(t, "AmiId=ami-0123456789abcdef0")
		if out, status := b.run(); status != 0 || strings.TrimSpace(b.read("args")) != "" {
			t.Errorf("exit status %d, arguments %q: %s", status, b.read("args"), out)
		}
	})
}

// TestOwners hands the owners of what is published to bootstrap, unless nothing is published.
func TestOwners(t *testing.T) {
	t.Parallel()
	parameters := []string{"AmiId=ami-0123456789abcdef0", "MtlsOwner=0:5000",
		"MtlsConsumers=api=1000:1000=client.pem,ca.crt,web=101:101=ca.crt"}
	for _, mtls := range []string{"true", "false"} {
		b := newFirstBoot(t, append(parameters, "EnableEnclaveMtls="+mtls)...)
		if out, status := b.run(); status != 0 {
			t.Fatalf("exit status %d: %s", status, out)
		}
		for name, want := range map[string]string{
			"OWNER": "0:5000", "CONSUMER": "api=1000:1000=client.pem,ca.crt,web=101:101=ca.crt",
		} {
			if mtls == "false" {
				want = ""
			}
			want = "\nSEVAGENT_BOOTSTRAP_MTLS_" + name + "=" + want + "\n"
			if env := "\n" + b.read("env"); !strings.Contains(env, want) {
				t.Errorf("EnableEnclaveMtls=%s: %q is not in bootstrap's environment:\n%s", mtls, want, env)
			}
		}
	}
}

// TestUserDataExtra runs the operator's script after bootstrap, whatever becomes of that, and by its own interpreter.
func TestUserDataExtra(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, extra, want string
		bootstrap, status int
	}{
		{"bash", "x=(a b); echo \"é ${x[1]} $(cat args | wc -l)\" > out", "é b 1\n", 0, 0},
		{"python", "#!" + lab.Python("python") + "\nopen('out', 'w').write('''EOF\n$HOME\\t'quoted' {0}\n''')",
			"EOF\n$HOME\t'quoted' {0}\n", 0, 0},
		{"it fails", "echo x > out; exit 7", "x\n", 0, 7},
		{"bootstrap fails", "echo x > out", "x\n", 3, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newFirstBoot(t, "AmiId=ami-0123456789abcdef0", "UserDataExtra="+test.extra)
			b.program("bootstrap", `printf '%s\n' "$@" > args; exit `+string(rune('0'+test.bootstrap)))
			out, status := b.run()
			if got := b.read("out"); got != test.want || status != test.status {
				t.Errorf("the script wrote %q, want %q; exit status %d, want %d: %s", got, test.want, status, test.status, out)
			}
			if left, _ := filepath.Glob(filepath.Join(b.dir, "*.extra")); len(left) > 0 {
				t.Errorf("it left %q", left)
			}
		})
	}
}

// TestUserDataInstall lets the package manager fail as it does at first boots.
func TestUserDataInstall(t *testing.T) {
	t.Parallel()
	const sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // of nothing
	for _, test := range []struct {
		name, manager, format, script, calls string
		status                               int
	}{
		{"dnf fails once", "dnf", "rpm", `echo "$*" >> calls; [ $(wc -l < calls) -gt 1 ] && mv later bootstrap`,
			"-y --disablerepo=* install PACKAGE\n-y --disablerepo=* install PACKAGE\n", 0},
		{"apt is locked for a while", "apt-get", "deb",
			`echo "$*" >> calls; [ $(wc -l < calls) -gt 4 ] && mv later bootstrap`,
			strings.Repeat("-qy -o DPkg::Lock::Timeout=60 install PACKAGE\n", 5), 0},
		{"for ever", "dnf", "rpm", `echo "$*" >> calls; echo no such thing; exit 1`,
			strings.Repeat("-y --disablerepo=* install PACKAGE\n", 10), 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newFirstBoot(t, "PackageUrl=https://packages.example.com/sevagent."+test.format, "PackageSha256="+sum)
			must.Do(t, os.Rename(filepath.Join(b.dir, "bootstrap"), filepath.Join(b.dir, "later")), "hide bootstrap")
			b.program(test.manager, test.script)
			b.program("curl", `while [ $# -gt 0 ]; do
				[ "$1" != -o ] || : > "$2"
				[[ $1 != *UniqueId=* ]] || echo "$1" > signal
				shift
			done`)
			out, status := b.run()
			calls := b.read("calls")
			for _, line := range strings.Split(calls, "\n") {
				if path := line[strings.LastIndex(line, " ")+1:]; path != "" {
					calls = strings.ReplaceAll(calls, path, "PACKAGE")
				}
			}
			if calls != test.calls || status != test.status {
				t.Errorf("%s was called with\n%swant\n%sexit status %d, want %d: %s", test.manager, calls, test.calls,
					status, test.status, out)
			}
			if test.status == 0 {
				b.read("args") // bootstrap ran
			} else if got := b.read("signal"); got != "UniqueId= install: no such thing\n" {
				t.Errorf("the signal is %q", got)
			}
		})
	}
}

// TestUserDataIPv6 gives a node no route for IPv4: the script asks by names that have IPv6 addresses, and bootstrap is
// told to.
func TestUserDataIPv6(t *testing.T) {
	t.Parallel()
	b := newFirstBoot(t, "PackageUrl=s3://bucket/sevagent.rpm", "PackageSha256="+strings.Repeat("0", 64))
	must.Do(t, os.Remove(filepath.Join(b.dir, "bootstrap")), "remove bootstrap")
	b.program("ip", `[ "$1" = -4 ] || echo default via fe80::1 dev ens5`)
	b.program("curl", `for a; do case $a in http*) echo "$a" >> urls ;; esac; done; echo x`)
	if out, status := b.run(); status != 1 {
		t.Errorf("exit status %d: %s", status, out)
	}
	for url := range strings.Lines(b.read("urls")) {
		if !strings.HasPrefix(url, "http://[fd00:ec2::254]/latest/") &&
			url != "https://s3.dualstack.us-east-2.amazonaws.com/bucket/sevagent.rpm\n" &&
			url != "https://cloudformation.us-east-2.api.aws/\n" {
			t.Errorf("it asked %s", url)
		}
	}
	b = newFirstBoot(t, "AmiId=ami-0123456789abcdef0")
	b.program("ip", `[ "$1" = -4 ] || echo default via fe80::1 dev ens5`)
	b.run()
	for _, want := range []string{"AWS_USE_DUALSTACK_ENDPOINT=true", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6"} {
		if !strings.Contains(b.read("env"), want+"\n") {
			t.Errorf("bootstrap's environment lacks %s", want)
		}
	}

	// A machine with both keeps to IPv4.
	b = newFirstBoot(t, "AmiId=ami-0123456789abcdef0")
	b.program("ip", "echo default")
	b.run()
	if strings.Contains(b.read("env"), "DUALSTACK") {
		t.Error("a node with IPv4 asks for dual-stack names")
	}
}

// TestUserDataProxy sets a proxy for the whole machine, as an AMI may. The metadata service is asked without it, or the
// proxy could invent the node's identity.
func TestUserDataProxy(t *testing.T) {
	t.Parallel()
	instance := simaws.DefaultInstance()
	imds := httptest.NewServer(&simaws.IMDS{Instance: instance})
	t.Cleanup(imds.Close)
	var asked atomic.Pointer[string]
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(&r.RequestURI)
		fmt.Fprint(w, "invented")
	}))
	t.Cleanup(proxy.Close)

	b := newFirstBoot(t)
	b.env = []string{"NO_PROXY=", "no_proxy=", "http_proxy=" + proxy.URL, "ALL_PROXY=" + proxy.URL}
	must.Do(t, os.Remove(filepath.Join(b.dir, "bootstrap")), "remove bootstrap")
	curl := must.Get(exec.LookPath("curl"))(t, "find curl")
	b.program("curl", `[[ $* = *https://* ]] || exec `+curl+` "$@"; printf '%s\n' "$@" > signal`)
	out, status := b.run("http://169.254.169.254", imds.URL)
	if url := asked.Load(); url != nil {
		t.Errorf("the proxy was asked for %s", *url)
	}
	want := "\nUniqueId=" + instance.ID[len(instance.ID)-8:] + " download: not in the AMI, and PackageUrl is empty\n"
	if signal := b.read("signal"); status != 1 || !strings.Contains(signal, want) {
		t.Errorf("exit status %d, want 1; the signal is\n%swant%s%s", status, signal, want, out)
	}
}

// TestEcsConfigParameterReaches takes the lines all the way, by the real bootstrap, to ecs.config.
func TestEcsConfigParameterReaches(t *testing.T) {
	t.Parallel()
	c := &cloud{t: t}
	socket := c.simulatedNode()
	imds := httptest.NewServer(&simaws.IMDS{Instance: simaws.DefaultInstance()})
	t.Cleanup(imds.Close)
	lines := []string{hostile[1], hostile[2],
		`ECS_ENGINE_AUTH_DATA={"https://r.example.com":{"username":"u","password":"a,1=c $(id) !x"}}`}
	b := newFirstBoot(t, "AmiId=ami-0123456789abcdef0", "EcsConfig="+strings.Join(lines, "\n"))
	b.program("bootstrap", `unset SEVAGENT_BOOTSTRAP_{STACK,CAPACITY_PROVIDER,READY_RESOURCE,UPDATE_RESOURCE}
		export AWS_EC2_METADATA_SERVICE_ENDPOINT=`+imds.URL+` AWS_EC2_METADATA_DISABLED=
		exec `+lab.Bin("bootstrap")+` "$@" --services none --socket `+socket+
		` --config-dir etc --state-dir var --ecs-config ecs.config`)
	out, status := b.run()
	config := b.read("ecs.config")
	for _, want := range append(lines[1:], `"pool":"general"`, `"tier":"back end"`, `"sevagent.attested"`) {
		if !strings.Contains(config, want) {
			t.Errorf("exit status %d: ecs.config lacks %s\n%s\n%s", status, want, config, out)
		}
	}
}
