#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# pkg_config.sh PKG_CONFIG COMPILER PREFIX WORK_DIR: builds and runs the consumer with the installed .pc file only.
set -euo pipefail
pkg_config=$1 compiler=$2 prefix=$3 work=$4
export PKG_CONFIG_PATH=$prefix/share/pkgconfig
"$pkg_config" --exists --print-errors "lesskv >= 0.1"
read -ra flags <<<"$("$pkg_config" --cflags lesskv)"
"$compiler" -std=c++20 "${flags[@]}" '-DCONSUMER_KIND="pkg-config"' \
  "$(dirname "$0")/project/main.cpp" -o "$work/consumer_pkg_config"
"$work/consumer_pkg_config"
