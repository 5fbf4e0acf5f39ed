// SPDX-License-Identifier: MIT
// Judgement: one run of the policies over the books, from scores to the rows that stay. Reads only.
#pragma once

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "../core/select.hpp"
#include "../core/water_fill.hpp"
#include "books.hpp"
#include "plan.hpp"

LESSKV_BEGIN_NAMESPACE

// Bytes held if head i had rows[i] rows; `trimmed`: right after a compression that gives back every
// spare row.
using Pricing = std::function<std::size_t(std::span<const Index> rows, bool trimmed)>;

namespace detail {

template <class... Ps>
class Judgement {
 public:
  Judgement(const Books<Ps...>& books, const RowSource& source, const Pricing& price)
      : books_(books),
        source_(source),
        price_(price),
        keep_(books.keep()),
        heads_(books.shape.heads()) {}

  // True if the rows since the last commit came in one large piece (a prompt, a chunk of it) and
  // not step by step.
  static bool prefill(const Books<Ps...>& books) {
    Index batch = 0;
    for (const auto& layer : books.layers)
      batch = std::max(batch, layer.seen() - layer.committed_at);
    return batch >= books.keep().every;
  }

  // Quick answer to "can anything go?", without scores and without an allocation: what a steady
  // step asks.
  bool due() const {
    Index held = 0, fresh = 0;
    bool ready = false;
    Reach reach;
    books_.each([&](auto, const auto& policy) {
      if constexpr (Scorer<std::decay_t<decltype(policy)>>) reach = reach_of(policy);
    });
    for (Index i = 0; i < heads_; ++i) {
      const auto& head = books_.ledger(i);
      held += head.rows();
      fresh = std::max(fresh, head.seen - books_.layers[uz(layer_of(i))].judged_at);
      const Index closed = std::max(head.judged, keep_.sinks);
      ready = ready || head.rows() - closed >= reach.chunk + std::max(reach.ahead, keep_.recent);
    }
    if (reach.chunk > 0 ? ready : keep_.fraction > 0 && fresh >= keep_.every) return true;
    if (keep_.tokens > 0) return held > keep_.tokens * heads_;
    if (keep_.bytes > 0) {
      thread_local std::vector<Index> rows;
      rows.resize(uz(heads_));
      for (Index i = 0; i < heads_; ++i) rows[uz(i)] = rows_of(i);
      return price_(rows, prefill(books_)) > keep_.bytes;
    }
    return false;
  }

  Plan run() {
    plan_.heads.resize(uz(heads_));
    books_.each([&](auto index, const auto& policy) {
      using P = std::decay_t<decltype(policy)>;
      if constexpr (Scorer<P>) {
        if (reach_of(policy).chunk > 0)
          judge_chunks<decltype(index)::value>(policy);
        else
          judge_all<decltype(index)::value>(policy);
      }
    });
    return std::move(plan_);
  }

 private:
  int layer_of(Index i) const { return static_cast<int>(i / books_.shape.kv_heads); }
  int head_of(Index i) const { return static_cast<int>(i % books_.shape.kv_heads); }
  Index rows_of(Index i) const { return books_.ledger(i).rows(); }
  static Index sum(const std::vector<Index>& v) {
    return std::accumulate(v.begin(), v.end(), Index{0});
  }

  // ---- all rows each time (reach Window)

