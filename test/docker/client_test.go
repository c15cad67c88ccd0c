//go:build node

package docker

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sevagent/client"
	"sevagent/test/lab"
)

// What a container does with the agent's socket.

// tool is where a container mounts the command sevagent.
const tool = "/usr/bin/sevagent"

// refused returns the agent's refusals, and that it cannot be reached, apart from other errors.
func refused(err error) (*refusal, error) {
	if p, ok := errors.AsType[*client.Problem](err); ok {
		return &refusal{p.Status, p.Code, p.RetryAfter}, nil
	}
	if _, ok := errors.AsType[*client.UnreachableError](err); ok {
		return &refusal{Code: "unreachable"}, nil
	}
	return nil, err
}

// askEvidence asks with package client, for evidence that binds the client's certificate.
func askEvidence(nonce string) (string, *refusal, error) {
	raw, err := hex.DecodeString(nonce)
	if err != nil {
		return "", nil, err
	}
	e, err := client.New("").Evidence(context.Background(), raw, client.BindClient)
	if err != nil {
		r, err := refused(err)
		return "", r, err
	}
	return string(e.Raw), nil, nil
}

// runTool asks with the command.
func runTool(nonce string) (string, error) {
	doc, err := exec.Command(tool, "evidence", "--nonce", nonce, "--bind", "client").Output()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, e.Stderr)
	}
	return string(doc), err
}

// flood is a caller that opens one connection after another, asks for evidence on each and waits.
type flood struct {
	ctx     context.Context
	end     context.CancelFunc
	waiting sync.WaitGroup
	told    chan refusal // the first
	failed  chan error

	opened, served, refused atomic.Int64
}

func startFlood() *flood {
	f := &flood{told: make(chan refusal, 1), failed: make(chan error, 1)}
	f.ctx, f.end = context.WithCancel(context.Background())
	f.waiting.Go(f.run)
	return f
}

func (f *flood) run() {
	nonce := base64.RawURLEncoding.EncodeToString(make([]byte, 16))
	body := `{"nonce":"` + nonce + `"}`
	request := fmt.Appendf(nil, "POST /v1/evidence HTTP/1.1\r\nHost: sevagent\r\nContent-Length: %d\r\n\r\n%s",
		len(body), body)
	for f.ctx.Err() == nil {
		conn, err := net.Dial("unix", client.DefaultSocket)
		if errors.Is(err, syscall.EAGAIN) { // more wait to be accepted than may
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			f.failed <- err
			return
		}
		f.opened.Add(1)
		f.waiting.Go(func() { f.ask(conn, request) })
	}
}

func (f *flood) ask(conn net.Conn, request []byte) {
	defer context.AfterFunc(f.ctx, func() { conn.Close() })()
	defer conn.Close()
	conn.Write(request) // one that is turned away at once has an answer all the same
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 512), nil)
	switch {
	case err != nil:
	case resp.StatusCode == http.StatusOK:
		f.served.Add(1)
	default:
		f.refused.Add(1)
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		select {
		case f.told <- refusal{Status: resp.StatusCode, RetryAfter: time.Duration(seconds) * time.Second}:
		default:
		}
	}
}

// limited waits until the agent asks the flood to wait. The flood goes on.
func (f *flood) limited() (*refusal, error) {
	select {
	case r := <-f.told:
		return &r, nil
	case err := <-f.failed:
		return nil, err
	case <-time.After(lab.Hang):
		return nil, errors.New("nothing limits a flood")
	}
}

// stop ends the flood, and returns what it got.
func (f *flood) stop() string {
	f.end()
	f.waiting.Wait()
	return fmt.Sprintf("%d connections, %d answers, %d refusals", f.opened.Load(), f.served.Load(), f.refused.Load())
}
