// Package spiffe is the source of certificates that a SPIFFE Workload API pushes, SPIRE's above all: one stream over a
// Unix socket, FetchX509SVID, each message of which replaces all before it.
//
// The key is born in the SPIRE agent's memory and is sent over the socket. It is in this process's memory until its
// publication, and after that in the published directory alone. ca.crt follows the bundle of the trust domain: both
// roots are there before the new one signs. Bundles of federated trust domains and revocation lists are not used:
// ca.crt cannot say for which trust domain an anchor is meant.
//
// After a restart nothing is known before the first push, which comes within milliseconds, and what is published stays.
// A SPIRE agent that still has the same certificate pushes the same version, and nothing is published again.
//
// The client is net/http's HTTP/2 and a hundred lines of gRPC; the official library would make the agent larger by two
// fifths.
package spiffe