  template <std::size_t I, class P>
  void judge_all(const P& scorer) {
    const Index tail = std::max(reach_of(scorer).ahead, keep_.recent);
    std::vector<Index> first(uz(heads_)), last(uz(heads_)), pins(uz(heads_)), held(uz(heads_));
    Index fresh = 0;
    for (Index i = 0; i < heads_; ++i) {
      const Index n = rows_of(i);
      held[uz(i)] = n;
      first[uz(i)] = skips_layer(scorer, layer_of(i)) ? n : std::min(n, keep_.sinks);
      last[uz(i)] = std::max(first[uz(i)], n - tail);
      pins[uz(i)] = first[uz(i)] + n - last[uz(i)];
      fresh = std::max(fresh, books_.ledger(i).seen - books_.layers[uz(layer_of(i))].judged_at);
    }
    // Quotas count candidates under `fraction` and all rows under `tokens` and `bytes`; pins are
    // floors, never scores.
    std::vector<Index> floor(uz(heads_), 0), cap(uz(heads_));
    Index total = 0;
    if (keep_.fraction > 0) {
      if (fresh < keep_.every) return;
      for (Index i = 0; i < heads_; ++i) {
        cap[uz(i)] = last[uz(i)] - first[uz(i)];
        if (cap[uz(i)] > 0)
          total += static_cast<Index>(keep_.fraction * double(books_.ledger(i).seen - pins[uz(i)]) +
                                      1e-9);
      }
    } else {
      floor = pins;
      cap = held;
      const Index limit = limit_rows(held, floor, std::vector<double>(uz(heads_), 1.0));
      if (limit >= sum(held)) return;
      total = limit;
    }
    plan_.judged = true;
    if (total >= sum(cap)) return;

    demand<P>(scorer);
    std::vector<std::vector<float>> scores(uz(heads_)), raw(uz(heads_));
    detail::run(books_.executor, heads_, [&](Index i) {
      if (first[uz(i)] < last[uz(i)])
        score<I>(scorer, i, 0, held[uz(i)], first[uz(i)], last[uz(i)], scores[uz(i)], raw[uz(i)]);
    });
    const Shared shared = sharing(scorer);
    merge_shared(shared, scores, raw);
    std::vector<double> quota(uz(heads_), double(total) / double(heads_));
    budget(scores, quota);
    std::vector<Index> granted = fill(shared, quota, floor, cap, total);
    detail::run(books_.executor, heads_, [&](Index i) {
      const Index k = granted[uz(i)] - floor[uz(i)];
      HeadPlan& part = plan_.heads[uz(i)];
      if (k >= last[uz(i)] - first[uz(i)]) return;
      part.all = false;
      part.kept.reserve(uz(pins[uz(i)] + k));
      append_range(part.kept, 0, first[uz(i)]);
      select_largest(scores[uz(i)], raw[uz(i)], first[uz(i)], last[uz(i)], k, 0, part.kept);
      append_range(part.kept, last[uz(i)], held[uz(i)]);
    });
  }

  // ---- chunk by chunk, each row once (reach Chunks)

  template <std::size_t I, class P>
  void judge_chunks(const P& scorer) {
    const Reach reach = reach_of(scorer);
    const Index ahead = std::max(reach.ahead, keep_.recent);
    std::vector<Index> at(uz(heads_)), start(uz(heads_));
    for (Index i = 0; i < heads_; ++i)
      start[uz(i)] = at[uz(i)] =
          std::min(rows_of(i), std::max(books_.ledger(i).judged, keep_.sinks));
    const auto ready = [&](Index i) {
      return !skips_layer(scorer, layer_of(i)) && rows_of(i) - at[uz(i)] >= reach.chunk + ahead;
    };
    bool demanded = false;
    // Rows do not change while chunks are judged, so where storage is lent all chunks of a head are
    // scored at once.
    std::vector<std::vector<float>> ready_scores(uz(heads_));
    std::vector<Index> cap(uz(heads_)), floor(uz(heads_), 0);
    std::vector<std::vector<float>> scores(uz(heads_)), raw(uz(heads_));
    std::vector<double> quota(uz(heads_));
    for (;;) {
      std::fill(cap.begin(), cap.end(), 0);
      Index total = 0;
      for (Index i = 0; i < heads_; ++i)
        if (ready(i)) {
          cap[uz(i)] = reach.chunk;
          total += static_cast<Index>(keep_.fraction * double(reach.chunk) + 1e-9);
        }
      if (sum(cap) == 0) break;
      if (!demanded) {
        demand<P>(scorer);
        detail::run(books_.executor, heads_, [&](Index i) {
          const Index chunks = (rows_of(i) - at[uz(i)] - ahead) / reach.chunk;
          if (cap[uz(i)] > 0)
            score_chunks<I>(scorer, i, at[uz(i)], reach.chunk, chunks, ahead, ready_scores[uz(i)]);
        });
      }
      demanded = true;
      detail::run(books_.executor, heads_, [&](Index i) {
        const std::vector<float>& known = ready_scores[uz(i)];
        if (cap[uz(i)] == 0) {
          scores[uz(i)].clear();
        } else if (!known.empty()) {
          const auto first = known.begin() + (at[uz(i)] - start[uz(i)]);
          scores[uz(i)].assign(first, first + reach.chunk);
          scores[uz(i)].resize(uz(reach.chunk + ahead), 0.f);
        } else {
          score<I>(scorer, i, at[uz(i)], reach.chunk + ahead, 0, reach.chunk, scores[uz(i)],
                   raw[uz(i)]);
        }
      });
      const Shared shared = sharing(scorer);
      merge_shared(shared, scores, raw);
      std::fill(quota.begin(), quota.end(), double(total) / double(heads_));
      budget(scores, quota);
      const std::vector<Index> granted = fill(shared, quota, floor, cap, total);
      for (Index i = 0; i < heads_; ++i) {
        if (cap[uz(i)] == 0) continue;
        HeadPlan& part = plan_.heads[uz(i)];
        if (part.all) {
          part.all = false;
          append_range(part.kept, 0, start[uz(i)]);
        }
        select_largest(scores[uz(i)], raw[uz(i)], 0, reach.chunk, granted[uz(i)], at[uz(i)],
                       part.kept);
        at[uz(i)] += reach.chunk;
      }
      plan_.judged = true;
    }
    for (Index i = 0; i < heads_; ++i) {
      HeadPlan& part = plan_.heads[uz(i)];
      part.closed = part.all ? books_.ledger(i).judged : static_cast<Index>(part.kept.size());
      if (!part.all) append_range(part.kept, at[uz(i)], rows_of(i));
    }
    if (keep_.tokens > 0 || keep_.bytes > 0) drop_oldest(start);
  }

