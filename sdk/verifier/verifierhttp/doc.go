// SPDX-License-Identifier: MPL-2.0

// Package verifierhttp is how HTTP requests present API keys, and how answers
// tell what became of them.
//
// [Places] finds the one key of a request. A request that presents several is
// refused, also where they are equal.
//
// [Guard] is the middleware: it has the key of each request verified, requires
// scopes per route, and puts what is known of the key into the context.
//
//	guard, err := verifierhttp.New(v, verifierhttp.Options{})
//	mux.Handle("GET /orders", guard.Require("orders:read")(orders))
//
// Requests that do not pass are told apart by their status alone, not by their
// bodies: a stranger cannot find out which keys exist. Clients whose version is
// being replaced are told by [Announce] in the header of each answer.
package verifierhttp
