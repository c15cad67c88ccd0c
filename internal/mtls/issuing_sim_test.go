package mtls

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

// troubled is an authority with faults, which counts what becomes of its orders. Like Private CA it remembers tokens.
type troubled struct {
	authority
	random  *rand.Rand
	down    bool
	mute    bool // orders are accepted, and the answers lost
	tricky  bool // every other certificate is one that cannot be published
	issued  int  // certificates that can be published
	useless int  // all others
	orders  map[string]issue.Order
}

func (a *troubled) Order(ctx context.Context, r issue.Request) (issue.Order, error) {
	if a.down {
		return nil, errors.New("connection refused")
	}
	o, known := a.orders[r.Token]
	if !known {
		inner, err := a.authority.Order(ctx, r)
		if err != nil {
			return nil, err
		}
		o = &troubledOrder{Order: inner, authority: a, useless: a.tricky && a.random.IntN(2) == 0}
		a.orders[r.Token] = o
	}
	if a.mute {
		return nil, errors.New("connection reset by peer")
	}
	return o, nil
}

type troubledOrder struct {
	issue.Order
	authority     *troubled
	useless, done bool
}

func (o *troubledOrder) Collect(ctx context.Context) (issue.Certificate, error) {
	a := o.authority
	if a.down {
		return issue.Certificate{}, errors.New("connection refused")
	}
	a.change = nil
	if o.useless {
		a.change = []mtlstest.Change{mtlstest.Usage(x509.ExtKeyUsageServerAuth)}
	}
	c, err := o.Order.Collect(ctx)
	if err == nil && !o.done {
		if o.done = true; o.useless {
			a.useless++
		} else {
			a.issued++
		}
	}
	return c, err
}

// TestIssuingForLong: over many days with every fault of an authority and with restarts, a node always has a valid
// certificate, every certificate that can be published is, and none is ordered that is not needed: an agent that dies
// between an order and the publication wastes one at most. SEVAGENT_NODE_DAYS and SEVAGENT_SEED are the size and the
// seed.
func TestIssuingForLong(t *testing.T) {
	days := must.Get(strconv.Atoi(cmp.Or(os.Getenv("SEVAGENT_NODE_DAYS"), "40")))(t, "read SEVAGENT_NODE_DAYS")
	seed := must.Get(strconv.ParseUint(cmp.Or(os.Getenv("SEVAGENT_SEED"), "1"), 10, 64))(t, "read SEVAGENT_SEED")
	t.Logf("%d node-days, seed %d", days, seed)
	const each = 20 // days in one bubble
	for i := range (days + each - 1) / each {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, rand.New(rand.NewPCG(seed, uint64(i))), each) })
		})
	}
}

func simulate(t *testing.T, random *rand.Rand, days int) {
	a := &troubled{authority: *newAuthority(t), random: random, orders: make(map[string]issue.Order)}
	path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
	quiet := func(c *Config) { c.Log = slog.New(slog.DiscardHandler) }
	boot := func() *node { return start(t, path, map[string]source.Source{"a": a.issuing("1", a)}, quiet) }
	n := boot()
	if n.after(time.Minute); !n.Status().Ready {
		t.Fatalf("not ready after a minute: %+v", n.Status().Secrets)
	}
	end := time.Now().Add(time.Duration(days) * 24 * time.Hour)
	restarts, serials := 0, map[string]bool{}
	for time.Now().Before(end) {
		event := random.IntN(7)
		switch event {
		case 0:
			a.down = true
		case 1:
			a.mute = true
		case 2:
			a.tricky = true
		case 3:
			a.delay = time.Duration(random.Int64N(int64(40 * time.Minute)))
		case 4:
			a.lost = true
		case 5:
			n.stop()
			restarts++
			n = boot()
		case 6:
			_, _ = n.Refresh(t.Context()) // fails while the authority does
		}
		// Faults end within four hours, and a certificate is renewed with at least eight hours left.
		for range random.IntN(16) {
			n.after(15 * time.Minute)
			serials[valid(t, n)] = true
		}
		a.down, a.mute, a.tricky, a.delay, a.lost = false, false, false, 0, false
		for range 4 {
			n.after(15 * time.Minute)
			serials[valid(t, n)] = true
		}
	}
	published := len(serials)
	if wasted := a.issued - published; wasted < 0 || wasted > restarts {
		t.Errorf("%d certificates could be published and %d were; %d restarts may waste one each",
			a.issued, published, restarts)
	}
	// A renewal every 11 to 16 hours, after faults later; one that cannot be published is followed by the next.
	if least, most := days*24/21, days*24/11+1+restarts; published < least || published > most {
		t.Errorf("%d certificates in %d days, want %d to %d", published, days, least, most)
	}
	if st := n.issue(); st.Issuances > 12 {
		t.Errorf("%d certificates in a day", st.Issuances)
	}
	t.Logf("%d published, %d useless, %d restarts", published, a.useless, restarts)
}

// valid returns the serial number of the published client's certificate, which must be valid.
func valid(t *testing.T, n *node) string {
	t.Helper()
	block, _ := pem.Decode([]byte(n.read(t)["client.crt"]))
	c := must.Get(x509.ParseCertificate(block.Bytes))(t, "read the published certificate")
	if now := time.Now(); now.After(c.NotAfter) || now.Before(c.NotBefore) {
		t.Fatalf("at %v the published certificate is valid from %v to %v: %+v", now, c.NotBefore, c.NotAfter, n.secret("a"))
	}
	return c.SerialNumber.String()
}
