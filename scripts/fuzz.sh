#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
#
# Runs every fuzz test of the module for a while: scripts/fuzz.sh [time each, 10s]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

each=${1:-10s}
found=0
while IFS=: read -r file name; do
	found=1
	echo "== $name ($(dirname "$file"), $each)"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$each" "./$(dirname "$file")"
done < <(git ls-files --cached --others --exclude-standard '*_test.go' |
	xargs grep -Eo '^func Fuzz[A-Za-z0-9_]+' /dev/null | sed 's/:func /:/')
if [ "$found" = 0 ]; then
	echo "no fuzz tests"
fi
