package spiffe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"sevagent/internal/mtls/source"
)

const (
	maxHeader  = 64 << 10
	maxMessage = 1 << 20
	maxText    = 200 // of a server's explanation, in an error
)

// request returns the call of FetchX509SVID, whose message is empty.
func request(ctx context.Context) *http.Request {
	const empty = "\x00\x00\x00\x00\x00"
	r, err := http.NewRequestWithContext(ctx, http.MethodPost,
		"http://localhost/SpiffeWorkloadAPI/FetchX509SVID", strings.NewReader(empty))
	if err != nil {
		panic(err) // a constant URL
	}
	r.Header = http.Header{
		"Content-Type": {"application/grpc"},
		"Te":           {"trailers"},
		"User-Agent":   {"sevagent"},
		// The API's mark of a caller that means it: SPIFFE Workload Endpoint, section 3.
		"Workload.spiffe.io": {"true"},
	}
	return r
}

// Status codes of gRPC.
const (
	codeOK               = 0
	codeInvalidArgument  = 3
	codePermissionDenied = 7
	codeUnimplemented    = 12
)

// statusError is the status that a call has ended with.
type statusError struct {
	code    uint64
	message string
}

func (e *statusError) Error() string {
	switch e.code {
	case codeOK:
		return "it has ended the stream"
	case codePermissionDenied:
		return fmt.Sprintf("PermissionDenied (%.*q)", maxText, e.message)
	}
	return fmt.Sprintf("gRPC status %d (%.*q)", e.code, maxText, e.message)
}

// accept returns why a response is not the beginning of a stream.
func accept(resp *http.Response) error {
	kind := resp.Header.Get("Content-Type")
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "application/grpc") {
		return fmt.Errorf("HTTP status %d and content of the type %.*q: it does not speak gRPC",
			resp.StatusCode, maxText, kind)
	}
	if resp.Header.Get("Grpc-Status") != "" { // a call that fails at once has no trailer
		return status(resp.Header)
	}
	if coding := resp.Header.Get("Grpc-Encoding"); coding != "" && coding != "identity" {
		return fmt.Errorf("messages are compressed (%.*q), which was not asked for", maxText, coding)
	}
	return nil
}

// ending returns why a stream has ended, given why there is no further message.
func ending(resp *http.Response, err error) error {
	if err == io.EOF {
		return status(resp.Trailer)
	}
	return err
}

// status reads the headers or trailers that end a call.
func status(h http.Header) error {
	text := h.Get("Grpc-Status")
	if text == "" {
		return errors.New("it has ended the stream without a status")
	}
	code, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return fmt.Errorf("it has ended the stream with the status %.*q", maxText, text)
	}
	message, err := url.PathUnescape(h.Get("Grpc-Message"))
	if err != nil {
		message = h.Get("Grpc-Message")
	}
	return &statusError{code, message}
}

// status adds to the end of a stream what it calls for.
func (s *Source) status(err error) error {
	e, ok := errors.AsType[*statusError](err)
	switch {
	case !ok:
		return s.error(source.Transient, err)
	case e.code == codePermissionDenied:
		err := fmt.Errorf("%w: no registration entry fits this process", err)
		return s.error(source.Persistent, source.Advise(err, "create one on the SPIRE server, by spire-server entry "+
			"create with -selector unix:path:/usr/bin/sevagent, or unix:sha256: and the digest of that file, for "+
			"which the agent's WorkloadAttestor \"unix\" needs discover_workload_path = true; "+
			"unix:uid:0 would give the key to all of root"))
	case e.code == codeInvalidArgument, e.code == codeUnimplemented:
		err := fmt.Errorf("%w: this is not the socket of a Workload API", err)
		return s.error(source.Persistent, source.Advise(err, "correct its path"))
	}
	return s.error(source.Transient, err)
}

// readFrame reads one message, whose frame is a byte that says whether it is compressed, its length and itself. io.EOF:
// there is none.
func readFrame(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err == io.EOF {
		return nil, err
	} else if err != nil {
		return nil, fmt.Errorf("the stream broke: %w", err)
	}
	size := binary.BigEndian.Uint32(head[1:])
	switch {
	case head[0] != 0:
		return nil, errors.New("it has sent a compressed message, which was not asked for")
	case size > maxMessage:
		return nil, fmt.Errorf("it has sent a message of %d bytes, at most %d are allowed", size, maxMessage)
	}
	message := make([]byte, size)
	if n, err := io.ReadFull(r, message); err != nil {
		return nil, fmt.Errorf("the stream broke after %d of a message's %d bytes: %w", n, size, err)
	}
	return message, nil
}
