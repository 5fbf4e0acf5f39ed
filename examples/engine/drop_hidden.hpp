// SPDX-License-Identifier: MIT
// What a prefill that drops hidden states has to know: Run::prefill().
#pragma once

#include <functional>
#include <lesskv/budget/select_hidden.hpp>
#include <span>
#include <vector>

#include "gguf.hpp"

namespace engine {

// The tokens that went on at a border, as rows of the group before it, ascending.
struct KeptTokens {
  int layer = 0;  // the first one that runs on them
  std::span<const std::int32_t> rows;
  double seconds = 0;  // what choosing them took: attention sums and selection
};

struct DropHidden {
  // Layers of each group, in order. Default: SmolLM2-135M, by UNComp's rule on the entropies of its
  // queries (a new group where exp(H / ln 64), averaged over the heads, falls by more than 1/32).
  std::vector<int> groups = {5, 9, 2, 3, 7, 2, 2};
  // Tokens of each group; empty: linear from all of them to last_share of them.
  std::vector<Index> budgets = {};
  double last_share = 0.375;
  lesskv::HiddenPins pins = {};
  std::function<void(const KeptTokens&)> on_kept = {};

  std::vector<Index> budgets_for(Index tokens) const {
    if (!budgets.empty()) return budgets;
    return lesskv::stage_budgets(tokens, static_cast<Index>(groups.size()), last_share,
                                 std::max<Index>(1, pins.window + pins.sinks));
  }
};

}  // namespace engine
