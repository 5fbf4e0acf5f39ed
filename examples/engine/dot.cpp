// SPDX-License-Identifier: MIT
#include "dot.hpp"

#include <algorithm>

#include "dequantize.hpp"
#include "half.hpp"
#include "vector.hpp"

namespace engine {
namespace {

// codes . x of a block of 32 nibbles: the low halves are numbers 0..15, the high halves 16..31.
inline Vector nibbles_dot(const std::byte* codes, const float* x) {
  constexpr Index half = dot_block / 2;
  Vector out = {};
  for (Index j = 0; j < half; j += lanes) {
    const IntVector pair = load_bytes<std::uint8_t>(codes + j);
    out += to_floats(pair & 15) * load(x + j) + to_floats(pair >> 4) * load(x + half + j);
  }
  return out;
}

float dot_q4_0(const std::byte* row, const float* x, const float* sums, Index count) {
  Vector out = {};
  float offset = 0;
  for (Index b = 0; b < count / dot_block; ++b, row += 18, x += dot_block) {
    const float d = half_at(row);
    out += nibbles_dot(row + 2, x) * d;
    offset += d * sums[b];
  }
  return sum(out) - 8 * offset;
}

float dot_q4_1(const std::byte* row, const float* x, const float* sums, Index count) {
  Vector out = {};
  float offset = 0;
  for (Index b = 0; b < count / dot_block; ++b, row += 20, x += dot_block) {
    out += nibbles_dot(row + 4, x) * half_at(row);
    offset += half_at(row + 2) * sums[b];
  }
  return sum(out) + offset;
}

float dot_q8_0(const std::byte* row, const float* x, Index count) {
  Vector out = {};
  for (Index b = 0; b < count / dot_block; ++b, row += 34, x += dot_block) {
    Vector block = {};
    for (Index j = 0; j < dot_block; j += lanes)
      block += to_floats(load_bytes<std::int8_t>(row + 2 + j)) * load(x + j);
    out += block * half_at(row);
  }
  return sum(out);
}

// Types without blocks: a piece is widened to the first-level cache, then multiplied.
float dot_in_pieces(TensorType type, const std::byte* row, const float* x, Index count) {
  constexpr Index piece = 256;
  const Index number_bytes = layout_of(type).block_bytes;
  float weights[piece];
  Vector out = {};
  float tail = 0;
  for (Index i = 0; i < count; i += piece) {
    const Index n = std::min(piece, count - i);
    dequantize(type, row + i * number_bytes, weights, n);
    Index j = 0;
    for (; j + lanes <= n; j += lanes) out += load(weights + j) * load(x + i + j);
    for (; j < n; ++j) tail += weights[j] * x[i + j];
  }
  return sum(out) + tail;
}

}  // namespace

void block_sums(const float* x, Index count, float* sums) {
  for (Index b = 0; b < count / dot_block; ++b) {
    Vector part = {};
    for (Index j = 0; j < dot_block; j += lanes) part += load(x + b * dot_block + j);
    sums[b] = sum(part);
  }
}

float dot(TensorType type, const std::byte* row, const float* x, const float* sums, Index count) {
  switch (type) {
    case TensorType::q4_0:
      return dot_q4_0(row, x, sums, count);
    case TensorType::q4_1:
      return dot_q4_1(row, x, sums, count);
    case TensorType::q8_0:
      return dot_q8_0(row, x, count);
    default:
      return dot_in_pieces(type, row, x, count);
  }
}

}  // namespace engine
