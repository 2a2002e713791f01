#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
#
# Installs the programs that tests are run against, where they are missing: as
# root on a Debian machine. Elsewhere it says what is missing. make test and CI
# run it.
set -euo pipefail

missing=()
command -v make >/dev/null || missing+=(make)
command -v git >/dev/null || missing+=(git)
command -v flock >/dev/null || missing+=(util-linux)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
# The metrics are scraped, and the alert rules checked, by the real ones.
command -v promtool >/dev/null || missing+=(prometheus)
# Chaos gives each node a network and a disk of its own.
command -v ip >/dev/null || missing+=(iproute2)
command -v mkfs.ext4 >/dev/null || missing+=(e2fsprogs)
# Scheduled rotation is compared with that of PostgreSQL's passwords.
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
# A receiver in another language checks the signatures of webhooks.
command -v npm >/dev/null || missing+=(nodejs npm)
command -v python3 >/dev/null || missing+=(python3)
# The gateway stands behind the real proxies.
command -v curl >/dev/null || missing+=(curl)
command -v nginx >/dev/null || missing+=(nginx)
command -v caddy >/dev/null || missing+=(caddy)
command -v haproxy >/dev/null || missing+=(haproxy)
# systemd checks the units; a container has it without running it.
command -v systemd-analyze >/dev/null || missing+=(systemd)
# `make bench` loads nginx with it.
command -v wrk >/dev/null || missing+=(wrk)
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
	echo "packages.sh: not root on a Debian machine, so tests that need these say SKIP or fail: ${missing[*]}" >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends "${missing[@]}"
