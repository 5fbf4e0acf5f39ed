#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What does compressing the KV cache of a real model cost, and what does it save? From nothing: installs what is missing,
# builds, gets a small model and real text, and prints one table, a row for each policy and compression.
#
#   examples/run.sh [--quick] [--model FILE.gguf] [--text FILE]... [--context N] [--score N] [--policy SPEC|list]...
#                   [--compression X]... [--passkey N] [--threads N] [--seed N] [--json FILE]
#   examples/run.sh --sweep [the same] [--output DIR] [--needles N] [--long-keys N]...
#   examples/run.sh --report [--output DIR] [--context N]
#
#   --quick          one document of 2048 tokens instead of three of 4096, 192 tokens scored, one text with pass keys, 4x and 8x
#   --model FILE     any Llama-architecture GGUF (F32, F16, BF16, Q8_0, Q4_0, Q4_1); default: SmolLM2-135M-Instruct
#   --text FILE      UTF-8 text, or token ids (.i32: int32, little-endian); default: prose, old prose and code from Debian
#   --context N      tokens that are compressed                                                    (4096)
#   --score N        tokens behind them that are compared with the exact cache                     (256)
#   --policy SPEC    e.g. 'keep(fraction=0.25,sinks=16)+lagkv(lag=128)'; with an amount it runs once, without one at
#                    every compression; 'list' prints all names, parameters and published pins;
#                    'compositions' stands for those of the default comparison
#   --dictionary F   what dictionary=default in a policy stands for; default: one that is trained on other text, once, in
#                    under 3 minutes, if a policy names it or (without --quick) no policy is given
#   --compression X  bytes of the exact f16 cache / bytes held                                    (4 8 16)
#   --passkey N      texts with five pass keys each                                                (2)
#   --passkey-digits N  of a pass key; from 16 on every digit at its place counts                  (5)
#   --threads N      policies that run at the same time                                            (all cores)
#   --seed N         of the pass keys and of the random baseline                                   (1)
#   --held-out       other text: prose, code and reference text on which no composition was chosen
#   --lmbo COSINE    also prints what every layer needs: LMBA, uncertainty and LMBO of ZigZagKV
#   --no-times       leaves the clock out: for a machine that is busy
#   --json FILE      writes the rows there too
#
#   --sweep          many policies at 2x to 32x on six texts of three kinds, 112 pass keys, in pictures: results are
#                    appended to a file as they come, so that a sweep that was stopped goes on where it was; ends with a
#                    report, one HTML file. SPEC may be 'sweep' (what runs by default) and 'more'. About an hour on two cores
#   --report         makes the report anew from the results that are there
#   --output DIR     of both                                                              (build/sweep)
#   --needles N      of a sweep: pass keys in each text, which there are 8 of (--passkey)         (14)
#   --long-keys N    of a sweep: lengths of long pass keys, of which the longest that the exact cache repeats is asked; 0: none
#
# LESSKV_BUILD_DIR: where to build (build/run). LESSKV_CACHE: where model and texts are kept (~/.cache/lesskv).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
build=${LESSKV_BUILD_DIR:-$root/build/run}
cache=${LESSKV_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or LESSKV_CACHE}/.cache}/lesskv}

