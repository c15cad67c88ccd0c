package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
)

// Takes one of the recipes: serves, or makes a request for each line of standard input and prints how it went.
func main() {
	var client *http.Client
	switch os.Args[1] {
	case "go-server":
		log.Fatal(serve(":8444", http.HandlerFunc(func(w http.ResponseWriter,
			_ *http.Request) {
			io.WriteString(w, "hello")
		})))
	case "go-client":
		var err error
		if client, err = newClient(); err != nil {
			log.Fatal(err)
		}
	case "go-plain":
		client = &http.Client{Transport: &http.Transport{DialTLSContext: dialTLS}}
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		text, err := get(client)
		if err != nil {
			fmt.Println("failed", err)
			continue
		}
		fmt.Println("ok", text)
	}
}

func get(client *http.Client) (string, error) {
	resp, err := client.Get("https://orders.internal/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}