  // Under a limit the oldest closed rows leave; sinks and open rows are floors.
  void drop_oldest(const std::vector<Index>& start) {
    std::vector<Index> held(uz(heads_)), floor(uz(heads_));
    for (Index i = 0; i < heads_; ++i) {
      HeadPlan& part = plan_.heads[uz(i)];
      const Index closed = part.all ? start[uz(i)] : part.closed;
      held[uz(i)] = part.all ? rows_of(i) : static_cast<Index>(part.kept.size());
      floor[uz(i)] = held[uz(i)] - std::max<Index>(0, closed - keep_.sinks);
    }
    const std::vector<double> even(uz(heads_), 1.0);
    const Index total = limit_rows(held, floor, even);
    if (total >= sum(held)) return;
    std::vector<double> quota(uz(heads_), double(total) / double(heads_));
    budget({}, quota);
    const std::vector<Index> granted = fill(keep_.shared, quota, floor, held, total);
    for (Index i = 0; i < heads_; ++i) {
      HeadPlan& part = plan_.heads[uz(i)];
      const Index excess = held[uz(i)] - granted[uz(i)];
      if (excess <= 0) continue;
      if (part.all) {
        part.all = false;
        part.closed = start[uz(i)];
        append_range(part.kept, 0, rows_of(i));
      }
      const auto oldest = part.kept.begin() + std::min<Index>(keep_.sinks, part.closed);
      part.kept.erase(oldest, oldest + excess);
      part.closed -= excess;
    }
    plan_.judged = true;
  }

  // ---- limits

  // Rows that may stay in all heads together under tokens or bytes; all of them if the limit is not
  // reached.
  Index limit_rows(const std::vector<Index>& held, const std::vector<Index>& floor,
                   const std::vector<double>& weight) const {
    const bool whole = prefill(books_);
    if (keep_.tokens > 0) {
      const Index limit = keep_.tokens * heads_;
      if (sum(held) <= limit) return sum(held);
      if (sum(floor) > limit)
        fail("Keep::tokens: impossible budget: rows that cannot go are ", sum(floor),
             ", the limit is ", limit);
      // Cut lower, so that the next judgement is `every` tokens away; but never by more than a
      // quarter of a small budget.
      const Index slack = std::min(keep_.every - 1, keep_.tokens / 4);
      return whole ? limit : std::max(sum(floor), limit - slack * heads_);
    }
    if (price_(held, whole) <= keep_.bytes) return sum(held);
    const auto fits = [&](Index total) {
      std::vector<Index> rows(uz(heads_));
      water_fill(weight, floor, held, total, rows);
      if (!whole)
        for (Index& r : rows) r += keep_.every;
      return price_(rows, whole) <= keep_.bytes;
    };
    Index low = sum(floor), high = sum(held);
    if (!fits(low)) {
      if (price_(floor, true) > keep_.bytes)
        fail("Keep::bytes: impossible budget: rows that cannot go need ", price_(floor, true),
             " bytes, the limit is ", keep_.bytes);
      return low;
    }
    while (high - low > 1) {
      const Index mid = low + (high - low) / 2;
      (fits(mid) ? low : high) = mid;
    }
    return low;
  }

  // ---- scores

