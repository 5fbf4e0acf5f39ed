// SPDX-License-Identifier: MIT
// One cut on the scores of several heads: how many of the largest belong to each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "../core/select.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// counts[i]: how many of the `total` largest scores are head i's. Each head is first sure of its
// own floor(safe) largest, or all it has. Equal scores: the earlier head. If the total is not whole,
// or larger than what there is, the counts are scaled to it.
inline std::vector<double> cut_scores(std::span<const std::span<const float>> scores, double total,
                                      double safe) {
  const std::size_t heads = scores.size();
  std::vector<double> counts(heads, 0.0);
  struct Key {
    std::uint32_t key;
    std::uint32_t head;
  };
  std::vector<Key> open;
  std::vector<std::uint32_t> keys;
  Index left = static_cast<Index>(total + 1e-9);
  for (std::size_t i = 0; i < heads; ++i) {
    const Index n = static_cast<Index>(scores[i].size());
    const Index sure = std::clamp<Index>(static_cast<Index>(safe + 1e-9), 0, n);
    keys.clear();
    for (const float x : scores[i]) keys.push_back(order_key(x));
    std::nth_element(keys.begin(), keys.begin() + sure, keys.end(), std::greater<>());
    counts[i] = double(sure);
    left -= sure;
    for (std::size_t r = uz(sure); r < keys.size(); ++r)
      open.push_back({keys[r], static_cast<std::uint32_t>(i)});
  }
  left = std::clamp<Index>(left, 0, static_cast<Index>(open.size()));
  std::nth_element(open.begin(), open.begin() + left, open.end(), [](const Key& a, const Key& b) {
    return a.key != b.key ? a.key > b.key : a.head < b.head;
  });
  for (Index r = 0; r < left; ++r) counts[open[uz(r)].head] += 1;
  double sum = 0;
  for (const double count : counts) sum += count;
  if (sum > 0)
    for (double& count : counts) count *= total / sum;
  return counts;
}

}  // namespace detail
LESSKV_END_NAMESPACE
