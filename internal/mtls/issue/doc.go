// Package issue is the source of certificates whose private key is born in this process: it makes the key and the
// request, orders a certificate from an Authority, and decides when to renew it. The key is in memory only, and leaves
// it to the published directory alone.
package issue
