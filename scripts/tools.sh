#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
#
# Prints the folder of the linters (golangci-lint, govulncheck), after building
# them there if they are not: from the module scripts/tools, whose go.mod pins
# their versions, about 2 minutes on 2 cores. The folder's name is made of that
# file and of Go's version, so a change of either builds them anew.
# APIKEYS_CACHE moves the cache out of .cache/.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
module=$root/scripts/tools
key=$({ go env GOVERSION GOOS GOARCH && cat "$module/go.mod"; } | cksum | cut -d ' ' -f 1)
cache=${APIKEYS_CACHE:-$root/.cache}
dir=$cache/tools-$key

if [ ! -d "$dir" ]; then
	mkdir -p "$cache"
	# One build at a time: a second caller waits for the first and takes its result.
	if command -v flock >/dev/null; then
		exec 9>"$cache/tools.lock"
		flock 9
	fi
fi
if [ ! -d "$dir" ]; then
	tmp=$(mktemp -d "$cache/tools-build.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	start=$SECONDS
	echo "Building the linters from source, once, about 2 minutes ..." >&2
	(cd "$module" && CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off GOBIN="$tmp" go install -trimpath tool) >&2 9>&-
	echo "  done in $((SECONDS - start)) s: $dir" >&2
	# Somebody else may have been quicker; theirs is as good.
	chmod 755 "$tmp"
	mv -T "$tmp" "$dir" 2>/dev/null || { [ -d "$dir" ] || mv "$tmp" "$dir"; }
fi
printf '%s\n' "$dir"
