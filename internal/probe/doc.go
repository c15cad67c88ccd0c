// Package probe tests what the containers of a node are about to do: it makes an mTLS handshake with each enclave
// server of the configuration, with the client certificate that is published, and tells what came of it.
//
// The promises:
//
//   - No endpoint is probed more often than its interval less 20 % says, but for a Hint, and never again within 5 s
//     of one. The endpoints of a node are spread over the interval, and so are the nodes of a fleet.
//   - A probe takes 5 s at most, and at most four run at once, so that one that hangs holds up nobody.
//   - Nothing is sent but the handshake. A server that cannot be trusted gets no client certificate, though what it
//     shows is described: issuer and dates of a bad certificate are what an operator needs.
//
// With TLS 1.3 a client has finished before the server has judged its certificate, so a probe listens for the verdict
// a little. A server that takes longer to refuse (s2n waits for 10 to 30 s on purpose) passes; so does one that looks at
// the certificate only when a request comes, and one that asks for it by TLS 1.2 renegotiation or after the handshake
// of TLS 1.3 is said not to ask.
//
// It leaves to others what a failure means for the node. An endpoint that does not answer is no reason to be unready.
package probe
