#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds everything with warnings as errors and runs all tests. From nothing: what is missing is installed with apt.
#
#   tests/run.sh           g++ and clang++ in Release, clang++ under ASan + UBSan, the kernels for ARM under emulation
#   tests/run.sh --quick   g++ in Release only
#
# LESSKV_BUILD_DIR: where to build (default: build/tests).
set -euo pipefail
cd "$(dirname "$0")/.."

quick=false
case "${1:-}" in
  "") ;;
  --quick) quick=true ;;
  *) sed -n '3,8s/^# \{0,1\}//p' tests/run.sh; exit 2 ;;
esac

build_root=${LESSKV_BUILD_DIR:-build/tests}
jobs=$(nproc)
passed=0 failed=0 skipped=0
summary=""

# run_logged LOG COMMAND...: on a terminal the command shows itself, else its output is shown only if it fails.
run_logged() {
  local log=$1
  shift
  if [ -t 1 ]; then "$@"; return; fi
  "$@" >"$log" 2>&1 || { tail -n 200 "$log"; return 1; }
}

attribute() { sed -n "s/.*<testsuite .*[^a-z]$1=\"\([0-9]*\)\".*/\1/p;t;s/^[[:space:]]*$1=\"\([0-9]*\)\".*/\1/p" "$2" | head -n 1; }

# count_results JUNIT_FILE: adds what ctest counted to the totals.
count_results() {
  local all bad off
  all=$(attribute tests "$1") bad=$(attribute failures "$1") off=$(($(attribute disabled "$1") + $(attribute skipped "$1")))
  passed=$((passed + all - bad - off)) failed=$((failed + bad)) skipped=$((skipped + off))
}

# leg NAME WHAT OPTION...: configures with the options, builds `target`, runs ctest without the tests `left_out`, adds to
# the totals.
target=all left_out='^$'
leg() {
  local name=$1 what=$2
  shift 2
  local dir=$build_root/$name start=$SECONDS result=passed
  local junit
  mkdir -p "$dir"
  junit=$(cd "$dir" && pwd)/junit.xml
  rm -f "$junit"
  echo
  echo "== $name: $what"
  if ! run_logged "$dir/configure.log" cmake -G Ninja -S . -B "$dir" -DLESSKV_WERROR=ON "$@" ||
    ! run_logged "$dir/build.log" cmake --build "$dir" -j "$jobs" --target "$target" -- -k 0; then
    echo "$name: the build failed"
    result="build failed"
    failed=$((failed + 1))
  else
    local built=$((SECONDS - start))
    if ctest --test-dir "$dir" -j "$jobs" -E "$left_out" --output-on-failure --output-junit "$junit" >"$dir/ctest.log" 2>&1; then
      sed -n '/tests passed/,$p' "$dir/ctest.log"
    else
      result=failed
      grep -v ' Passed  \|^ *Start ' "$dir/ctest.log" || true
    fi
    if [ -s "$junit" ]; then
      count_results "$junit"
    else
      echo "$name: ctest did not run"
      result=failed
      failed=$((failed + 1))
    fi
    echo "$name: built in $built s, tested in $((SECONDS - start - built)) s"
  fi
  summary+="  $name: $result, $((SECONDS - start)) s ($what)"$'\n'
}

groups="build tests examples bench"
$quick || groups+=" clang"
# shellcheck disable=SC2086  # a list of words
examples/install_packages.sh $groups
# The tests of the report say "skipped" without them.
$quick || examples/install_packages.sh report browser || echo "No browser: the report is not opened in one."

# The model tests say "skipped" without a model.
if [ -x examples/get_model.sh ]; then
  LESSKV_TEST_MODEL=$(examples/get_model.sh) || { echo "No model: the tests that need one are skipped."; LESSKV_TEST_MODEL=""; }
fi
export ASAN_OPTIONS=halt_on_error=1:detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

# -O2, as users compile.
all="-DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O2 -DLESSKV_BUILD_EXAMPLES=ON"
[ -n "${LESSKV_TEST_MODEL:-}" ] && export LESSKV_TEST_MODEL
# shellcheck disable=SC2086
leg gcc "all tests, $(g++ -dumpfullversion -dumpversion | sed 's/^/g++ /'), Release" $all -DCMAKE_CXX_COMPILER=g++ -DLESSKV_BUILD_BENCHMARKS=ON
if ! $quick; then
  # How packages find the library, and what whole comparisons and sweeps of a model print, was seen with g++, and is the same with clang++.
  left_out='^report|^consumer\.(find_package|add_subdirectory|pkg_config|eigen_|newer_|compile_time)|^compare\.(Comparison|Sweep)'
  # shellcheck disable=SC2086
  leg clang "all tests, clang++ $(clang++ -dumpversion), Release" $all -DCMAKE_CXX_COMPILER=clang++
  unset LESSKV_TEST_MODEL
  left_out='^$' target=lesskv_tests
  leg sanitizers "all tests without the model, clang++, ASan + UBSan" -DCMAKE_CXX_COMPILER=clang++ \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1" \
    -DLESSKV_BUILD_EXAMPLES=ON -DLESSKV_SANITIZE=address,undefined -DLESSKV_EXAMPLES_NATIVE=OFF
  if [ "$(uname -m)" != aarch64 ]; then
    if examples/install_packages.sh arm; then
      leg arm "the kernels for ARM (NEON), emulated by qemu" -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
        -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
        "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64-static;-L;/usr/aarch64-linux-gnu" \
        "-DLESSKV_TEST_ROOMS=kernels"
    else
      echo "arm: left out, the cross compiler or the emulator cannot be installed here"
    fi
  fi
fi

echo
echo "In $SECONDS s:"
printf '%s' "$summary"
[ "$skipped" = 0 ] || echo "$skipped skipped"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
