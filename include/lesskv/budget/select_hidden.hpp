// SPDX-License-Identifier: MIT
// select_hidden: which tokens go on into the next group of layers. UNComp's other half: prefill
// gets shorter because later layers run on fewer tokens. The library holds no hidden states; the
// engine gathers its own by the list it gets here, and keeps the positions as they are.
//
// Paper:    Xiong et al., "UNComp", arXiv 2410.03090: hidden states leave at the borders of layer
//           groups. From the authors' code (menik1126/UNComp b3e9f7b, llama_model.py); the paper's
//           text agrees as far as reviews and notes of it report, it was not read itself.
// Formula:  score of token j = sum over the query heads and the last `window` queries of A[q, j],
//           the softmaxed attention of the layer before the border; the N_s largest stay.
//           N_s = N_last + floor((n - N_last) (C - 1 - s) / (C - 1)), s = 0 ... C - 1.
// Needs:    attention of the last queries in the last layer of a group: KVCache::attention(), or
//           the engine's own.
// Cost:     window x tokens logits per query head and border, a selection of tokens scores.
// Defaults: window 8, no sinks, N_last / n = 0.375: the code's, 1536 tokens of 4096.
// Differs:  - The last `window` tokens always stay (the code may drop the very last one, whose
//             logits are what the prefill is for). Equal scores: the later token.
//           - N_last is a share of the prompt; the code's 1536 tokens leave shorter prompts whole.
//             The first group has all tokens; the code's rounding drops up to C - 1 of them there.
//           - No token of a dropped hidden state has keys in later layers. A per-head budget above
//             N_last has no rows to spend there: `least` raises N_last.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "../core/head.hpp"
#include "../core/select.hpp"
#include "../core/shape.hpp"

LESSKV_BEGIN_NAMESPACE

// Tokens of a prompt that always stay.
struct HiddenPins {
  Index window = 8;  // the last ones: those whose attention decides
  Index sinks = 0;   // the first ones
};

namespace detail {
inline void check(const HiddenPins& pins) {
  if (pins.window < 0) fail("HiddenPins::window is negative");
  if (pins.sinks < 0) fail("HiddenPins::sinks is negative");
}
}  // namespace detail

// Tokens of every layer group: linear from all of them down to `last_share`, but not below `least`.
inline std::vector<Index> stage_budgets(Index tokens, Index stages, double last_share = 0.375,
                                        Index least = HiddenPins{}.window) {
  if (tokens < 1) fail("stage_budgets::tokens is ", tokens, "; it must be at least 1");
  if (stages < 1) fail("stage_budgets::stages is ", stages, "; it must be at least 1");
  if (!(last_share > 0 && last_share <= 1))
    fail("stage_budgets::last_share must lie above 0 and at most at 1");
  if (least < 1) fail("stage_budgets::least is ", least, "; it must be at least 1");
  const Index share = static_cast<Index>(std::llround(last_share * static_cast<double>(tokens)));
  const Index last = std::min(tokens, std::max(share, least));
  std::vector<Index> out(detail::uz(stages), tokens);
  for (Index s = 1; s < stages; ++s)
    out[detail::uz(s)] = last + (tokens - last) * (stages - 1 - s) / (stages - 1);
  return out;
}

// Fails unless `groups` (layers of every group) and `budgets` (tokens of every group) fit a model, a
// prompt and the pins.
inline void check_stages(std::span<const int> groups, std::span<const Index> budgets, int layers,
                         Index tokens, const HiddenPins& pins = {}) {
  detail::check(pins);
  for (const int size : groups)
    if (size < 1) fail("groups: a group of ", size, " layers; each needs at least 1");
  const Index sum = std::accumulate(groups.begin(), groups.end(), Index{0});
  if (sum != layers) fail("groups: they have ", sum, " layers, the model has ", layers);
  if (budgets.size() != groups.size())
    fail("budgets: ", budgets.size(), " of them for ", groups.size(), " groups");
  for (std::size_t s = 0; s < budgets.size(); ++s) {
    if (budgets[s] < 1) fail("budgets: group ", s, " has ", budgets[s], " tokens; at least 1");
    if (budgets[s] > tokens)
      fail("budgets: group ", s, " has ", budgets[s], " tokens, the prompt has ", tokens);
    if (s > 0 && budgets[s] > budgets[s - 1])
      fail("budgets: group ", s, " has ", budgets[s],
           " tokens, more than the one before; a token that left cannot come back");
  }
  if (budgets.front() != tokens)
    fail("budgets: the first group has ", budgets.front(), " of ", tokens,
         " tokens; nothing can leave before a layer has attended");
  const Index pinned = std::min(tokens, pins.window + pins.sinks);
  if (budgets.back() < pinned)
    fail("budgets: the last group has ", budgets.back(), " tokens, but ", pinned,
         " always stay (window, sinks)");
}

// scores[j] += what column j of the attention of one KV head sums to: [w * group, tokens], the
// last queries over the tokens of this stage.
inline void add_column_sums(const Rows& attention, std::span<float> scores) {
  if (attention.cols() != static_cast<Index>(scores.size()))
    fail("attention: ", attention.cols(), " columns for ", scores.size(), " scores");
  for (Index i = 0; i < attention.rows(); ++i) {
    const float* row = attention.data() + i * attention.outerStride();
    for (std::size_t j = 0; j < scores.size(); ++j) scores[j] += row[j];
  }
}

// The tokens that stay, ascending: `keep` of those that this stage has, one score each.
inline std::vector<std::int32_t> select_hidden(std::span<const float> scores, Index keep,
                                               const HiddenPins& pins = {}) {
  const Index n = static_cast<Index>(scores.size());
  if (keep < 1 || keep > n)
    fail("select_hidden::keep is ", keep, "; it must lie between 1 and ", n, ", the tokens there");
  detail::check(pins);
  for (const float score : scores)
    if (!std::isfinite(score)) fail("select_hidden::scores: one is NaN or infinite");
  const Index first = std::min(pins.sinks, n), last = std::max(first, n - pins.window);
  const Index pinned = first + n - last;
  if (keep < pinned)
    fail("select_hidden::keep is ", keep, ", but ", pinned, " tokens always stay (window, sinks)");
  std::vector<std::int32_t> kept;
  kept.reserve(detail::uz(keep));
  for (Index j = 0; j < first; ++j) kept.push_back(static_cast<std::int32_t>(j));
  detail::select_largest(scores, {}, first, last, keep - pinned, 0, kept);
  for (Index j = last; j < n; ++j) kept.push_back(static_cast<std::int32_t>(j));
  return kept;
}

// The same from the attention of every KV head of the layer before.
inline std::vector<std::int32_t> select_hidden(std::span<const Matrix> attention, Index keep,
                                               const HiddenPins& pins = {}) {
  if (attention.empty()) fail("attention: no head");
  std::vector<float> scores(detail::uz(attention[0].cols()), 0.f);
  for (const Matrix& head : attention) add_column_sums(make_rows(head), scores);
  return select_hidden(scores, keep, pins);
}

LESSKV_END_NAMESPACE
