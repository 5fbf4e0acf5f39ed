#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# compile_time.sh RATIO TURNS YARDSTICK.cpp FILE.cpp COMPILER FLAG...: fails if FILE needs more than RATIO times the user
# time of the compiler that YARDSTICK needs, the smallest of up to that many turns each: no more turns than show that it
# does not. A ratio, because machines differ in speed and drift: 5 s are twice the yardstick (one product of Eigen) where
# that takes 2.5 s.
set -euo pipefail
ratio=$1 turns=$2 yardstick=$3 file=$4
shift 4
export LC_ALL=C TIMEFORMAT=%U
out=$(mktemp --suffix=.o)
trap 'rm -f "$out"' EXIT
smallest() { awk -v a="$1" -v b="$2" 'BEGIN { print a == "" || b < a ? b : a }'; }
ours="" theirs=""
for _ in $(seq "$turns"); do
  theirs=$(smallest "$theirs" "$({ time "$@" -c "$yardstick" -o "$out" >&2; } 2>&1 | tail -n 1)")
  ours=$(smallest "$ours" "$({ time "$@" -c "$file" -o "$out" >&2; } 2>&1 | tail -n 1)")
  if awk -v a="$ours" -v b="$theirs" -v r="$ratio" 'BEGIN { exit !(a <= r * b) }'; then break; fi
done
awk -v a="$ours" -v b="$theirs" -v r="$ratio" 'BEGIN {
  printf "%.2f s of user time, %.1f times the yardstick (%.2f s); at most %.1f\n", a, a / b, b, r
  exit !(a <= r * b)
}'
