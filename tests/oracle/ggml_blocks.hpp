// SPDX-License-Identifier: MIT
// The block formats that engines know, q8_0 and q4_0 of ggml, by their definition: 32 neighbours
// share an f16 scale d, 34 or 18 bytes. What numbers become when they are stored and read back.
#pragma once

#include <algorithm>
#include <cmath>
#include <lesskv/core/types.hpp>
#include <span>
#include <vector>

namespace oracle {

// d = max |x| / 127, code = x / d, rounded to nearest, halves away from zero.
inline std::vector<float> through_q8_0(std::span<const float> x) {
  std::vector<float> out(x.size());
  for (std::size_t first = 0; first < x.size(); first += 32) {
    const std::size_t end = std::min(x.size(), first + 32);
    float most = 0;
    for (std::size_t i = first; i < end; ++i) most = std::max(most, std::abs(x[i]));
    const float scale = most / 127, inverse = scale > 0 ? 1 / scale : 0;
    const float stored = lesskv::to_float(lesskv::to_f16(scale));
    for (std::size_t i = first; i < end; ++i) out[i] = std::round(x[i] * inverse) * stored;
  }
  return out;
}

// d = m / -8, m the number of the largest magnitude, the first of several; code = x / d + 8, rounded
// half up, at most 15; read back (code - 8) d.
inline std::vector<float> through_q4_0(std::span<const float> x) {
  std::vector<float> out(x.size());
  for (std::size_t first = 0; first < x.size(); first += 32) {
    const std::size_t end = std::min(x.size(), first + 32);
    float largest = 0;
    for (std::size_t i = first; i < end; ++i)
      if (std::abs(x[i]) > std::abs(largest)) largest = x[i];
    const float scale = largest / -8, inverse = scale != 0 ? 1 / scale : 0;
    const float stored = lesskv::to_float(lesskv::to_f16(scale));
    for (std::size_t i = first; i < end; ++i) {
      // The product as f32, the sum in double: no compiler makes one operation of the two.
      const double code = std::floor(double{x[i] * inverse} + 8.5);
      out[i] = static_cast<float>(std::min(code, 15.0) - 8) * stored;
    }
  }
  return out;
}

}  // namespace oracle
