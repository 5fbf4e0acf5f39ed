#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Measures lesskv on this machine and prints a table. From nothing: installs what is missing, builds, runs.
#
#   bench/run.sh [--decode | --peers | --only NAME[,NAME...]] [--runs N] [--cpu N] [--json FOLDER]
#
#                  attention, scores, selection, encoding and decoding, compress(), error against bits, sparse codes,
#                  entropies; under ten minutes
#   --decode       tokens a second of a real model with exact, coded and compressed caches (minutes; gets the model)
#   --peers        beside other engines, rounds interleaved in one process: attention beside ggml, and --decode beside
#                  llama.cpp; gets their source (77 MB) and builds it
#   --only NAME    single programs: attend, compress, policy, codec, csr, entropy, pursuit, decode, attend_peers, decode_peers
#   --runs N       runs of the attention benches; the table has the best share of the read limit          (1)
#   --cpu N        the core that everything is pinned to (two_threads: it and the next)                    (0)
#   --json FOLDER  where the results go, one file of Google Benchmark each                      (build/bench/results)
#
# The machine should do nothing else meanwhile. bench/README.md says what every figure means.
# LESSKV_BUILD_DIR: where to build (build/bench). LESSKV_CACHE: where model, text and peers are kept (~/.cache/lesskv).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
build=${LESSKV_BUILD_DIR:-$root/build/bench}
cache=${LESSKV_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or LESSKV_CACHE}/.cache}/lesskv}

known="attend compress policy codec csr entropy pursuit decode attend_peers decode_peers"
names="attend compress policy codec csr entropy pursuit"
runs=1 cpu=0 results=""
fail() { echo "run.sh: $*" >&2; exit 1; }
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '3,19s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --decode) names="decode"; shift ;;
    --peers) names="attend_peers decode_peers"; shift ;;
    --only) names=${2:?--only needs a name}; names=${names//,/ }; shift 2 ;;
    --runs) runs=${2:?--runs needs a number}; shift 2 ;;
    --cpu) cpu=${2:?--cpu needs a number}; shift 2 ;;
    --json) results=${2:?--json needs a folder}; shift 2 ;;
    *) fail "$1: there is no such option; --help lists them" ;;
  esac
done
[[ $runs =~ ^[1-9][0-9]*$ ]] || fail "--runs is $runs; it must be a number from 1 on"
[[ $cpu =~ ^[0-9]+$ ]] || fail "--cpu is $cpu; it must be the number of a core"
for name in $names; do
  [[ " $known " == *" $name "* ]] || fail "--only $name: there is no such program; there are: $known"
done
results=${results:-$build/results}

has() { [[ " $names " == *" $1 "* ]]; }
groups="build bench" options=() targets=()
model="" text="" dictionary=""
if has decode || has decode_peers; then groups+=" examples"; fi
# shellcheck disable=SC2086  # a list of words
"$root/examples/install_packages.sh" $groups
progress() { python3 "$root/examples/progress.py" "$@"; }
if has attend_peers || has decode_peers; then options+=("-DLESSKV_LLAMA_CPP=$("$here/peers/get_llama_cpp.sh")"); fi
if has decode || has decode_peers; then
  options+=(-DLESSKV_BUILD_EXAMPLES=ON)
  model=$("$root/examples/get_model.sh")
  text=$cache/texts/handbook.txt
  progress --fd --progress-fd "$root/examples/get_text.py" "$cache/texts" handbook >/dev/null
fi
if has codec; then
  dictionary=$cache/SmolLM2-135M-Instruct.Q4_1.lesskvd  # examples/run.sh trains it; without it no CSR
  [ -f "$dictionary" ] || dictionary=""
fi

mkdir -p "$build" "$results"
if ! cmake -G Ninja -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DLESSKV_BUILD_BENCHMARKS=ON \
    -DLESSKV_BUILD_TESTS=OFF "${options[@]}" >"$build/configure.log" 2>&1; then
  cat "$build/configure.log" >&2
  exit 1
fi
for name in $names; do targets+=("${name}_bench"); done
progress --ninja "Building" cmake --build "$build" --target "${targets[@]}"

pin=()
if command -v taskset >/dev/null; then pin=(taskset -c "$cpu"); fi
# run NAME FILE ARGUMENT...: a program, its results into FILE. What it prints on the way is for those who run it alone.
run() {
  local name=$1 file=$results/$2.json start=$SECONDS
  shift 2
  local program
  program=$(find "$build/bench" -type f -name "${name}_bench" -perm -u+x)
  rm -f "$file"
  echo "$name ..." >&2
  "${pin[@]}" "$program" --benchmark_out="$file.part" --benchmark_out_format=json "$@" >"$build/$name.log" 2>&1 ||
    { tail -n 20 "$build/$name.log" >&2; fail "$name failed"; }
  mv "$file.part" "$file"
  files+=("$file")
  echo "$name: $((SECONDS - start)) s" >&2
}
files=()
for name in $names; do
  case $name in
    attend)
      # Two cores where two are measured.
      run attend attend --benchmark_filter='^attend/.*(d128/.*/g[14]|d64/.*/g[134])/n32768|^(hot|prefill)/'
      for ((i = 2; i <= runs; ++i)); do
        run attend "attend_$i" --benchmark_filter='^attend/.*(d128/.*/g[14]|d64/.*/g[134])/n32768'
      done
      if [ ${#pin[@]} -gt 0 ] && [ "$(nproc)" -gt $((cpu + 1)) ]; then
        pin=(taskset -c "$cpu,$((cpu + 1))")
        run attend attend_two --benchmark_filter='^two_threads/'
        pin=(taskset -c "$cpu")
      fi
      ;;
    attend_peers) for ((i = 1; i <= runs; ++i)); do run attend_peers "attend_peers_$i"; done ;;
    codec) run codec codec ${dictionary:+"--dictionary=$dictionary"} ;;
    decode | decode_peers) run "$name" "$name" "--model=$model" "--text=$text" ;;
    *) run "$name" "$name" ;;
  esac
done
"$here/table.py" "${files[@]}"
