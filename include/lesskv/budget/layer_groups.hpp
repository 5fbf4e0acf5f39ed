// SPDX-License-Identifier: MIT
// Groups of layers by drops of entropy, and how many tokens each group of layers sees (UNComp,
// arXiv 2410.03090): for engines that let hidden states go while they prefill. Budgets of stored
// rows do not depend on it.
//
// The series is one number a layer. The released code sums exp(H / ln d) of the untruncated
// entropies of queries over the heads of a layer, and opens a new group where the series falls by
// more than 1. That is a property of 32 heads: `layer_series` takes the mean over heads and
// `default_drop` 1 / max(heads, 32), which reproduces both published splits (inferred; no constant
// gives them exactly on the scale of single heads).
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "../core/error.hpp"
#include "../core/types.hpp"

LESSKV_BEGIN_NAMESPACE

// Mean of exp(H / ln head_dim) over the heads of every layer; entropies in nats, [layer][head].
inline std::vector<double> layer_series(std::span<const double> entropies, Index layers,
                                        Index head_dim) {
  using detail::uz;
  const Index n = static_cast<Index>(entropies.size());
  if (layers < 1 || n == 0 || n % layers != 0)
    fail("layer_series::layers is ", layers, " for ", n, " entropies");
  if (head_dim < 2) fail("layer_series::head_dim is ", head_dim, "; it must be at least 2");
  const Index heads = n / layers;
  std::vector<double> out(uz(layers), 0.0);
  for (Index i = 0; i < n; ++i)
    out[uz(i / heads)] += std::exp(entropies[uz(i)] / std::log(double(head_dim))) / double(heads);
  return out;
}
inline double default_drop(Index heads) { return 1 / double(std::max<Index>(heads, 32)); }

// Group of every layer, 0, 1, ...: a new one where the series falls by more than `drop`.
inline std::vector<int> layer_groups(std::span<const double> series, double drop) {
  if (!std::isfinite(drop) || drop < 0)
    fail("layer_groups::drop must be a finite number, not below 0");
  std::vector<int> out(series.size(), 0);
  for (std::size_t l = 1; l < series.size(); ++l)
    out[l] = out[l - 1] + (series[l] - series[l - 1] < -drop);
  return out;
}

// The same for a given number of groups: cut at the largest drops (equal ones: the earlier).
inline std::vector<int> layer_groups_of(std::span<const double> series, int groups) {
  const int layers = static_cast<int>(series.size());
  if (groups < 1 || groups > layers)
    fail("layer_groups_of::groups is ", groups, "; it must lie between 1 and the ", layers,
         " layers");
  std::vector<std::size_t> order(series.size() - 1);
  std::iota(order.begin(), order.end(), std::size_t{1});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return series[a] - series[a - 1] < series[b] - series[b - 1];
  });
  std::vector<int> out(series.size(), 0);
  for (int g = 0; g + 1 < groups; ++g) out[order[static_cast<std::size_t>(g)]] = 1;
  std::partial_sum(out.begin(), out.end(), out.begin());
  return out;
}

// Tokens that each group of layers sees: from `longest` down to `least` in equal steps, the step
// rounded down, so that the first group may see less than `longest` by less than one a group.
// Published: longest = the length limit of the model, least = 1536; clip to the prompt.
inline std::vector<Index> stage_budgets(Index longest, int groups, Index least) {
  if (groups < 1) fail("stage_budgets::groups is ", groups, "; it must be at least 1");
  if (least < 1 || least > longest)
    fail("stage_budgets::least is ", least, "; it must lie between 1 and longest, ", longest);
  std::vector<Index> out(detail::uz(groups), longest);
  const Index step = groups > 1 ? (longest - least) / (groups - 1) : 0;
  if (groups > 1)
    for (int s = 0; s < groups; ++s) out[detail::uz(s)] = least + step * (groups - 1 - s);
  return out;
}
// Scaled to any prompt: the last group sees 1536 of 4096 tokens.
inline std::vector<Index> stage_budgets(Index tokens, int groups) {
  if (tokens < 1) fail("stage_budgets::tokens is ", tokens, "; it must be at least 1");
  return stage_budgets(tokens, groups, std::max<Index>(1, (tokens * 3 + 7) / 8));
}

LESSKV_END_NAMESPACE
