package certset

import (
	"strconv"
	"strings"
)

// The keys of a JSON secret, and the field of a secret that is not one.
const (
	clientCert = "client_cert"
	clientKey  = "client_key"
	caCert     = "ca_cert"
	serverCert = "server_cert"
	serverKey  = "server_key"
	peerCA     = "peer_ca"
	plain      = ""
)

// caOverlap is the key of a JSON secret that, by false, drops the anchors of earlier versions at once on all nodes.
const caOverlap = "ca_overlap"

var jsonFields = []string{clientCert, clientKey, caCert, serverCert, serverKey, peerCA}

// The kinds of certificate with a key.
const (
	kindClient = "client"
	kindServer = "server"
)

var kinds = []string{kindClient, kindServer}

// The files of anchors: those that readers verify their peers with and, where those are given by peer_ca, those that
// the set's own certificates lead to.
const (
	anchorFile = "ca.crt"
	issuerFile = "issuer.crt"
)

// fileOf turns client_cert into client.crt, client_key into client.key.
func fileOf(field string) string {
	if field == peerCA {
		return anchorFile
	}
	name, what, _ := strings.Cut(field, "_")
	if what == "cert" {
		what = "crt"
	}
	return name + "." + what
}

// pairFile is the file that holds key and certificate of a kind: one open, one read, no mismatch.
func pairFile(kind string) string { return kind + ".pem" }

// bundleFile is a client's pair as SPIFFE's filesystem delivery (draft, spiffe/spiffe pull request 376) names it and as
// Kubernetes writes a credentialBundlePath: the key as PKCS #8, then the chain.
const bundleFile = "credential-bundle.private-key.pem"

// plainFile is the file of a secret that is not JSON, by its place in the configuration.
func plainFile(i int) string { return "cert-" + strconv.Itoa(i) + ".pem" }

// fieldOf reverses fileOf, given whether there is an issuerFile; empty: no field has that file.
func fieldOf(name string, issuers bool) string {
	switch {
	case name == issuerFile:
		return caCert
	case name == anchorFile && issuers:
		return peerCA
	}
	for _, field := range jsonFields {
		if fileOf(field) == name {
			return field
		}
	}
	return plain
}

func isAnchors(field string) bool { return field == caCert || field == peerCA }
