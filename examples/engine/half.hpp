// SPDX-License-Identifier: MIT
#pragma once

#include <cstring>
#include <lesskv/core/types.hpp>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace engine {
namespace {

// The binary16 number at `from`, which need not be aligned. Exact.
inline float half_at(const std::byte* from) {
  lesskv::f16 half;
  std::memcpy(&half, from, sizeof half);
#if defined(__F16C__)
  return _cvtsh_ss(half.bits);
#else
  return lesskv::to_float(half);
#endif
}

}  // namespace
}  // namespace engine
