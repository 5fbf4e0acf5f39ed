// SPDX-License-Identifier: MIT
// Block formats of GGUF back to f32 (ggml/src/ggml-quants.c, dequantize_row_*). A block of 32
// numbers is a f16 scale d (Q4_1: and a f16 minimum m) followed by the codes; nibble j of byte j is
// number j, its high half number j + 16.
//   Q8_0: d * q, q in -128..127      Q4_0: d * (q - 8), q in 0..15      Q4_1: d * q + m, q in 0..15
// The results are exact in f32 but for the sum of Q4_1, which is rounded once, so every correct
// reader agrees bit by bit.
#pragma once

#include "gguf.hpp"

namespace engine {

// `count` numbers, a multiple of the block length of the type, from `from` (no alignment needed) to
// `to`.
void dequantize(TensorType type, const std::byte* from, float* to, Index count);

}  // namespace engine
