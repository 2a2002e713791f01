// SPDX-License-Identifier: MPL-2.0

// Package consumer is for API clients: it holds the current API key, keeps it up
// to date, and sends requests with it, so that a rotation is no event for the
// program.
//
//	source, err := consumer.New(consumer.Config{Origin: consumer.Vault(client, "acme"), Instance: "eu-1"})
//	...
//	go source.Run(ctx)
//	transport, err := consumer.NewTransport(source, consumer.TransportConfig{Hosts: []string{"api.example.com"}})
//	...
//	api := &http.Client{Transport: transport}
//
// # Where the key comes from
//
//   - [Vault]: the engine's static-creds, through sdk/vaultclient. The engine says
//     when to look again.
//   - [File]: a file that Vault Agent, or something like it, renders.
//   - [Claims]: claim codes that the engine's webhooks deliver, for clients
//     without a Vault token.
//
// # What a rotation looks like
//
// With an overlap, the Source sees the new version some time in the overlap, at
// its next look, and swaps it in: an atomic pointer, no lock on the way of a
// request. Requests that are under way end with the old version, which is still
// accepted.
//
// Without an overlap, or when the overlap was missed, a server answers 401. The
// [Transport] then looks at the origin, once for all requests that are refused
// meanwhile and not at all if there is a newer key already, and sends the request
// again with the new key. It is that look which has to begin after the refusal:
// one that was under way may show the key from before the rotation. If it shows
// the same key nevertheless, the origin is late, as Agent's file is: the request
// waits, and looks again after growing pauses, until Config.Patience is over.
// Should yet another rotation pass the repeated request, it is sent again,
// at most thirty times in all.
//
// So no request fails whose body can be sent again, through any number of
// rotations, if the origin follows within the patience, but for the narrow case
// below. Vault follows at once; claims as fast as webhooks are delivered; Agent's
// file within the role's refresh_interval, so for overlaps of zero that has to be
// about a second, or Vault the origin. A body that cannot be sent again gets its
// 401, and the key is fetched for the next request.
//
// It may be in vain to wait, because the key was revoked, or because a server
// answers 401 for reasons of its own. The request then gets its 401 after the
// patience, and for half a minute those to the same host and path get theirs
// after a single look. All other requests wait as ever, lest an endpoint that is
// odd make them miss a rotation. Only when 16 hosts and paths have refused a key
// so, and it has been accepted nowhere since, do all requests wait for a single
// look; but those to a host and path that had accepted it (the last 256 or so are
// remembered) wait as ever, until they have waited in vain, too. So one narrow
// case is left in which a request gets a 401 for a rotation that the origin
// follows within the patience: it leads where the key was never accepted, while
// the key is refused in 16 places and accepted in none. However many are refused,
// there is at most about one look a second.
//
// # What it keeps quiet about
//
// A [Key] shows its secret only by Reveal. Nothing else here, no error, log line
// or the Request of a response, holds one; requests carry it in a header, never in
// the URL, and only to the hosts that were named.
package consumer
