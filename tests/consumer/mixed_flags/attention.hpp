// SPDX-License-Identifier: MIT
// The same work for both files of the program: included by each, compiled with the flags of each.
#pragma once

#include <lesskv/lesskv.hpp>

#include <cmath>
#include <vector>

// Sum of what attention over a small cache gives.
inline namespace LESSKV_NAMESPACE_TAG {
struct NewestFirst {
  void score(const lesskv::Head& head, std::span<float> out) const {
    for (lesskv::Index row = head.first; row < head.last; ++row)
      out[static_cast<std::size_t>(row)] = head.keys.row(row).sum() + static_cast<float>(row);
  }
};

inline float attention_sum() {
  constexpr int tokens = 100, heads = 2, width = 16;
  lesskv::KVCache cache(lesskv::Shape{.query_heads = heads, .kv_heads = heads, .head_dim = width},
                        lesskv::Keep{.fraction = 0.5}, NewestFirst{});
  std::vector<float> rows(tokens * heads * width);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = std::sin(static_cast<float>(i));
  const lesskv::View view = lesskv::View::packed(rows.data(), tokens, heads, width);
  cache.append(0, view, view);
  cache.compress();
  std::vector<float> out(heads * width);
  cache.attend(0, lesskv::View::packed(rows.data(), 1, heads, width), out.data());
  float sum = 0;
  for (const float x : out) sum += x;
  return sum;
}
}  // namespace LESSKV_NAMESPACE_TAG
