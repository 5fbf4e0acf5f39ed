// SPDX-License-Identifier: MIT
// FP8 E4M3, the finite variant (Micikevicius et al., arXiv 2209.05433): 4 bits of exponent, 3 of
// mantissa, no infinity, 448 is the largest. How Lexico stores coefficients.
#pragma once

#include "../../core/types.hpp"

LESSKV_BEGIN_NAMESPACE

struct e4m3 {
  std::uint8_t bits;
};

// Round to nearest, ties to even. Beyond 448 it saturates (Lexico's conversion does), NaN stays NaN.
constexpr e4m3 to_e4m3(float x) {
  const std::uint32_t all = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = all >> 24 & 0x80u, size = all & 0x7fffffffu;
  std::uint32_t out = 0;
  if (size > 0x7f800000u) {
    out = 0x7f;
  } else if (size >= 0x43e80000u) {  // 464 and up would round beyond 448
    out = 0x7e;
  } else if (size < 0x3c800000u) {  // below 2^-6: let the adder round at 2^-9
    const float shifted = std::bit_cast<float>(size) + 16384.f;
    out = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(16384.f);
  } else {
    out = (size - 0x3c000000u + 0x7ffffu + (size >> 20 & 1u)) >> 20;
  }
  return e4m3{
      static_cast<std::uint8_t>(out > 0x7e && size <= 0x7f800000u ? 0x7e | sign : out | sign)};
}

constexpr float to_float(e4m3 x) {
  const std::uint32_t size = x.bits & 0x7fu;
  const std::uint32_t sign = std::uint32_t{x.bits & 0x80u} << 24;
  if (size == 0x7f) return std::bit_cast<float>(0x7fc00000u | sign);
  // An exact multiplication moves the exponent and gets subnormals right.
  const float moved = std::bit_cast<float>(size << 20) * 0x1p120f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(moved) | sign);
}

LESSKV_END_NAMESPACE
