#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs what Debian or Ubuntu packages are missing, and says which. Root or sudo only if something is missing.
#
#   examples/install_packages.sh GROUP...      groups: build, clang, tests, examples, report, browser, bench, arm
set -euo pipefail

# A question mark: not every release has a package of this name.
packages_of() {
  case $1 in
    build) echo "g++ cmake ninja-build libeigen3-dev" ;;
    clang) echo "clang libclang-rt-dev?" ;;
    tests) echo "libgtest-dev libgmock-dev pkg-config" ;;
    examples) echo "libcli11-dev nlohmann-json3-dev libpcre2-dev ca-certificates python3 python3-pip python3-tqdm python3-venv" ;;
    report) echo "python3 python3-matplotlib python3-tqdm fonts-dejavu-core" ;;
    browser) echo "chromium" ;;
    bench) echo "libbenchmark-dev python3 python3-tqdm" ;;
    arm) echo "g++-aarch64-linux-gnu qemu-user-static googletest" ;;
    *) echo "install_packages.sh: unknown group '$1'" >&2; exit 2 ;;
  esac
}

wanted=""
for group in "$@"; do wanted+=" $(packages_of "$group")"; done
if ! command -v dpkg-query >/dev/null; then
  echo "Not a Debian or Ubuntu system; these must be there:$wanted" >&2
  exit 0
fi

find_missing() {
  local entry package status
  missing=""
  for entry in $wanted; do
    package=${entry%\?}
    status=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [ "${status:0:2}" != "ii" ] || continue
    [ "$entry" = "$package" ] || apt-cache show "$package" >/dev/null 2>&1 || continue
    missing+=" $package"
  done
}

find_missing
[ -n "$missing" ] || exit 0
as_root=""
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "Missing packages, and neither root nor sudo to install them:$missing" >&2
    exit 1
  fi
  as_root="sudo"
fi

here=$(cd "$(dirname "$0")" && pwd)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# env: sudo does not pass variables on. No recommended packages: they are documentation and desktop parts.
apt_install() {
  # sudo closes the descriptor that a progress bar needs.
  if [ -z "$as_root" ] && [ -t 2 ] && python3 -c "import tqdm" 2>/dev/null; then
    DEBIAN_FRONTEND=noninteractive python3 "$here/progress.py" --apt "Installing packages" \
      apt-get install -y --no-install-recommends "$@" >"$log"
  else
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1
  fi
}
install() {
  find_missing
  echo "Installing with apt${as_root:+ (sudo)}:$missing"
  # What draws the progress bar comes first.
  case $missing in *python3-tqdm*) apt_install python3-tqdm || return 1 ;; esac
  # shellcheck disable=SC2086  # a list of words
  apt_install $missing
}
# The package lists of a fresh machine are empty, those of an old one may be out of date.
if ! install; then
  echo "Updating the package lists first"
  { $as_root apt-get update >"$log" 2>&1 && install; } || { cat "$log" >&2; exit 1; }
fi