# Only what changes what is fetched is looked at here; the program checks all of it.
quick=false held_out=false list=false model="" texts=false context=false dictionary="" train=false policies=false keys=false
compressions=false score=false sweep=false report=false output=$root/build/sweep context_value=""
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '3,39s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --quick) quick=true; shift; continue ;;
    --held-out) held_out=true; shift; continue ;;
    --sweep) sweep=true; shift; continue ;;
    --report) report=true; shift; continue ;;
    --output=*) output=${1#*=}; shift; continue ;;
    --output) output=${2:?--output needs a folder}; shift 2; continue ;;
    --model=*) model=${1#*=}; shift; continue ;;
    --model) model=${2:?--model needs a file}; shift 2; continue ;;
    --dictionary=*) dictionary=${1#*=}; shift; continue ;;
    --dictionary) dictionary=${2:?--dictionary needs a file}; shift 2; continue ;;
    *dictionary=default*) train=true; policies=true ;;
    --text | --text=*) texts=true ;;
    --context) context=true context_value=${2:-} ;;
    --context=*) context=true context_value=${1#*=} ;;
    --score | --score=*) score=true ;;
    --passkey | --passkey=*) keys=true ;;
    --compression | --compression=*) compressions=true ;;
    --policy=list) list=true ;;
    --policy) policies=true; [ "${2:-}" != list ] || list=true ;;
    --policy=*) policies=true ;;
  esac
  arguments+=("$1")
  shift
done
[ -z "$model" ] || [ -f "$model" ] || { echo "run.sh: --model $model: there is no such file" >&2; exit 1; }

progress() { python3 "$here/progress.py" "$@"; }

# Debian's matplotlib belongs to Debian's python3, which need not be the first one on the path.
make_report() {
  local python
  "$here/install_packages.sh" report
  for python in python3 /usr/bin/python3; do
    "$python" -c "import matplotlib" 2>/dev/null || continue
    progress --fd --progress-fd env PYTHONPATH="$here" "$python" -m report "$output/records.jsonl" "$output" \
      ${context_value:+--context "$context_value"}
    return
  done
  echo "run.sh: no python3 with matplotlib (Debian, Ubuntu: python3-matplotlib)" >&2
  return 1
}
if $report && ! $sweep; then
  [ -f "$output/records.jsonl" ] || { echo "run.sh: $output/records.jsonl is not there; --sweep makes it" >&2; exit 1; }
  make_report
  exit
fi

"$here/install_packages.sh" build examples

mkdir -p "$build"
if ! cmake -G Ninja -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DLESSKV_BUILD_EXAMPLES=ON -DLESSKV_BUILD_TESTS=OFF \
    >"$build/configure.log" 2>&1; then
  cat "$build/configure.log" >&2
  exit 1
fi
progress --ninja "Building" cmake --build "$build" --target compare
program=$build/examples/compare/compare
if $list; then exec "$program" --policy list; fi

if [ -z "$model" ]; then model=$("$here/get_model.sh"); fi
if [ -z "$dictionary" ] && { $train || { ! $policies && ! $sweep; }; }; then
  dictionary=$cache/$(basename "$model" .gguf).lesskvd
  if [ ! -f "$dictionary" ]; then
    if $quick && ! $train; then
      dictionary=""  # the rows that need one are left out
    else
      "$here/train_dictionary/train.sh" --model "$model" --output "$dictionary" >/dev/null
    fi
  fi
fi
[ -z "$dictionary" ] || arguments+=(--dictionary "$dictionary")
if ! $texts; then
  names=(handbook kjv jsonhpp)
  ! $held_out || names=(history stb policy)
  if $sweep; then
    ! $quick || names=(handbook stb policy)
    $quick || $held_out || names+=(history stb policy)
  elif $quick; then
    names=("${names[0]}")
  fi
  progress --fd --progress-fd "$here/get_text.py" "$cache/texts" "${names[@]}"
  for name in "${names[@]}"; do arguments+=(--text "$cache/texts/$name.txt"); done
fi
if $quick && ! $context; then arguments+=(--context 2048); fi
if $quick && ! $compressions; then arguments+=(--compression 4 --compression 8); fi
if $quick && ! $keys; then arguments+=(--passkey 1); fi
if $quick && ! $sweep && ! $score; then arguments+=(--score 192); fi
if $sweep; then
  mkdir -p "$output"
  arguments+=(--sweep "$output/records.jsonl")
fi
sum=$(sha256sum "$model")
progress --fd --progress-fd "$program" --model "$model" --model-sha256 "${sum%% *}" "${arguments[@]}"
if $sweep; then make_report; fi
