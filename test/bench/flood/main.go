// Command flood is many callers at once of a node's local API: each asks for evidence on a connection of its own, all
// wait together, and then what they waited is printed. With -slow, that share of them reads nothing for a while.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

func main() {
	socket := flag.String("socket", "/run/sevagent/sevagent.sock", "the agent's `SOCKET`")
	callers := flag.Int("callers", 5000, "how many callers")
	slow := flag.Float64("slow", 0, "the share of callers that read late, 0 to 1")
	pause := flag.Duration("pause", 5*time.Second, "how late those read")
	flag.Parse()
	if err := run(*socket, *callers, *slow, *pause); err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
}

func run(socket string, callers int, slow float64, pause time.Duration) error {
	connections := make([]net.Conn, callers)
	for i := range connections {
		var err error
		if connections[i], err = dial(socket); err != nil {
			return fmt.Errorf("connect caller %d: %w", i, err)
		}
		defer connections[i].Close()
	}
	waited := make([]time.Duration, callers)
	failures := make([]error, callers)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i, conn := range connections {
		all.Go(func() {
			<-start
			late := time.Duration(0)
			if float64(i) < slow*float64(callers) {
				late = pause
			}
			began := time.Now()
			failures[i] = ask(conn, late)
			waited[i] = time.Since(began) - late
		})
	}
	began := time.Now()
	close(start)
	all.Wait()
	took := time.Since(began)

	failed := 0
	for _, err := range failures {
		if err != nil {
			if failed++; failed == 1 {
				fmt.Fprintln(os.Stderr, "flood: the first that failed:", err)
			}
		}
	}
	slices.Sort(waited)
	at := func(share float64) time.Duration {
		return waited[int(share*float64(callers-1))].Round(time.Millisecond)
	}
	fmt.Printf("callers %d failed %d callers/s %.0f p50 %v p99 %v\n", callers, failed,
		float64(callers)/took.Seconds(), at(.5), at(.99))
	return nil
}

// dial connects, and tries again while the socket's queue is full.
func dial(socket string) (conn net.Conn, err error) {
	for range 1000 {
		if conn, err = new(net.Dialer).DialContext(context.Background(), "unix", socket); err == nil {
			return conn, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, err
}

func ask(conn net.Conn, late time.Duration) error {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	body := fmt.Sprintf(`{"nonce": %q}`, base64.RawURLEncoding.EncodeToString(nonce))
	_, err := fmt.Fprintf(conn, "POST /v1/evidence HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if err != nil {
		return err
	}
	time.Sleep(late)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return err
}
