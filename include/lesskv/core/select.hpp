// SPDX-License-Identifier: MIT
// Selection: pooling of scores, and the k largest in position order.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "concepts.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// Scores as ordered integers: larger float, larger integer; NaN below everything, so that it can
// never win.
inline std::uint32_t order_key(float x) {
  if (std::isnan(x)) return 0;
  if (x == 0) x = 0;  // -0 and +0 are one score
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

// out[i] = pooled in[i]. Average divides by the full width at the ends too (zero padding,
// count_include_pad).
inline void pool(std::span<const float> in, Pooling pooling, std::span<float> out) {
  const Index n = static_cast<Index>(in.size());
  const Index half = pooling.width / 2;
  for (Index i = 0; i < n; ++i) {
    const Index a = std::max<Index>(0, i - half);
    const Index b = std::min<Index>(n - 1, i + half);
    if (pooling.kind == PoolKind::max) {
      out[uz(i)] = *std::max_element(in.begin() + a, in.begin() + b + 1);
    } else {
      double sum = 0;
      for (Index j = a; j <= b; ++j) sum += double{in[uz(j)]};
      out[uz(i)] = static_cast<float>(sum / double(pooling.width));
    }
  }
}

// Appends the rows of the k largest scores of [first, last) to `kept`, ascending. Equal scores: the
// larger `tie` (the un-pooled score; may be empty), then the later row. `kept` receives row +
// offset.
inline void select_largest(std::span<const float> score, std::span<const float> tie, Index first,
                           Index last, Index k, Index offset, std::vector<std::int32_t>& kept) {
  const Index n = last - first;
  k = std::clamp<Index>(k, 0, n);
  if (k == 0) return;
  if (k == n) {
    for (Index r = first; r < last; ++r) kept.push_back(static_cast<std::int32_t>(r + offset));
    return;
  }
  // The k-th largest key first; only rows equal to it need the tie rule.
  std::vector<std::uint32_t> keys(uz(n));
  for (Index i = 0; i < n; ++i) keys[uz(i)] = order_key(score[uz(first + i)]);
  std::vector<std::uint32_t> sorted = keys;
  std::nth_element(sorted.begin(), sorted.begin() + (n - k), sorted.end());
  const std::uint32_t threshold = sorted[uz(n - k)];
  Index above = 0;
  std::vector<Index> equal;
  for (Index i = 0; i < n; ++i) {
    above += keys[uz(i)] > threshold;
    if (keys[uz(i)] == threshold) equal.push_back(i);
  }
  const Index wanted = k - above;
  const auto before = [&](Index a, Index b) {
    if (!tie.empty()) {
      const std::uint32_t ta = order_key(tie[uz(first + a)]), tb = order_key(tie[uz(first + b)]);
      if (ta != tb) return ta > tb;
    }
    return a > b;
  };
  std::sort(equal.begin(), equal.end(), before);
  equal.resize(uz(wanted));
  std::sort(equal.begin(), equal.end());
  std::size_t e = 0;
  for (Index i = 0; i < n; ++i) {
    const bool tied = e < equal.size() && equal[e] == i;
    e += tied;
    if (tied || keys[uz(i)] > threshold)
      kept.push_back(static_cast<std::int32_t>(first + i + offset));
  }
}

}  // namespace detail
LESSKV_END_NAMESPACE
