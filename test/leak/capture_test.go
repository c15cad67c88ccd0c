//go:build node

package leak

import (
	"encoding/binary"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
)

// capture records what goes over all interfaces of the network namespace: the bytes of each direction of a TCP
// connection as one stream, and every other frame by itself.
type capture struct {
	socket  int
	place   *place
	streams map[string]*stream
	ended   chan error
	stop    atomic.Bool
}

// startCapture records until end is called.
func startCapture(t *testing.T, p *place) *capture {
	t.Helper()
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	c := &capture{place: p, streams: make(map[string]*stream), ended: make(chan error)}
	c.socket = must.Get(unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(all)))(t, "open a packet socket")
	must.Do(t, errors.Join(
		unix.SetsockoptInt(c.socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
		unix.SetsockoptTimeval(c.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
	), "set the packet socket's buffer and timeout")
	go func() { c.ended <- c.run() }()
	return c
}

// run records until it has been stopped and nothing more comes.
func (c *capture) run() error {
	frame := make([]byte, 128<<10) // loopback takes what TCP sends at once as one
	for {
		n, from, err := unix.Recvfrom(c.socket, frame, 0)
		switch {
		case err == unix.EAGAIN && c.stop.Load():
			return nil
		case err == unix.EAGAIN, err == unix.EINTR:
			continue
		case err != nil:
			return err
		}
		if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING { // loopback has each once more, as incoming
			c.take(frame[:n])
		}
	}
}

// take adds a frame.
func (c *capture) take(frame []byte) {
	flow, payload, ok := tcp(frame)
	if !ok {
		c.place.Write(frame)
		return
	}
	if c.streams[flow] == nil {
		c.streams[flow] = c.place.stream()
	}
	c.streams[flow].Write(payload)
}

// tcp returns addresses and ports, and what a segment carries.
func tcp(frame []byte) (flow string, payload []byte, ok bool) {
	const ethernet = 14
	if len(frame) < ethernet+40 {
		return "", nil, false
	}
	ip := frame[ethernet:]
	var addresses, segment []byte
	switch binary.BigEndian.Uint16(frame[ethernet-2:]) {
	case unix.ETH_P_IP:
		if ip[9] != unix.IPPROTO_TCP || len(ip) < int(ip[0]&15)*4+20 {
			return "", nil, false
		}
		addresses, segment = ip[12:20], ip[int(ip[0]&15)*4:]
	case unix.ETH_P_IPV6:
		if ip[6] != unix.IPPROTO_TCP || len(ip) < 60 {
			return "", nil, false
		}
		addresses, segment = ip[8:40], ip[40:]
	default:
		return "", nil, false
	}
	header := int(segment[12]>>4) * 4
	if len(segment) < header {
		return "", nil, false
	}
	return string(addresses) + string(segment[:4]), segment[header:], true
}

// end stops the capture. It fails the test if the kernel has dropped a packet.
func (c *capture) end(t *testing.T) {
	t.Helper()
	c.stop.Store(true)
	select {
	case err := <-c.ended:
		must.Do(t, err, "receive packets")
	case <-time.After(time.Minute):
		t.Fatal("packets do not end")
	}
	counts, err := unix.GetsockoptTpacketStats(c.socket, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	stats := must.Get(counts, err)(t, "count packets")
	unix.Close(c.socket)
	interfaces := must.Get(net.Interfaces())(t, "list the interfaces")
	t.Logf("%d packets in %d directions of connections; %d interfaces, the first %s", stats.Packets, len(c.streams),
		len(interfaces), interfaces[0].Name)
	if stats.Drops != 0 {
		t.Errorf("%d packets were dropped, and not searched", stats.Drops)
	}
}
