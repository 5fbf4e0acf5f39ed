#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# scripts_test.sh EXAMPLES_DIR: calls the scripts as a user may call them wrongly, from another folder, with a cache whose
# path has a space. Each must end with the expected status and say the expected words.
set -uo pipefail
examples=$1
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

exit "$failed"
