package tpm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"sevagent/internal/must"
)

// attestation is an answer with a document of n bytes. Without lengths its maps are as AWS's payloads have them.
func attestation(n int, lengths bool) []byte {
	first := byte(0xa1)
	if !lengths {
		first = 0xbf
	}
	head := append([]byte{first, 0x6b}, "Attestation"...)
	head = append(append(head, first, 0x68), "document"...)
	return append(append(head, 0x59, byte(n>>8), byte(n)), bytes.Repeat([]byte{7}, n)...)
}

func TestParseAnswer(t *testing.T) {
	for _, lengths := range []bool{true, false} {
		whole := attestation(5000, lengths)
		rubbish := append(bytes.Clone(whole), bytes.Repeat([]byte{0xff}, 100)...)
		if document, need, err := parseAnswer(rubbish); err != nil || len(document) != 5000 || need != len(whole) {
			t.Errorf("%d bytes of %d, %v", len(document), need, err)
		}
		for n := range len(whole) {
			document, need, err := parseAnswer(whole[:n])
			if document != nil || err == nil && need != len(whole) {
				t.Fatalf("%d bytes of the answer: a document of %d bytes, %d needed, %v", n, len(document), need, err)
			}
		}
	}
	const document = "\xa1\x6bAttestation\xa1\x68document"
	for name, answer := range map[string]string{
		"a list":           "\x82aa",
		"another kind":     "\xa1\x63GetX",
		"two entries":      "\xa2\x6bAttestation\xa1\x68document\x59\x10\x00",
		"no document":      "\xa1\x6bAttestation\xa1\x68dokument\x59\x10\x00",
		"empty":            document + "\x40..",
		"without a length": document + "\x5f..",
		"4 GiB":            document + "\x5a\xff\xff\xff\xff",
		"a text":           document + "\x63abc",
	} {
		if document, _, err := parseAnswer([]byte(answer)); document != nil || !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	_, _, err := parseAnswer([]byte("\xa1\x65Error\x6dInputTooLarge\xff\xff"))
	if e, ok := errors.AsType[*RefusedError](err); !ok || e.Name != "InputTooLarge" {
		t.Errorf("error %v, want InputTooLarge", err)
	}
}

// FuzzParseAnswer: a document is what stands at the end of the part that is needed, whatever follows.
func FuzzParseAnswer(f *testing.F) {
	f.Add(attestation(300, true))
	f.Add(attestation(300, false))
	f.Add([]byte("\xa1\x65Error\x6dInputTooLarge"))
	f.Fuzz(func(t *testing.T, data []byte) {
		document, need, err := parseAnswer(data)
		switch {
		case err != nil && document != nil, err == nil && need == 0:
			t.Fatalf("a document of %d bytes, %d needed, %v", len(document), need, err)
		case document == nil:
			if err == nil && need <= len(data) {
				t.Fatalf("%d bytes are needed and %d there, and there is no document", need, len(data))
			}
			return
		case !bytes.HasSuffix(data[:need], document):
			t.Fatal("the document is not what stands there")
		}
		again, _, err := parseAnswer(append(data[:need:need], 1, 2, 3))
		if err != nil || !bytes.Equal(again, document) {
			t.Fatalf("with another end: %v", err)
		}
	})
}

// scripted answers each command with the same bytes.
type scripted struct{ answer []byte }

func (s *scripted) Write(p []byte) (int, error) { return len(p), nil }
func (s *scripted) Read(p []byte) (int, error)  { return copy(p, s.answer), nil }

func TestMalformedAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":           "",
		"cut off":           "\x80\x01\x00\x00\x00\x0a\x00\x00\x00",
		"of another length": "\x80\x01\x00\x00\x00\x0b\x00\x00\x00\x00",
		"without sessions":  "\x80\x01\x00\x00\x00\x0a\x00\x00\x00\x00",
		"no parameters":     "\x80\x02\x00\x00\x00\x0a\x00\x00\x00\x00",
		"long parameters":   "\x80\x02\x00\x00\x00\x0f\x00\x00\x00\x00\x00\x00\x00\x02a",
		"short read":        "\x80\x02\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x02\x00\x05",
	} {
		c := &connection{ReadWriter: &scripted{[]byte(answer)}, chunk: 2048}
		if _, err := c.ask(t.Context(), []byte("request")); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	for name, answer := range map[string]string{
		"no list": "\x80\x01\x00\x00\x00\x0a\x00\x00\x00\x00",
		"another capability": "\x80\x01\x00\x00\x00\x17\x00\x00\x00\x00" +
			"\x00\x00\x00\x00\x09\x00\x00\x00\x01\x20\x00\x00\x01",
		"more than there is": "\x80\x01\x00\x00\x00\x13\x00\x00\x00\x00\x00\x00\x00\x00\x02\xff\xff\xff\xff",
	} {
		c := &connection{ReadWriter: &scripted{[]byte(answer)}}
		if _, err := c.capability(t.Context(), capCommands, 0, 1); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}

// TestCodes: the layer that an answer comes from, and what it is about, do not change what it means.
func TestCodes(t *testing.T) {
	for _, c := range []struct {
		rc      uint32
		command command
		handle  uint32
		want    error
	}{
		{0x143, ccNSM, index, ErrNotNitro},
		{0xb0143, ccNSM, index, ErrNotNitro},
		{0x2d5, ccDefine, handleOwner, ErrNotNitro},
		{0x1d5, ccWrite, index, nil},
		{0x9a2, ccDefine, handleOwner, ErrOwner},
		{0x98e, ccWrite, index, ErrPassword},
		{0x9a2, ccWrite, index, ErrPassword},
		{0x922, ccWrite, index, ErrPutOff},
		{0x14a, ccRead, index, nil},
	} {
		err := &CommandError{Command: c.command.String(), Code: c.rc, command: c.command, handles: []uint32{c.handle}}
		if got := err.Unwrap(); got != c.want || !strings.Contains(err.Error(), c.command.String()) {
			t.Errorf("%v: means %v, want %v", err, got, c.want)
		}
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tpmrm0")
	must.Do(t, os.WriteFile(path, nil, 0o600), "write %s", path)
	first := must.Get(openFile(path))(t, "open the device")
	second := must.Get(openFile(path))(t, "open it again")
	defer second.Close()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		must.Do(t, lock(ctx, first, path), "lock it")
		if err := lock(ctx, second, path); !errors.Is(err, ErrInUse) {
			t.Errorf("error %v, want ErrInUse", err)
		}
		cancel()
	})
	must.Do(t, first.Close(), "close it")
	must.Do(t, lock(t.Context(), second, path), "lock it after the first has closed it")
}
