#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Prints the path of llama.cpp's source (with ggml in it), after getting it if it is not there yet: it comes with the
# source package of the PyPI package llama-cpp-python, of a fixed version and hash. It is unpacked into the cache folder
# ${LESSKV_CACHE:-${XDG_CACHE_HOME:-~/.cache}/lesskv} and nowhere else; nothing of it is in this tree.
# Needs python3 and either pip or the venv module (Debian, Ubuntu: python3-venv), and ca-certificates.
set -euo pipefail
# shellcheck source=examples/find_pip.sh
. "$(dirname "$0")/../../examples/find_pip.sh"

package="llama-cpp-python"
version="0.3.36"
sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

cache="${LESSKV_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or LESSKV_CACHE}/.cache}/lesskv}"
source="$cache/llama.cpp-$version"
say() { echo "get_llama_cpp.sh: $*" >&2; }

if [ -f "$source/CMakeLists.txt" ]; then
  echo "$source"
  exit 0
fi

mkdir -p "$cache"
# On the same file system, so that the last step is a rename.
work=$(mktemp -d "$cache/get_llama_cpp.XXXXXX")
trap 'rm -rf "$work"' EXIT

find_pip "$work"
say "getting the source of $package $version (77 MB) from the package index"
# pip looks at the hash before it looks into the package.
echo "$package==$version --hash=sha256:$sha256" >"$work/requirements.txt"
if ! "$python" -m pip download --require-hashes --no-deps --no-binary "$package" --no-cache-dir \
    --disable-pip-version-check --dest "$work" --requirement "$work/requirements.txt" >"$work/log" 2>&1; then
  tail -n 5 "$work/log" >&2
  say "the download failed. Is the network there? Behind a mirror, set PIP_INDEX_URL"
  exit 1
fi
mkdir "$work/source"
tar -xzf "$work"/*.tar.gz -C "$work/source" --strip-components=3 --wildcards \
  --exclude='*/vendor/llama.cpp/models' --exclude='*/vendor/llama.cpp/docs' '*/vendor/llama.cpp/*'
[ -f "$work/source/CMakeLists.txt" ] || { say "there is no vendor/llama.cpp in the package"; exit 1; }
rm -rf "$source"
mv "$work/source" "$source"
echo "$source"
