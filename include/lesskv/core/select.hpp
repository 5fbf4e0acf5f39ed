// SPDX-License-Identifier: MIT
// Selection: pooling of scores, and the k largest in position order.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "../kernels/tile_kernels.hpp"
#include "concepts.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// A score as an ordered integer: larger float, larger integer; NaN below everything, so that it can
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

// Working memory of a selection, kept by the thread.
struct SelectScratch {
  std::vector<std::int32_t> keys, scratch, rows, tie_keys;
  std::vector<float> ties;
};

// The bound that the k-th largest of n keys sets, how many keys are above it and how many equal it.
// If just k reach it, it need not be a key itself and all of them count as equal.
struct SelectBound {
  std::int32_t key = 0;
  Index above = 0;
  Index equal = 0;
};

inline SelectBound find_bound(const TileKernelTable& kernel, std::span<const float> score, Index k,
                              std::vector<std::int32_t>& keys, std::vector<std::int32_t>& scratch) {
  const Index n = static_cast<Index>(score.size());
  const auto at_least = [](std::vector<std::int32_t>& v, Index size) {
    if (v.size() < uz(size)) v.resize(uz(size));
  };
  at_least(keys, n);
  at_least(scratch, select_scratch(n));
  std::int32_t least = 0, most = 0;
  kernel.order_keys(score.data(), n, keys.data(), &least, &most);
  SelectBound bound;
  Index reach = 0;
  bound.key = kernel.kth_largest(keys.data(), n, k, least, most, scratch.data(), &reach);
  if (reach > k) bound.above = kernel.count_at_least(keys.data(), n, bound.key + 1);
  bound.equal = reach - bound.above;
  return bound;
}

// Appends the rows of the k largest scores of [first, last) to `kept`, ascending. Equal scores: the
// larger `tie` (the un-pooled score; may be empty), then the later row. NaN is less than any
// number. `kept` receives row + offset. A thread that selects again allocates nothing but `kept`.
inline void select_largest(std::span<const float> score, std::span<const float> tie, Index first,
                           Index last, Index k, Index offset, std::vector<std::int32_t>& kept) {
  const Index n = last - first;
  k = std::clamp<Index>(k, 0, n);
  if (k == 0) return;
  const std::size_t held = kept.size();
  kept.resize(held + uz(k));
  std::int32_t* out = kept.data() + held;
  const auto base = static_cast<std::int32_t>(first + offset);
  if (k == n) {
    std::iota(out, out + k, base);
    return;
  }
  thread_local SelectScratch own;
  const TileKernelTable& kernel = tile_kernels();
  const SelectBound bound =
      find_bound(kernel, score.subspan(uz(first), uz(n)), k, own.keys, own.scratch);
  std::int32_t* keys = own.keys.data();
  Index wanted = k - bound.above;
  if (wanted < bound.equal && !tie.empty()) {
    // Of the rows that equal the bound, those that their ties choose are raised above it.
    own.rows.clear();
    own.ties.clear();
    for (Index i = 0; i < n; ++i)
      if (keys[i] == bound.key) {
        own.rows.push_back(static_cast<std::int32_t>(i));
        own.ties.push_back(tie[uz(first + i)]);
      }
    const SelectBound among = find_bound(kernel, own.ties, wanted, own.tie_keys, own.scratch);
    Index skipped = among.equal - (wanted - among.above);
    for (std::size_t e = 0; e < own.rows.size(); ++e) {
      const std::int32_t key = own.tie_keys[e];
      if (key > among.key || (key == among.key && --skipped < 0)) keys[own.rows[e]] = bound.key + 1;
    }
    wanted = 0;
  }
  // All that equal the bound, or the later ones of them: from row `from` on.
  Index from = 0;
  if (wanted == 0) {
    from = n;
  } else {
    for (Index skip = bound.equal - wanted; skip > 0; ++from) skip -= keys[from] == bound.key;
  }
  const Index before = kernel.list_at_least(keys, 0, from, bound.key + 1, base, out, 0, k);
  kernel.list_at_least(keys, from, n, bound.key, base, out, before, k);
}

}  // namespace detail
LESSKV_END_NAMESPACE
