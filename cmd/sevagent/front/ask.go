package main

import (
	"bufio"
	"encoding/base64"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Bounds of an answer. The agent gives up on its own before the time is over: internal/localapi, WriteTimeout.
const (
	maxAnswer = 1 << 20 // bytes, as in package client
	maxHeader = 16 << 10
	patience  = 75 * time.Second
)

// ask is one request to the agent at a socket, for evidence over nonce.
func ask(socket string, nonce []byte, bind string) (doc []byte, ok bool) {
	conn, err := dial(socket)
	if err != nil {
		return nil, false
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, false
	}
	body := `{"bind":"` + bind + `","nonce":"` + base64.RawURLEncoding.EncodeToString(nonce) + `"}`
	head := "POST /v1/evidence HTTP/1.1\r\nHost: sevagent\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\nConnection: close\r\n\r\n"
	if _, err := conn.WriteString(head + body); err != nil {
		return nil, false
	}
	return answer(conn)
}

// dial connects to a Unix socket. A file of the kind that does not block has deadlines.
func dial(socket string) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// It is done at once or refused: a Unix socket does not go on connecting (connect(2), EAGAIN).
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), socket), nil
}

// answer reads a response of HTTP/1.1 whose status is 200 and whose body has a length that the header says. Any other,
// and one that ends before its end, is none.
func answer(from io.Reader) (body []byte, ok bool) {
	r := bufio.NewReader(io.LimitReader(from, maxHeader+maxAnswer))
	left := maxHeader
	line := func() (text string, ok bool) {
		raw, err := r.ReadSlice('\n') // of at most the reader's 4096 bytes
		if left -= len(raw); err != nil || left < 0 {
			return "", false
		}
		text, ok = strings.CutSuffix(string(raw), "\r\n")
		return text, ok && !strings.ContainsFunc(text, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f })
	}
	if status, ok := line(); !ok || status != "HTTP/1.1 200" && !strings.HasPrefix(status, "HTTP/1.1 200 ") {
		return nil, false
	}
	length := -1
	for {
		field, ok := line()
		if !ok {
			return nil, false
		}
		if field == "" {
			break
		}
		name, value, ok := strings.Cut(field, ":")
		if !ok || !token(name) {
			return nil, false
		}
		switch strings.ToLower(name) {
		case "transfer-encoding", "content-encoding":
			return nil, false
		case "content-length":
			n, err := strconv.ParseUint(strings.Trim(value, " \t"), 10, 31)
			if err != nil || length >= 0 || n > maxAnswer {
				return nil, false
			}
			length = int(n)
		}
	}
	if length < 0 {
		return nil, false
	}
	body = make([]byte, length)
	_, err := io.ReadFull(r, body)
	return body, err == nil
}

// token reports whether text can be the name of a header field (RFC 9110, section 5.1).
func token(text string) bool {
	for i := range len(text) {
		c := text[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return text != ""
}
