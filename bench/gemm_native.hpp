// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Operations per second of one square product, 768 wide: the shape that it likes best.
double gemm_rate();
