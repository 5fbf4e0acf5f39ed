// SPDX-License-Identifier: MIT
#include "dequantize.hpp"

#include <algorithm>
#include <cstring>
#include <lesskv/core/types.hpp>

namespace engine {
namespace {

constexpr Index block = 32;

float half_at(const std::byte* from) {
  lesskv::f16 half;
  std::memcpy(&half, from, sizeof half);
  return lesskv::to_float(half);
}

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

// Any type: a piece is dequantised to the first-level cache, then multiplied. Sixteen sums, so that
// the additions of neighbouring numbers do not wait for each other and vectorise.
float dot_in_pieces(TensorType type, const std::byte* row, const float* x, Index count) {
  constexpr Index piece = 256, lanes = 16;
  const TensorLayout layout = layout_of(type);
  float weights[piece], sums[lanes] = {};
  for (Index i = 0; i < count; i += piece) {
    const Index n = std::min(piece, count - i);
    dequantize(type, row + i / layout.block_numbers * layout.block_bytes, weights, n);
    Index j = 0;
    for (; j + lanes <= n; j += lanes)
      for (Index k = 0; k < lanes; ++k) sums[k] += weights[j + k] * x[i + j + k];
    for (; j < n; ++j) sums[j % lanes] += weights[j] * x[i + j];
  }
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
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

float dot(TensorType type, const std::byte* row, const float* x, Index count) {
  return dot_in_pieces(type, row, x, count);
}

}  // namespace engine
