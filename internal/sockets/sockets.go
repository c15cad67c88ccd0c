// Package sockets finds out whose the TCP sockets of this network namespace are. The port of the ECS agent is not
// privileged: while that agent is down, any process on the node can listen there.
package sockets

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// States of a TCP socket (Linux: include/net/tcp_states.h).
const listen = 10

// ownUID lets a program that does not run as root, in a test or a demonstration, take its own user for root.
var ownUID = uint32(os.Getuid())

// What AskRoot fails with before an answer counts.
var (
	ErrNone    = errors.New("nothing listened there when it was asked")
	ErrNotRoot = errors.New("not root")
)

// Socket is a TCP socket.
type Socket struct {
	Local, Remote netip.AddrPort
	state         uint64
	UID           uint32 // of its maker; 0, too, once it is closed and only the kernel still holds it
	Inode         uint64 // 0 then
}

// AskRoot calls ask, and fails unless root alone listens at an address, by the same sockets before it and after it. An
// error of ask is returned as it is.
func AskRoot(proc string, at netip.AddrPort, ask func() error) error {
	before, err := listeners(proc, at)
	if err != nil {
		return err
	}
	if err := ask(); err != nil {
		return err
	}
	if len(before) == 0 {
		return ErrNone
	}
	if after, err := listeners(proc, at); err != nil || !slices.Equal(before, after) {
		return fmt.Errorf("the socket at %s has changed hands", at)
	}
	return nil
}

// listeners returns the sockets that listen at an address, of which all have to be root's.
func listeners(proc string, at netip.AddrPort) (all []Socket, err error) {
	err = Each(proc, func(s Socket) (more bool, err error) {
		if s.state != listen {
			return false, nil // they come first (Linux: net/ipv4/tcp_ipv4.c, tcp_get_idx)
		}
		to := s.Local.Addr()
		if s.Local.Port() != at.Port() || to != at.Addr() && !to.IsUnspecified() {
			return true, nil
		}
		if s.UID != 0 && s.UID != ownUID {
			return false, fmt.Errorf("uid %d, %w, listens at %s", s.UID, ErrNotRoot, at)
		}
		all = append(all, s)
		return true, nil
	})
	return all, err
}

// Each calls f with every TCP socket, from proc_net_tcp(5) for IPv4 and then for IPv6, until f fails or, of the
// one and of the other, wants no more. The tables are read in the process's own directory: a unit with ProcSubset=pid
// sees no others.
func Each(proc string, f func(Socket) (more bool, err error)) error {
	for _, name := range []string{"tcp", "tcp6"} {
		err := sockets(filepath.Join(proc, "self/net", name), f)
		if name == "tcp6" && errors.Is(err, fs.ErrNotExist) {
			err = nil // a machine without IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func sockets(path string, f func(Socket) (more bool, err error)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Scan() // the column's names
	for lines.Scan() {
		s, err := parseSocket(lines.Text())
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if more, err := f(s); err != nil || !more {
			return err
		}
	}
	return lines.Err()
}

// parseSocket reads a line "sl local remote st tx:rx tr:when retrnsmt uid timeout inode …".
func parseSocket(line string) (s Socket, err error) {
	fields := strings.Fields(line)
	if len(fields) < 10 {
		return s, fmt.Errorf("%d fields, want 10", len(fields))
	}
	local, err1 := parseAddrPort(fields[1])
	remote, err2 := parseAddrPort(fields[2])
	state, err3 := strconv.ParseUint(fields[3], 16, 8)
	uid, err4 := strconv.ParseUint(fields[7], 10, 32)
	inode, err5 := strconv.ParseUint(fields[9], 10, 64)
	return Socket{local, remote, state, uint32(uid), inode}, errors.Join(err1, err2, err3, err4, err5)
}

// parseAddrPort reads an address as 8 or 32 hexadecimal digits, of which eight at a time are a number in the machine's
// byte order, and a port as 4. An IPv4 address in IPv6 becomes one of IPv4.
func parseAddrPort(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	var address []byte
	for len(host) >= 8 {
		word, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, err
		}
		address, host = binary.NativeEndian.AppendUint32(address, uint32(word)), host[8:]
	}
	addr, ok := netip.AddrFromSlice(address)
	number, err := strconv.ParseUint(port, 16, 16)
	if !ok || host != "" || err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address and a port", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), nil
}
