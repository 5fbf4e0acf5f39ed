#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# compile_time.sh RATIO TURNS YARDSTICK.cpp FILE.cpp COMPILER FLAG...: fails if FILE needs more than RATIO times the user
# time of the compiler that YARDSTICK needs. A ratio, because machines differ in speed and drift: 5 s are twice the
# yardstick (one product of Eigen) where that takes 2.5 s. The yardstick is compiled before and after FILE, and turns are
# added up, up to that many until the ratio holds: the smallest of several turns favours the short yardstick, which fits
# into a quiet moment.
set -euo pipefail
ratio=$1 turns=$2 yardstick=$3 file=$4
shift 4
export LC_ALL=C TIMEFORMAT=%U
out=$(mktemp --suffix=.o)
trap 'rm -f "$out"' EXIT
seconds() { { time "$@" >&2; } 2>&1 | tail -n 1; }
ours=0 theirs=0
for _ in $(seq "$turns"); do
  before=$(seconds "$@" -c "$yardstick" -o "$out")
  own=$(seconds "$@" -c "$file" -o "$out")
  after=$(seconds "$@" -c "$yardstick" -o "$out")
  ours=$(awk "BEGIN { print $ours + $own }")
  theirs=$(awk "BEGIN { print $theirs + ($before + $after) / 2 }")
  verdict=0
  awk -v a="$ours" -v b="$theirs" -v r="$ratio" 'BEGIN {
    printf "%.2f s of user time, %.2f times the yardstick (%.2f s); at most %.1f\n", a, a / b, b, r
    exit !(a <= r * b)
  }' || verdict=1
  [ "$verdict" = 1 ] || break
done
exit "$verdict"
