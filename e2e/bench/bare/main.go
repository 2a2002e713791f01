// SPDX-License-Identifier: MPL-2.0

// Command bare answers every request with 204: the least that a forward-auth
// server can do, which benchmarks compare `apikeys gateway` with.
package main

import (
	"fmt"
	"net/http"
	"os"
	"time"
)

func main() {
	server := http.Server{
		Addr: os.Args[1], ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }),
	}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}
