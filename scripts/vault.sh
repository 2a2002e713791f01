#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
#
# Prints the path of a server binary to develop and test with, the first of:
#   1. $VAULT_BIN
#   2. a vault (1.17 or later) or bao (2.0 or later) on PATH
#   3. Vault built from the Go modules of scripts/vault/, kept in
#      .cache/vault-<version>/ and built only once: about 6 minutes on 2 cores
#
#   scripts/vault.sh              find or build it
#   scripts/vault.sh --no-build   find it, or exit with 3
#
# Only the path goes to stdout; progress goes to stderr.
# APIKEYS_CACHE moves the cache out of .cache/.
# APIKEYS_VAULT_FROM_SOURCE=1 leaves out step 2: what CI tests with does not
# depend on what a machine happens to have.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${APIKEYS_CACHE:-$root/.cache}

say() { printf '%s\n' "$*" >&2; }

# at_least WANT HAVE: whether version HAVE is WANT or later.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# version_of BIN prints the x.y.z of `BIN version`, or nothing.
version_of() { HOME=/nonexistent "$1" version 2>/dev/null | sed -n 's/^[A-Za-z]* v\([0-9][0-9.]*\).*/\1/p' | head -n 1; }

if [ -n "${VAULT_BIN:-}" ]; then
	bin=$(command -v -- "$VAULT_BIN" || true)
	if [ -z "$bin" ]; then
		say "vault.sh: VAULT_BIN=$VAULT_BIN is not a program that can be run"
		exit 1
	fi
	[[ $bin == /* ]] || bin=$PWD/$bin
	printf '%s\n' "$bin"
	exit 0
fi

if [ "${APIKEYS_VAULT_FROM_SOURCE:-}" != 1 ]; then
	for candidate in vault:1.17 bao:2.0; do
		name=${candidate%%:*} want=${candidate##*:}
		bin=$(command -v "$name" || true)
		[ -n "$bin" ] || continue
		have=$(version_of "$bin")
		if [ -n "$have" ] && at_least "$want" "$have"; then
			printf '%s\n' "$bin"
			exit 0
		fi
		say "vault.sh: passing over $bin: version ${have:-unknown}, needs $want or later"
	done
fi

module=$root/scripts/vault
version=$(sed -n 's|^require github.com/hashicorp/vault v\([^ ]*\).*|\1|p' "$module/go.mod" | head -n 1)
if [ -z "$version" ]; then
	say "vault.sh: no version of github.com/hashicorp/vault in $module/go.mod"
	exit 1
fi
dir=$cache/vault-$version
bin=$dir/vault
if [ -x "$bin" ]; then
	printf '%s\n' "$bin"
	exit 0
fi
if [ "${1:-}" = --no-build ]; then
	say "no vault or bao on PATH and none built in $dir"
	exit 3
fi
if ! command -v go >/dev/null; then
	say "vault.sh: there is no vault or bao on PATH, and no Go to build one with"
	exit 1
fi
mkdir -p "$dir"

# One build at a time: a second caller waits for the first and takes its result.
if command -v flock >/dev/null; then
	exec 9>"$dir/.lock"
	if ! flock -n 9; then
		say "vault.sh: another build of Vault $version is running; waiting for it"
		flock 9
	fi
	if [ -x "$bin" ]; then
		printf '%s\n' "$bin"
		exit 0
	fi
fi

# Without flock two builds may run at once: each has its own file, and the
# rename at the end is atomic, so neither sees a half-written binary.
tmp=$dir/build.$$
build=
# shellcheck disable=SC2317 # called by the trap
cleanup() {
	[ -z "$build" ] || kill "$build" 2>/dev/null || true
	rm -f "$tmp" "$tmp.log" "$tmp.packages"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

free=$(df -Pk "$dir" | awk 'NR == 2 { print int($4 / 1024) }')
if [ -n "$free" ] && [ "$free" -lt 4096 ]; then
	say "vault.sh: only $free MB free for $dir; a build takes about 4000 MB with Go's caches"
fi

say "Building Vault $version from its Go modules, as no vault or bao on PATH is used."
say "This happens once and takes about 6 minutes on 2 cores; the result stays in $dir"
say "  downloading modules ..."
cd "$module"
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off
# Listing the packages downloads what they need, and gives progress an end.
if ! go list -deps -tags minimal github.com/hashicorp/vault >"$tmp.packages" 2>"$tmp.log"; then
	tail -n 20 "$tmp.log" >&2
	say "vault.sh: the modules of Vault cannot be downloaded; is a Go module proxy reachable (go env GOPROXY)?"
	exit 1
fi
total=$(wc -l <"$tmp.packages" | tr -d ' ')

start=$SECONDS
# -v names each package when it has been compiled; what Go has cached is not named.
go build -v -trimpath -tags minimal -ldflags "-s -w" -o "$tmp" github.com/hashicorp/vault >/dev/null 2>"$tmp.log" 9>&- &
build=$!
last=-1
while kill -0 "$build" 2>/dev/null; do
	elapsed=$((SECONDS - start))
	if [ -t 2 ]; then
		printf '\r  %s of at most %s packages compiled, %d:%02d ' "$(wc -l <"$tmp.log" | tr -d ' ')" "$total" $((elapsed / 60)) $((elapsed % 60)) >&2
	elif [ $((elapsed / 20)) -ne "$last" ]; then
		last=$((elapsed / 20))
		printf '  %s of at most %s packages compiled, %d:%02d\n' "$(wc -l <"$tmp.log" | tr -d ' ')" "$total" $((elapsed / 60)) $((elapsed % 60)) >&2
	fi
	sleep 1
done
[ ! -t 2 ] || say ""
status=0
wait "$build" || status=$?
build=
if [ "$status" -ne 0 ]; then
	tail -n 20 "$tmp.log" >&2
	say "vault.sh: building Vault failed"
	exit 1
fi
mv -f "$tmp" "$bin"
say "  done in $((SECONDS - start)) s: $bin"
printf '%s\n' "$bin"
