# SPDX-License-Identifier: MIT
# To be sourced. find_pip FOLDER: sets $python to a Python that has pip; if the system's has none, to one of a virtual
# environment in FOLDER. Says through say() what is missing, and fails.
find_pip() {
  command -v python3 >/dev/null || { say "python3 is missing (Debian, Ubuntu: apt install python3 python3-venv)"; return 1; }
  python=python3
  ! python3 -m pip --version >/dev/null 2>&1 || return 0
  # Debian's python3 has no pip of its own; a virtual environment brings one.
  python3 -m venv "$1/venv" >"$1/log" 2>&1 ||
    { cat "$1/log" >&2; say "neither pip nor venv works (Debian, Ubuntu: apt install python3-venv)"; return 1; }
  python="$1/venv/bin/python"
}
