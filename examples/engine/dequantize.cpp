// SPDX-License-Identifier: MIT
#include "dequantize.hpp"

#include <cstring>

#include "half.hpp"

namespace engine {
namespace {

constexpr Index block = 32;

void dequantize_q8_0(const std::byte* from, float* to, Index count) {
  for (Index i = 0; i < count; i += block, from += 34) {
    const float d = half_at(from);
    std::int8_t codes[block];
    std::memcpy(codes, from + 2, block);
    for (Index j = 0; j < block; ++j) to[i + j] = d * static_cast<float>(codes[j]);
  }
}

void dequantize_q4_0(const std::byte* from, float* to, Index count) {
  for (Index i = 0; i < count; i += block, from += 18) {
    const float d = half_at(from);
    std::uint8_t codes[block / 2];
    std::memcpy(codes, from + 2, block / 2);
    for (Index j = 0; j < block / 2; ++j) to[i + j] = d * static_cast<float>((codes[j] & 15) - 8);
    for (Index j = 0; j < block / 2; ++j)
      to[i + 16 + j] = d * static_cast<float>((codes[j] >> 4) - 8);
  }
}

void dequantize_q4_1(const std::byte* from, float* to, Index count) {
  for (Index i = 0; i < count; i += block, from += 20) {
    const float d = half_at(from), m = half_at(from + 2);
    std::uint8_t codes[block / 2];
    std::memcpy(codes, from + 4, block / 2);
    for (Index j = 0; j < block / 2; ++j) to[i + j] = d * static_cast<float>(codes[j] & 15) + m;
    for (Index j = 0; j < block / 2; ++j)
      to[i + 16 + j] = d * static_cast<float>(codes[j] >> 4) + m;
  }
}

template <class Half>
void widen(const std::byte* from, float* to, Index count) {
  for (Index i = 0; i < count; ++i) {
    Half half;
    std::memcpy(&half, from + 2 * i, sizeof half);
    to[i] = lesskv::to_float(half);
  }
}

}  // namespace

void dequantize(TensorType type, const std::byte* from, float* to, Index count) {
  switch (type) {
    case TensorType::f32:
      std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
      return;
    case TensorType::f16:
      return widen<lesskv::f16>(from, to, count);
    case TensorType::bf16:
      return widen<lesskv::bf16>(from, to, count);
    case TensorType::q8_0:
      return dequantize_q8_0(from, to, count);
    case TensorType::q4_0:
      return dequantize_q4_0(from, to, count);
    case TensorType::q4_1:
      return dequantize_q4_1(from, to, count);
  }
}

}  // namespace engine
