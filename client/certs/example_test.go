package certs_test

import (
	"crypto/tls"
	"log"
	"net/http"
	"time"

	"sevagent/client/certs"
)

// A client whose every new connection uses what is published at that time.
func ExampleOpen() {
	dir, err := certs.Open("")
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialTLSContext: dir.DialTLS}}
	if _, err := client.Get("https://orders.internal:8443/"); err != nil {
		log.Print(err)
	}
}

// HTTP/2, and libraries such as gRPC and database drivers, ask for a configuration that they keep.
func ExampleDirectory_ClientConfig() {
	dir, err := certs.Open("")
	if err != nil {
		log.Fatal(err)
	}
	_ = &http.Transport{TLSClientConfig: dir.ClientConfig("orders.internal"), ForceAttemptHTTP2: true}
}

// A server that lets in clients of the published CA, and looks at who they are.
func ExampleDirectory_ServerConfig() {
	dir, err := certs.Open("/etc/ecs/mtls")
	if err != nil {
		log.Fatal(err)
	}
	config := dir.ServerConfig()
	config.MinVersion = tls.VersionTLS13
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		return cs.PeerCertificates[0].VerifyHostname("billing.internal")
	}
	server := &http.Server{Addr: ":8443", TLSConfig: config, ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(server.ListenAndServeTLS("", ""))
}

// For a health page: how long the set in use is good for, and whether it is the newest.
func ExampleDirectory_Err() {
	dir, err := certs.Open("")
	if err != nil {
		log.Fatal(err)
	}
	set := dir.Set()
	log.Printf("generation %s is valid until %s", set.Generation, set.NotAfter)
	if err := dir.Err(); err != nil {
		log.Printf("a newer one cannot be loaded: %v", err)
	}
}
