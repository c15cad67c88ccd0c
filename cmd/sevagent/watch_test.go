package main

import (
	"syscall"
	"testing"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"HUP": syscall.SIGHUP, "sighup": syscall.SIGHUP, "SIGUSR2": syscall.SIGUSR2,
		"1": syscall.SIGHUP, "15": syscall.SIGTERM,
		"0": 0, "-1": 0, "99": 0, "LOUD": 0, "SIG1": 0, "": 0,
	} {
		if got := parseSignal(text); got != want {
			t.Errorf("%q is %v, want %v", text, got, want)
		}
	}
}
