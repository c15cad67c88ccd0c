package main

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/must"
	"sevagent/internal/visible/visibletest"
)

// TestHostile: neither a container, a server, a certificate nor a secret paints the terminal.
func TestHostile(t *testing.T) {
	s := new(client.Status)
	visibletest.Fill(s, visibletest.Hostile)

	t.Run("status", func(t *testing.T) {
		var b strings.Builder
		for _, width := range []int{0, 80} {
			look := screen{&b, width, false, time.Now()}
			look.status(s)
			look.checks(&s.Health)
			look.refresh(&client.Refresh{Generation: visibletest.Hostile, Secrets: s.MTLS.Secrets})
		}
		visibletest.Check(t, b.String())
	})
	t.Run("status as JSON", func(t *testing.T) {
		var b strings.Builder
		must.Do(t, cli.JSON(&b).Encode(s), "encode the status")
		visibletest.Check(t, b.String())
	})
	t.Run("log in text form", func(t *testing.T) {
		var b strings.Builder
		log := newLogger(&b, config.Log{Format: "text"}, new(slog.LevelVar))
		log.Error("constant", "quoted", visibletest.Hostile, "err", errors.New(visibletest.Hostile))
		log.Error("constant", "delete", "\x7f", "zero_width", "\u200b", "override", "\u202e")
		visibletest.Check(t, b.String())
	})
}

// TestSeveralReasons: the lines of a reason stay readable on one.
func TestSeveralReasons(t *testing.T) {
	if got, want := oneLine("one\ntwo"), "one; two"; got != want {
		t.Errorf("oneLine = %q, want %q", got, want)
	}
}

// Durations in the log are text.
func TestDurationsInTheLog(t *testing.T) {
	var b strings.Builder
	log := newLogger(&b, config.Log{Format: "json"}, new(slog.LevelVar))
	log.Error("constant", "after", 60*time.Millisecond, slog.Group("g", "retry_in", 90*time.Second+1))
	if !strings.Contains(b.String(), `"after":"60ms","g":{"retry_in":"1m30s"}`) {
		t.Errorf("logged %s, want durations in words", &b)
	}
}
