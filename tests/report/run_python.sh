#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs a test with a python3 that has matplotlib; ends with 77 (skipped) if there is none.
set -u
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH=$here/../../examples:$here PYTHONDONTWRITEBYTECODE=1
for python in python3 /usr/bin/python3; do
  if "$python" -c "import matplotlib" 2>/dev/null; then exec "$python" "$@"; fi
done
echo "skipped: no python3 with matplotlib (examples/install_packages.sh report)"
exit 77