  template <class P>
  void demand(const P& policy) const {
    for (int layer = 0; layer < books_.shape.layers; ++layer) {
      if (books_.layers[uz(layer)].seen() == 0 || skips_layer(policy, layer)) continue;
      if (window_of(policy) > 0) books_.demand_window(layer);
      if (observes(policy) &&
          (asks(needs_of(policy), Need::attention) || asks(needs_of(policy), Need::queries)))
        books_.demand_all(layer);
    }
  }

  // Scores of rows [first, last) of the `count` rows from `base` on; `raw` is set when pooling
  // changed them.
  template <std::size_t I, class P>
  void score(const P& scorer, Index i, Index base, Index count, Index first, Index last,
             std::vector<float>& scores, std::vector<float>& raw) const {
    const int layer = layer_of(i), h = head_of(i);
    std::vector<Position> positions;
    Head head = books_.template view<I>(layer, h, base, count, positions);
    head.first = first;
    head.last = last;
    scores.assign(uz(count), 0.f);
    if (score_stored(scorer, head, base, scores)) return smooth(scorer, last, scores, raw);
    const Need needs = needs_of(scorer);
    Floats keys, values;
    if (asks(needs, Need::keys)) keys.reserve(std::max<Index>(1, count * books_.shape.head_dim));
    if (asks(needs, Need::values))
      values.reserve(std::max<Index>(1, count * books_.shape.value_width()));
    if (keys.data() || values.data())
      source_.read(layer, h, base, count, keys.data(), values.data());
    if (keys.data())
      point(head.keys, keys.data(), count, books_.shape.head_dim, books_.shape.head_dim);
    if (values.data())
      point(head.values, values.data(), count, books_.shape.value_width(),
            books_.shape.value_width());
    Matrix attention;
    if (const Index w = window_of(scorer); w > 0) {
      attention = books_.window_attention(layer, h, w, source_);
      point(head.attention, attention.data() + base, attention.rows(), count, attention.cols());
    }
    if constexpr (requires { scorer.score(head, std::span<float>(scores)); })
      scorer.score(head, std::span<float>(scores));
    else
      scorer.score(head, std::get<I>(books_.ledger(i).states), std::span<float>(scores));
    smooth(scorer, last, scores, raw);
  }

  // Scores from storage, if the scorer can and the source lends it.
  template <class P>
  bool score_stored([[maybe_unused]] const P& scorer, [[maybe_unused]] const Head& head,
                    [[maybe_unused]] Index base, [[maybe_unused]] std::span<float> scores) const {
    if constexpr (TileScorer<P>) {
      thread_local std::vector<BlockRef> blocks;
      Tiles rows;
      if (!scores_tiles(scorer) || window_of(scorer) > 0 ||
          !source_.lend(head.layer, head.head, base, head.size(), blocks, rows))
        return false;
      scorer.score_tiles(head, rows, scores);
      return true;
    } else {
      return false;
    }
  }
  // All chunks of a head in one pass; leaves `scores` empty where that cannot be.
  template <std::size_t I, class P>
  void score_chunks(const P& scorer, Index i, Index base, Index chunk, Index chunks, Index ahead,
                    std::vector<float>& scores) const {
    if (!scores_tiles(scorer) || pooling_of(scorer).kind != PoolKind::none) return;
    std::vector<Position> positions;
    Head head =
        books_.template view<I>(layer_of(i), head_of(i), base, chunk * chunks + ahead, positions);
    head.last = chunk * chunks;
    scores.assign(uz(head.size()), 0.f);
    if (!score_stored(scorer, head, base, scores)) scores.clear();
  }

  template <class P>
  void smooth(const P& scorer, Index last, std::vector<float>& scores,
              std::vector<float>& raw) const {
    if (const Pooling pooling = pooling_of(scorer);
        pooling.kind != PoolKind::none && pooling.width > 1) {
      raw = scores;
      // Over everything scored, pins at the front included, as in the published code.
      pool(std::span<const float>(raw).first(uz(last)), pooling,
           std::span<float>(scores).first(uz(last)));
    }
  }

  template <class P>
  Shared sharing(const P& scorer) const {
    return std::max(keep_.shared, shared_of(scorer));
  }
  Index sharers(Shared shared) const {
    return shared == Shared::head ? 1 : shared == Shared::layer ? books_.shape.kv_heads : heads_;
  }

