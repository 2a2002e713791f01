#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
#
# A dev server with the engine, left running in the background:
#
#   scripts/dev.sh start    find or build a Vault, start it, enable apikeys/
#   scripts/dev.sh reload   build the plugin again and swap it in; keys stay
#   scripts/dev.sh stop     stop the server that start started, no other
#   scripts/dev.sh status   tell whether it runs
#
# Its pid, address and log are in .cache/dev/. Port 8200 if it is free, else the
# next free one; APIKEYS_DEV_PORT names another. All is in memory: what the
# server knows goes with it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
state=${APIKEYS_CACHE:-$root/.cache}/dev
plugin=vault-plugin-secrets-apikeys
mount=apikeys
token=root

say() { printf '%s\n' "$*" >&2; }
die() {
	say "dev: $*"
	exit 1
}

# identity PID prints when the process was started, which tells it from another
# one that got its number later.
identity() {
	if [ -r "/proc/$1/stat" ]; then
		sed 's/.*) //' "/proc/$1/stat" | cut -d ' ' -f 20
	else
		ps -o lstart= -p "$1" 2>/dev/null || true
	fi
}

# running: whether the server that the state folder tells of still runs. Sets pid.
running() {
	[ -f "$state/pid" ] || return 1
	pid=$(sed -n 1p "$state/pid")
	kill -0 "$pid" 2>/dev/null && [ "$(identity "$pid")" = "$(sed -n 2p "$state/pid")" ]
}

taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# cli ARGS... runs the server's own binary as the CLI, apart from the user's settings.
cli() {
	env -u VAULT_NAMESPACE -u BAO_NAMESPACE -u VAULT_FORMAT -u BAO_FORMAT HOME="$state/home" \
		VAULT_ADDR="$addr" BAO_ADDR="$addr" VAULT_TOKEN="$token" BAO_TOKEN="$token" "$bin" "$@"
}

load() {
	addr=$(cat "$state/addr")
	bin=$(cat "$state/bin")
}

build() { make --no-print-directory build >&2; }

# sha256 FILE
sha256() {
	if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# register puts the plugin into the plugin directory and the catalogue, as one
# does in production.
register() {
	cp "bin/$plugin" "$state/plugins/$plugin.new"
	mv -f "$state/plugins/$plugin.new" "$state/plugins/$plugin"
	cli plugin register -sha256="$(sha256 "$state/plugins/$plugin")" -command="$plugin" secret "$plugin" >/dev/null
}

next_steps() {
	local name
	name=$(basename "$bin")
	cat <<EOF

$($bin version 2>/dev/null | head -n 1)
runs at $addr with the engine at $mount/ (pid $(sed -n 1p "$state/pid"), log $state/log).

In your shell:

    source $state/env

Then make a role and a key, rotate it, and see both versions accepted:

    $name write $mount/roles/partner prefix=tm_live overlap_period=10m
    $name write $mount/keys/acme role=partner
    $name write -f $mount/rotate/acme
    $name read  $mount/static-creds/acme
    $name write $mount/verify api_key=<either of the two keys>
    $name read  $mount/keys/acme

Afterwards: make dev-reload (after a change of the code), make dev-stop.
EOF
}

start() {
	local port
	if running; then
		load
		echo "The dev server already runs; make dev-stop ends it, make dev-reload takes new code in."
		next_steps
		return
	fi
	bin=$(scripts/vault.sh)
	build
	rm -rf "$state"
	mkdir -p "$state/plugins" "$state/home" "$state/tmp"

	port=${APIKEYS_DEV_PORT:-}
	if [ -z "$port" ]; then
		# A dev server takes the next port too, for its cluster.
		for port in $(seq 8200 2 8298); do
			if ! taken "$port" && ! taken $((port + 1)); then break; fi
			port=
		done
		[ -n "$port" ] || die "no free port between 8200 and 8299; set APIKEYS_DEV_PORT"
	fi
	addr=http://127.0.0.1:$port
	env -u VAULT_API_ADDR -u BAO_API_ADDR HOME="$state/home" TMPDIR="$state/tmp" \
		nohup "$bin" server -dev -dev-listen-address="127.0.0.1:$port" -dev-root-token-id="$token" \
		-dev-plugin-dir="$(cd "$state/plugins" && pwd -P)" >"$state/log" 2>&1 </dev/null &
	pid=$!
	printf '%s\n%s\n' "$pid" "$(identity "$pid")" >"$state/pid"
	printf '%s\n' "$addr" >"$state/addr"
	printf '%s\n' "$bin" >"$state/bin"

	# A server that cannot be used is not left behind.
	trap stop EXIT
	local deadline=$((SECONDS + 60))
	until cli status >/dev/null 2>&1; do
		if ! running; then
			tail -n 15 "$state/log" >&2
			die "the server ended at once; see above"
		fi
		[ "$SECONDS" -lt "$deadline" ] || die "the server does not answer at $addr after 60 s; its log is $state/log"
		sleep 0.2
	done
	register
	cli secrets enable -path="$mount" "$plugin" >/dev/null
	trap - EXIT

	{
		printf "export VAULT_ADDR='%s' VAULT_TOKEN='%s'\n" "$addr" "$token"
		printf "export BAO_ADDR='%s' BAO_TOKEN='%s'\n" "$addr" "$token"
		[ "$(command -v "$(basename "$bin")" || true)" = "$bin" ] || printf "export PATH='%s':\"\$PATH\"\n" "$(dirname "$bin")"
	} >"$state/env"
	next_steps
}

stop() {
	if ! running; then
		say "No dev server of this checkout runs."
		rm -f "$state/pid"
		return
	fi
	kill "$pid"
	local deadline=$((SECONDS + 20))
	while running; do
		if [ "$SECONDS" -ge "$deadline" ]; then
			kill -KILL "$pid"
		fi
		sleep 0.1
	done
	rm -f "$state/pid"
	say "Stopped the dev server (pid $pid)."
}

case ${1:-start} in
start) start ;;
stop) stop ;;
reload)
	running || die "no dev server runs; start one with: make dev"
	load
	build
	register
	cli plugin reload -plugin="$plugin" >/dev/null
	echo "The dev server at $addr now runs the new build."
	;;
status)
	if running; then
		load
		echo "runs at $addr (pid $pid)"
	else
		echo "does not run"
		exit 1
	fi
	;;
*) die "usage: scripts/dev.sh start|reload|stop|status" ;;
esac
