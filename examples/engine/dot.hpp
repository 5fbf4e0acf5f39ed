// SPDX-License-Identifier: MIT
// The dot product of a stored row with a f32 vector, dequantised in registers: what decoding spends
// its time on.
#pragma once

#include "gguf.hpp"

namespace engine {

// Numbers of the longest block of the stored types.
constexpr Index dot_block = 32;

// The sums of x over blocks of dot_block numbers (a shorter block at the end is left out: only
// types without blocks have one). A row of Q4 blocks is sum over blocks of d * (codes . x) + m *
// sum(x), so dot() wants them.
void block_sums(const float* x, Index count, float* sums);

// row . x over `count` numbers. Everything is f32; neither x nor the weights are rounded to 8 bits.
float dot(TensorType type, const std::byte* row, const float* x, const float* sums, Index count);

}  // namespace engine
