#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
#
# Runs govulncheck. A vulnerability that our code reaches fails. That the
# vulnerability database cannot be reached, as on a machine that has nothing but
# a module proxy, does not: it is said aloud instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin=$(scripts/tools.sh)/govulncheck
status=0
out=$("$bin" ./... 2>&1) || status=$?
case $status in
0) printf '%s\n' "$out" ;;
3)
	printf '%s\n' "$out"
	echo "FAIL govulncheck: the vulnerabilities above are reachable" >&2
	exit 1
	;;
*)
	if grep -q 'fetching vulnerabilities' <<<"$out"; then
		echo "SKIP govulncheck: the vulnerability database is out of reach: ${out##*fetching vulnerabilities: }"
		exit 0
	fi
	printf '%s\n' "$out" >&2
	echo "FAIL govulncheck: it could not run" >&2
	exit 1
	;;
esac
