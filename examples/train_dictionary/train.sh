#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Learns the dictionaries of a model's keys and values, from nothing: installs what is missing, builds, gets a small model
# and text, and prints the path of the dictionary file. A training that was stopped goes on where it was.
#
#   examples/train_dictionary/train.sh [--model FILE.gguf] [--text FILE]... [--output FILE] [options of train_dictionary]
#
# LESSKV_BUILD_DIR: where to build (build/run). LESSKV_CACHE: where model, texts and dictionary are kept (~/.cache/lesskv).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
examples=$(dirname "$here")
root=$(dirname "$examples")
build=${LESSKV_BUILD_DIR:-$root/build/run}
cache=${LESSKV_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or LESSKV_CACHE}/.cache}/lesskv}

model="" output="" texts=false
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '3,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --model) model=${2:?--model needs a file}; shift 2; continue ;;
    --output) output=${2:?--output needs a file}; shift 2; continue ;;
    --text | --text=*) texts=true ;;
  esac
  arguments+=("$1")
  shift
done

"$examples/install_packages.sh" build examples
progress() { python3 "$examples/progress.py" "$@"; }
mkdir -p "$build"
if ! cmake -G Ninja -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DLESSKV_BUILD_EXAMPLES=ON -DLESSKV_BUILD_TESTS=OFF \
    >"$build/configure.log" 2>&1; then
  cat "$build/configure.log" >&2
  exit 1
fi
progress --ninja "Building" cmake --build "$build" --target train_dictionary >&2

if [ -z "$model" ]; then model=$("$examples/get_model.sh"); fi
[ -n "$output" ] || output=$cache/$(basename "$model" .gguf).lesskvd
if ! $texts; then
  progress --fd --progress-fd "$here/get_text.py" "$cache/texts" >&2
  for name in handbook kjv jsonhpp; do arguments+=(--text "$cache/texts/train_$name.txt"); done
fi
progress --fd --progress-fd "$build/examples/train_dictionary/train_dictionary" --model "$model" --output "$output" \
  "${arguments[@]}" >&2
echo "$output"
