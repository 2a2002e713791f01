#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Stands for your program: it finds its API key in the environment. It notes the
# key's fingerprint, which is no secret, and works until it is told to stop.
printf %s "$ACME_API_KEY" | sha256sum | cut -c 1-12 >>client.log
trap 'exit 0' TERM
while :; do
	sleep 1 &
	wait $!
done
