package sockets

import (
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sevagent/internal/must"
)

func TestParseSocket(t *testing.T) {
	for _, c := range []struct {
		name, line string
		want       Socket
		ok         bool
	}{
		{"listening", "   0: 0100007F:C9DE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 " +
			"1076 1 0 100 0 0 10 0",
			Socket{netip.MustParseAddrPort("127.0.0.1:51678"),
				netip.MustParseAddrPort("0.0.0.0:0"), listen, 0, 1076}, true},
		{"listening on all addresses, IPv6",
			"   1: 00000000000000000000000000000000:C9DE 00000000000000000000000000000000:0000 0A 00000000:00000000 " +
				"00:00000000 00000000  1000        0 77 1 0 100 0 0 10 0",
			Socket{netip.MustParseAddrPort("[::]:51678"), netip.MustParseAddrPort("[::]:0"), listen, 1000, 77},
			true},
		{"IPv4 in IPv6", "   2: 0000000000000000FFFF00000100007F:D000 0000000000000000FFFF00000100007F:23DC 01 " +
			"00000000:00000000 00:00000000 00000000 65534        0 9 1 0 20 4 30 10 -1",
			Socket{netip.MustParseAddrPort("127.0.0.1:53248"),
				netip.MustParseAddrPort("127.0.0.1:9180"), 1, 65534, 9}, true},
		{"short", "   0: 0100007F:C9DE 00000000:0000 0A", Socket{}, false},
		{"no address",
			"   0: 0100007:C9DE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1076 1",
			Socket{}, false},
		{"no port", "   0: 0100007F:X 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1076 1",
			Socket{}, false},
		{"no user",
			"   0: 0100007F:C9DE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     -1        0 1076 1",
			Socket{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if runtime.GOARCH == "s390x" {
				t.Skip("the lines are those of a little-endian machine")
			}
			got, err := parseSocket(c.line)
			if (err == nil) != c.ok || c.ok && got != c.want {
				t.Errorf("parseSocket = %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

// A listener there that is not root's makes the ECS agent's port one not to be trusted.
func TestListeners(t *testing.T) {
	const header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	line := func(address, state, uid string) string {
		return "   0: " + address + " 00000000:0000 " + state + " 0:0 0:0 0 " + uid + " 0 77 1\n"
	}
	const ours, all, other, port = "0100007F:C9DE", "00000000:C9DE", "0200007F:C9DE", "0100007F:C9DF"
	const all6, ours6 = "00000000000000000000000000000000:C9DE", "00000000000000000000000001000000:C9DE"
	const mapped, allMapped = "0000000000000000FFFF00000100007F:C9DE", "0000000000000000FFFF000000000000:C9DE"
	nobody := "65534"
	if ownUID == 65534 {
		nobody = "65533"
	}
	for _, c := range []struct {
		name, tcp, tcp6 string
		want            string // of the error; empty: none
	}{
		{"root's", line(ours, "0A", "0"), "", ""},
		{"root's, of all addresses", line(all, "0A", "0"), "", ""},
		{"root's, of all addresses of IPv6", "", line(all6, "0A", "0"), ""},
		{"root's, of IPv4 by IPv6", "", line(mapped, "0A", "0"), ""},
		{"another's, of IPv4 by IPv6", "", line(mapped, "0A", nobody), "not root"},
		{"another's, of all addresses of IPv4 by IPv6", "", line(allMapped, "0A", nobody), "not root"},
		{"another's", line(ours, "0A", nobody), "", "not root"},
		{"another's, of all addresses", line(all, "0A", nobody), "", "not root"},
		{"another's, of all addresses of IPv6", "", line(all6, "0A", nobody), "not root"},
		{"another's beside root's", line(ours, "0A", nobody), line(all6, "0A", "0"), "not root"},
		{"another's elsewhere", line(ours, "0A", "0") + line(other, "0A", nobody) + line(port, "0A", nobody),
			line(ours6, "0A", nobody), ""},
		{"nobody's", line(port, "0A", "0"), "", "nothing listened"},
		{"root's, connected", line(ours, "01", "0"), "", "nothing listened"},
		{"unreadable", "x\n", "", "fields"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			must.Do(t, os.MkdirAll(filepath.Join(dir, "self/net"), 0o755), "make a directory")
			for name, text := range map[string]string{"tcp": c.tcp, "tcp6": c.tcp6} {
				must.Do(t, os.WriteFile(filepath.Join(dir, "self/net", name), []byte(header+text), 0o644), "write %s", name)
			}
			err := AskRoot(dir, netip.MustParseAddrPort("127.0.0.1:51678"), func() error { return nil })
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("AskRoot: %v, want %q", err, c.want)
			}
		})
	}
}
