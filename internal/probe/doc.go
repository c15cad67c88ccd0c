// Package probe tests what the containers of a node are about to do: it makes an mTLS handshake with each enclave
// server of the configuration, with the published client certificate, and reports the result.
//
// The promises:
//
//   - Except after a Hint, an endpoint is probed no more often than its interval less 20 %, and never within 5 s of its
//     last probe. The endpoints of a node are spread over the interval, and so are the nodes of a fleet.
//   - A probe takes 5 s at most, and at most four run at once, so that a hanging one does not block the others.
//   - Nothing is sent but the handshake. An untrusted server gets no client certificate, but its own is described:
//     issuer and dates of a bad certificate are what an operator needs.
//
// With TLS 1.3 a client finishes before the server has verified its certificate, so a probe waits briefly for the
// verdict. A server that takes longer to reject (s2n waits for 10 to 30 s on purpose) passes; so does one that looks at
// the certificate only when a request comes. One that asks for it by TLS 1.2 renegotiation or after the handshake of
// TLS 1.3 is reported as not asking.
//
// The caller decides what a failure means for the node. An endpoint that does not answer is no reason to be unready.
package probe
