#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# scripts_test.sh SOURCE_DIR: calls the scripts of examples/ and bench/ as a user may call them wrongly, from another folder, with a cache whose
# path has a space. Each must end with the expected status and say the expected words.
set -uo pipefail
examples=$1/examples bench=$1/bench
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work" || exit 1
export LESSKV_CACHE="$work/a cache"
failed=0

# expect STATUS WORDS COMMAND...: WORDS is a part of what the command prints.
expect() {
  local status=$1 words=$2 output got
  shift 2
  output=$("$@" 2>&1 </dev/null)
  got=$?
  if [ "$got" != "$status" ] || [[ $output != *"$words"* ]]; then
    printf 'FAILED: %s\n  status %s, expected %s and "%s":\n%s\n' "$*" "$got" "$status" "$words" "$output"
    failed=1
  fi
}

for option in --quick --model --text --context --score --policy --dictionary --compression --passkey --threads --seed --held-out --lmbo --json \
  --sweep --report --output --needles --long-keys; do
  expect 0 "$option" "$examples/run.sh" --help
done
expect 1 "--model $work/no model.gguf: there is no such file" "$examples/run.sh" --model "$work/no model.gguf"
expect 1 "--model none: there is no such file" "$examples/run.sh" --quick --model=none
expect 1 "--model needs a file" "$examples/run.sh" --model
expect 1 "$work/none/records.jsonl is not there" "$examples/run.sh" --report --output "$work/none"
expect 1 "--output needs a folder" "$examples/run.sh" --sweep --output
expect 2 "unknown group 'nonsense'" "$examples/install_packages.sh" nonsense

# A user who is not root, without sudo, on a system where everything is missing.
mkdir bin
for tool in bash env dirname mktemp cat rm; do ln -s "$(command -v "$tool")" bin/; done
printf '#!/bin/sh\necho 1000\n' >bin/id
printf '#!/bin/sh\nexit 1\n' >bin/dpkg-query
chmod +x bin/id bin/dpkg-query
expect 1 "neither root nor sudo to install them: g++ cmake" env PATH="$work/bin" "$examples/install_packages.sh" build
# Not Debian: says what must be there and goes on.
rm bin/dpkg-query
expect 0 "these must be there: g++ cmake ninja-build" env PATH="$work/bin" "$examples/install_packages.sh" build

expect 1 "there is no document psalms" "$examples/get_text.py" texts psalms
: >file
expect 1 "file" "$examples/get_text.py" "$work/file/below" handbook
expect 1 "file" env LESSKV_CACHE="$work/file" "$examples/get_model.sh"
expect 1 "set HOME or LESSKV_CACHE" env -u LESSKV_CACHE -u XDG_CACHE_HOME -u HOME "$examples/get_model.sh"
# A text that is there is not made again, even where nothing can be written.
mkdir -p "$LESSKV_CACHE/texts"
echo "old text" >"$LESSKV_CACHE/texts/handbook.txt"
chmod a-w "$LESSKV_CACHE/texts"
expect 0 "a cache/texts/handbook.txt" "$examples/get_text.py" "$LESSKV_CACHE/texts" handbook
expect 0 "old text" cat "$LESSKV_CACHE/texts/handbook.txt"

# Progress bars pass on what the command says and how it ends.
expect 0 "words of the command" "$examples/progress.py" --fd --progress-fd sh -c 'echo words of the command'
expect 7 "" "$examples/progress.py" --fd --progress-fd sh -c 'exit 7'
expect 3 "what went wrong" "$examples/progress.py" --ninja Building sh -c 'echo "[1/2] what went wrong"; exit 3'
# shellcheck disable=SC2016  # expanded by the inner shell: the descriptor
expect 0 "work: 2/2" "$examples/progress.py" --fd option bash -c 'printf "work\t1\t2\nwork\t2\t2\n" >&"$1"'
expect 1 "nonesuch" "$examples/progress.py" --fd option nonesuch
expect 1 "Runs a command" "$examples/progress.py"

# The benches: bad arguments, and the table of what they measured.
for option in --decode --peers --only --runs --cpu --json; do
  expect 0 "$option" "$bench/run.sh" --help
done
expect 1 "--only attent: there is no such program" "$bench/run.sh" --only attent
expect 1 "--runs is none" "$bench/run.sh" --runs none
expect 1 "--cpu is -1" "$bench/run.sh" --cpu -1
expect 1 "--nonsense: there is no such option" "$bench/run.sh" --nonsense
expect 1 "file" env LESSKV_CACHE="$work/file" "$bench/peers/get_llama_cpp.sh"
mkdir -p "$LESSKV_CACHE/llama.cpp-0.3.36"
: >"$LESSKV_CACHE/llama.cpp-0.3.36/CMakeLists.txt"
expect 0 "a cache/llama.cpp-0.3.36" "$bench/peers/get_llama_cpp.sh"
attend() {
  printf '{"context": {"num_cpus": 2}, "benchmarks": [{"name": "attend/f16/d128/kv8/g1/n32768/iterations:20/manual_time",'
  printf '"share_of_read": %s, "bytes/s": 2e10}]}' "$1"
}
attend 0.81 >first.json
attend 0.87 >second.json
attend 0.85 >third.json
expect 0 "f16  87 (20.0)" "$bench/table.py" first.json second.json third.json
cat >coding.json <<'JSON'
{"context": {}, "benchmarks": [{"name": "encode/lm4/iterations:100/manual_time", "bytes/s": 2.5e9},
{"name": "decode/lm4/iterations:100/manual_time", "bytes/s": 4e9}, {"name": "rows/4x/tova/iterations:9/manual_time", "error_message": "no"}]}
JSON
expect 0 "lm4     2.5     4.0" "$bench/table.py" coding.json
expect 0 "4x/tova     no" "$bench/table.py" coding.json
cat >decode.json <<'JSON'
{"context": {}, "benchmarks": [{"name": "decode/depth7000/iterations:5/manual_time", "exact": 30, "exact MB": 160,
"int(bits=8)": 33, "int(bits=8) MB": 85, "int(bits=8) compress": 0.02, "int(bits=8) worst_ms": 7.25, "llama.cpp f16": 20, "llama.cpp f16 MB": 150}]}
JSON
expect 0 "33.0   85.0     2.0 %       7.2  int(bits=8)" "$bench/table.py" decode.json
expect 0 "depth7000: 1.65x of llama.cpp f16: int(bits=8)" "$bench/table.py" decode.json
expect 1 "table.py:" "$bench/table.py" none.json
expect 1 "Prints what the benches measured" "$bench/table.py"

exit "$failed"
