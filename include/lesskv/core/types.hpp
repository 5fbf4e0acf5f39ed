// SPDX-License-Identifier: MIT
// Numbers: rows, positions, and the three storage types.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "config.hpp"

LESSKV_BEGIN_NAMESPACE

// A row: a place in the storage of one head. Signed, so that differences are safe.
using Index = std::ptrdiff_t;

// A place in the sequence. Does not convert to a row: after compression row 10 may hold position
// 4000.
enum class Position : std::int64_t {};

constexpr std::int64_t to_int(Position p) { return static_cast<std::int64_t>(p); }

// The type in which keys and values are stored or handed in. A run-time tag: nothing is a template
// over it.
enum class DType : std::uint8_t { f32, f16, bf16 };

// IEEE 754 binary16 and bfloat16, as bits.
struct f16 {
  std::uint16_t bits;
};
struct bf16 {
  std::uint16_t bits;
};

constexpr Index size_of(DType type) { return type == DType::f32 ? 4 : 2; }

constexpr const char* name_of(DType type) {
  return type == DType::f32 ? "f32" : type == DType::f16 ? "f16" : "bf16";
}

// The largest finite magnitude that survives rounding to the type; larger inputs would become
// infinite.
constexpr float largest(DType type) {
  return type == DType::f32 ? 0x1.fffffep127f : type == DType::f16 ? 65519.996f : 0x1.fefffep127f;
}

constexpr float to_float(float x) { return x; }

constexpr float to_float(bf16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }

constexpr float to_float(f16 x) {
  const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16;
  const std::uint32_t magnitude = std::uint32_t{x.bits & 0x7fffu} << 13;
  // Moving the exponent by a multiplication is exact and gets subnormals right.
  std::uint32_t bits = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  if ((x.bits & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  return std::bit_cast<float>(bits | sign);
}

// Round to nearest, ties to even; NaN stays NaN; too large becomes infinite.
constexpr f16 to_f16(float x) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  std::uint32_t half = 0;
  if (bits >= 0x47800000u) {  // 65536 and up, infinity, NaN
    half = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (bits < 0x38800000u) {  // subnormal or zero: let the adder round at 2^-24
    const float shifted = std::bit_cast<float>(bits) + 0.5f;
    half = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0.5f);
  } else {
    half = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  }
  return f16{static_cast<std::uint16_t>(half | sign)};
}

constexpr bf16 to_bf16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return bf16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return bf16{static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

namespace detail {
// std containers count in size_t, rows are signed.
constexpr std::size_t uz(Index i) { return static_cast<std::size_t>(i); }
constexpr Index round_up(Index n, Index to) { return (n + to - 1) / to * to; }
}  // namespace detail

LESSKV_END_NAMESPACE
