package simaws

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Port is the address of a service that is not always up: until Open, and after Shut, connections are refused.
type Port struct {
	address  string
	reserved int // a socket that is bound and never listens, so that the number is not given to another; -1: none

	mu     sync.Mutex
	server *http.Server
}

// NewPort makes a Port of an address such as "127.0.0.1:0", for which the kernel chooses a number, or ":51678", for all
// addresses.
func NewPort(address string) (*Port, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil || at.Port() != 0 {
		return &Port{address: address, reserved: -1}, nil
	}
	if !at.Addr().Is4() {
		return nil, fmt.Errorf("reserve a port of %s: only IPv4 addresses can be", at.Addr())
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reserve a port of %s: %w", at.Addr(), err)
	}
	// Both this socket and the listener, for which package net does it, have to permit the other.
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: at.Addr().As4()})
	}
	bound, err1 := syscall.Getsockname(fd)
	if err := errors.Join(err, err1); err != nil {
		syscall.Close(fd)
		return nil, fmt.Errorf("reserve a port of %s: %w", at.Addr(), err)
	}
	at = netip.AddrPortFrom(at.Addr(), uint16(bound.(*syscall.SockaddrInet4).Port))
	return &Port{address: at.String(), reserved: fd}, nil
}

// URL returns that of the service.
func (p *Port) URL() string { return "http://" + p.address }

// Open has h serve the port.
func (p *Port) Open(h http.Handler) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		return nil
	}
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		return err
	}
	p.server = &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	go p.server.Serve(l)
	return nil
}

// Shut closes the port and its connections.
func (p *Port) Shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		p.server.Close()
		p.server = nil
	}
}

// Close shuts the port for good.
func (p *Port) Close() {
	p.Shut()
	if p.reserved >= 0 {
		syscall.Close(p.reserved)
		p.reserved = -1
	}
}