  // The mean score decides for all heads that must keep the same rows.
  void merge_shared(Shared shared, std::vector<std::vector<float>>& scores,
                    std::vector<std::vector<float>>& raw) const {
    const Index g = sharers(shared);
    if (g == 1) return;
    for (Index b = 0; b < heads_; b += g)
      for (auto* of : {&scores, &raw}) {
        std::vector<double> mean((*of)[uz(b)].size(), 0.0);
        Index members = 0;
        for (Index i = b; i < b + g; ++i) {
          const auto& one = (*of)[uz(i)];
          if (one.empty()) continue;
          if (one.size() != (*of)[uz(b)].size() ||
              books_.ledger(i).positions != books_.ledger(b).positions)
            fail("Keep::shared: heads that must share their rows hold different ones");
          for (std::size_t r = 0; r < one.size(); ++r) mean[r] += double{one[r]};
          ++members;
        }
        if (members == 0) continue;
        for (Index i = b; i < b + g; ++i)
          for (std::size_t r = 0; r < (*of)[uz(i)].size(); ++r)
            (*of)[uz(i)][r] = static_cast<float>(mean[r] / double(members));
      }
  }

  // ---- budgets

  // Every Budgeter rewrites the quotas: those that see the whole model first, then in the order
  // they were named.
  void budget(const std::vector<std::vector<float>>& scores, std::vector<double>& quota) const {
    for (const bool model_wide : {true, false})
      books_.each([&](auto index, const auto& policy) {
        using P = std::decay_t<decltype(policy)>;
        if constexpr (Budgeter<P>) {
          if (model_wide != requires { P::all_layers; }) return;
          std::vector<state_of<P>> measured;
          measured.reserve(uz(heads_));
          for (Index i = 0; i < heads_; ++i)
            measured.push_back(std::get<decltype(index)::value>(books_.ledger(i).states));
          if constexpr (Measurer<P>)
            detail::run(books_.executor, heads_, [&](Index i) {
              measure<decltype(index)::value>(policy, i, scores, measured[uz(i)]);
            });
          policy.share(books_.shape, std::span<const state_of<P>>(measured),
                       std::span<double>(quota));
        }
      });
    for (Index i = 0; i < heads_; ++i)
      if (!std::isfinite(quota[uz(i)]) || quota[uz(i)] < 0)
        fail("quota: a Budgeter gave head ", head_of(i), " of layer ", layer_of(i),
             " a quota that is negative or not finite");
  }

  template <std::size_t I, class P>
  void measure(const P& policy, Index i, const std::vector<std::vector<float>>& scores,
               state_of<P>& state) const {
    std::vector<Position> positions;
    Head head = books_.template view<I>(layer_of(i), head_of(i), 0, rows_of(i), positions);
    if (!scores.empty()) head.scores = scores[uz(i)];
    Matrix attention;
    if (const Index w = window_of(policy); w > 0) {
      books_.demand_window(layer_of(i));
      attention = books_.window_attention(layer_of(i), head_of(i), w, source_);
      point(head.attention, attention.data(), attention.rows(), attention.cols(), attention.cols());
    }
    policy.measure(head, state);
  }

  // Rounds quotas to rows, exact in total. Heads that share a set get the same number.
  std::vector<Index> fill(Shared shared, const std::vector<double>& quota,
                          const std::vector<Index>& floor, const std::vector<Index>& cap,
                          Index total) const {
    const Index g = sharers(shared);
    std::vector<Index> out(uz(heads_));
    if (g == 1) {
      water_fill(quota, floor, cap, total, out);
      return out;
    }
    const std::size_t sets = uz(heads_ / g);
    std::vector<double> weight(sets, 0.0);
    std::vector<Index> low(sets), high(sets), rows(sets);
    for (std::size_t s = 0; s < sets; ++s) {
      low[s] = floor[s * uz(g)];
      high[s] = cap[s * uz(g)];
      for (Index k = 0; k < g; ++k) weight[s] += quota[s * uz(g) + uz(k)] / double(g);
    }
    water_fill(weight, low, high, total / g, rows);
    for (Index i = 0; i < heads_; ++i) out[uz(i)] = rows[uz(i / g)];
    return out;
  }

  static void append_range(std::vector<std::int32_t>& kept, Index first, Index last) {
    for (Index r = first; r < last; ++r) kept.push_back(static_cast<std::int32_t>(r));
  }

  const Books<Ps...>& books_;
  const RowSource& source_;
  const Pricing& price_;
  Keep keep_;
  Index heads_;
  Plan plan_;
};

}  // namespace detail
LESSKV_END_NAMESPACE
