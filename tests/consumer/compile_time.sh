#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# compile_time.sh SECONDS COMMAND...: fails if the command needs more user time than that in each of three runs.
set -euo pipefail
limit=$1
shift
export LC_ALL=C TIMEFORMAT=%U
best=""
for _ in 1 2 3; do
  seconds=$({ time "$@" >&2; } 2>&1 | tail -n 1)
  if [ -z "$best" ] || awk "BEGIN { exit !($seconds < $best) }"; then best=$seconds; fi
done
echo "$best s of user time, at most $limit are allowed"
awk "BEGIN { exit !($best <= $limit) }"
