package spiffe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"sevagent/internal/mtls/source"
)

const (
	// answerWithin is how long the first message of a stream may take. SPIRE sends it at once, unless it has to order
	// the certificate first.
	answerWithin = 30 * time.Second
	// minStale is how long a stream is left alone at least.
	minStale = 10 * time.Second
	// openLook and closedLook are the intervals at which the socket is looked at while there is a stream and while there
	// is none.
	openLook   = 5 * time.Second
	closedLook = time.Second

	retryMin = time.Second
	retryMax = time.Minute
)

// The reasons to end a stream that works.
var (
	errAgain = errors.New("connect again")
	// errStale: the stream is open, and the SPIRE agent may hang. It pushes at half of a certificate's life.
	errStale = errors.New("no message although two thirds of what was left of the certificate's life are over")
)

// Run keeps a stream open until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	failures := 0
	for {
		messages, err := s.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if messages > 0 {
			failures = 0
		}
		if errors.Is(err, errAgain) || errors.Is(err, errStale) {
			s.cfg.Log.Debug("connect again to the SPIRE agent", "socket", s.cfg.Socket, "reason", err)
			continue
		}
		s.ended(err, time.Now())
		failures++
		if s.wait(ctx, backoff(failures, rand.Float64())) {
			failures = 0
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// backoff returns how long to wait after the nth failure in a row, n from 1: full jitter from 1 s to 1 min, never quite
// nothing.
func backoff(n int, random float64) time.Duration {
	ceiling := min(retryMax, retryMin<<min(n-1, 10))
	return max(retryMin/10, time.Duration(float64(ceiling)*random))
}

// wait returns after a while, or as soon as connecting may work, which it reports: when asked to, or when there is
// another socket.
func (s *Source) wait(ctx context.Context, d time.Duration) bool {
	socket := s.cfg.identify()
	timer, look := time.NewTimer(d), time.NewTicker(closedLook)
	defer timer.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return false
		case <-s.again:
			return true
		case <-look.C:
			if now := s.cfg.identify(); now != socket && now != (identity{}) {
				return true
			}
		}
	}
}

// follow opens a stream, and takes over what it brings until it ends. It returns why, and the number of messages.
func (s *Source) follow(ctx context.Context) (messages int, err error) {
	s.mu.Lock()
	overdue := source.Advise(fmt.Errorf("no answer within %v", answerWithin),
		"see whether the SPIRE agent hangs, or cannot reach its server")
	s.expect(time.Now().Add(answerWithin), s.error(source.Transient, overdue))
	s.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() { s.supervise(ctx, cancel) })
	defer func() {
		if ctx.Err() != nil { // net/http has errors of its own for that
			err = context.Cause(ctx)
		}
	}()

	t := s.transport()
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(request(ctx))
	if err != nil {
		if _, known := errors.AsType[*source.Error](err); known {
			return 0, err
		}
		return 0, s.error(source.Transient, err)
	}
	defer resp.Body.Close()
	if err := accept(resp); err != nil {
		return 0, s.status(err)
	}
	for {
		message, err := readFrame(resp.Body)
		if err != nil {
			return messages, s.status(ending(resp, err))
		}
		messages++
		now := time.Now()
		v, err := s.read(message, now)
		clear(message) // it has the key
		if v != nil {
			s.cfg.Log.Debug("received an X.509-SVID", "spiffe_id", v.id, "version", v.version, "not_after", v.leaf.NotAfter)
		}
		s.receive(v, err, now)
	}
}

// read returns what a message offers us.
func (s *Source) read(message []byte, now time.Time) (*svid, error) {
	offers, err := parseResponse(message)
	if err != nil {
		return nil, s.error(source.Transient, fmt.Errorf("read its answer: %w", err))
	}
	o, err := choose(offers, s.cfg.ID)
	if err != nil {
		return nil, s.error(source.Persistent, err)
	}
	v, err := o.verify(s.cfg.Gives, now)
	if err != nil {
		return nil, s.error(source.Transient, fmt.Errorf("refuse that for %s: %w", o.id, err))
	}
	return v, nil
}

// supervise ends the stream when it is overdue, when there is another socket, and when asked to.
func (s *Source) supervise(ctx context.Context, end context.CancelCauseFunc) {
	socket := s.cfg.identify()
	look := time.NewTicker(openLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.again:
			end(errAgain)
		case now := <-look.C:
			s.mu.Lock()
			due, overdue := s.due, s.overdue
			s.mu.Unlock()
			if !now.Before(due) {
				end(overdue)
			}
			if now := s.cfg.identify(); now != socket && now != (identity{}) {
				end(errAgain)
			}
		}
	}
}

// transport returns the means of one connection.
func (s *Source) transport() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return s.cfg.dial(ctx) },
		Protocols:              protocols,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
		// A server of grpc-go hangs up if it is asked for a sign of life more often than every five minutes.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 6 * time.Minute, PingTimeout: 30 * time.Second},
	}
}
