// SPDX-License-Identifier: MIT
// Judgement: one run of the policies over the books, from scores to the rows that stay. Reads only.
#pragma once

#include <functional>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "../core/select.hpp"
#include "../core/water_fill.hpp"
#include "books.hpp"
#include "plan.hpp"

LESSKV_BEGIN_NAMESPACE

namespace detail {

// What Budgeters measured during a plan: states that take the place of those in the books. Empty
// for a policy whose states stay as they are.
struct Measurements {
  std::vector<AnyStates> states;
};

class Judgement {
 public:
  Judgement(const Books& books, const RowSource& source, const Pricing& price)
      : books_(books),
        source_(source),
        price_(price),
        keep_(books.keep),
        heads_(books.shape.heads()),
        scorer_(books.scorer_index()) {}

  // True if the rows since the last commit came in one large piece (a prompt, a chunk of it) and
  // not step by step.
  static bool prefill(const Books& books) {
    Index batch = 0;
    for (const auto& layer : books.layers)
      batch = std::max(batch, layer.seen() - layer.committed_at);
    return batch >= books.keep.every;
  }

  // Quick answer to "can anything go?", without scores and without an allocation: what a steady
  // step asks.
  bool due() const {
    Index held = 0, fresh = 0;
    bool ready = false;
    if (!has_scorer()) return false;
    const Reach reach = scorer().reach;
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
    measured_.states.resize(books_.policies.size());
    looked_.assign(books_.policies.size(), 0);
    if (has_scorer()) {
      if (scorer().reach.chunk > 0)
        judge_chunks();
      else
        judge_all();
    }
    persist();
    return std::move(plan_);
  }

  // Only what cannot stay in layers [0, layer], whatever the others need.
  Plan run_layer(int layer) {
    layer_ = plan_.layer = layer;
    plan_.heads.resize(uz(heads_));
    measured_.states.resize(books_.policies.size());
    looked_.assign(books_.policies.size(), 0);
    if (keep_.bytes > 0)
      fail(
          "Keep::bytes: compress(layer) cannot know what the layers to come cost; set fraction or "
          "tokens");
    if (keep_.shared == Shared::model)
      fail("Keep::shared: compress(layer) cannot share rows with layers to come");
    int budgeters = 0, cascading = 0;
    for (const AnyPolicy& policy : books_.policies) {
      budgeters += policy.traits().budgeter;
      cascading += policy.traits().cascades;
    }
    if (budgeters > 1 || budgeters != cascading)
      fail(
          "compress(layer): this budget needs all layers at once; ZigZagKV alone, or no Budgeter, "
          "allows it");
    if (has_scorer()) {
      if (scorer().reach.chunk > 0)
        fail("compress(layer): this scorer judges chunk by chunk and needs none; call compress()");
      trim();
    }
    persist();
    return std::move(plan_);
  }

 private:
  bool has_scorer() const { return scorer_ < books_.policies.size(); }
  const AnyPolicy& scoring() const { return books_.policies[scorer_]; }
  const PolicyTraits& scorer() const { return scoring().traits(); }
  int layer_of(Index i) const { return static_cast<int>(i / books_.shape.kv_heads); }
  int head_of(Index i) const { return static_cast<int>(i % books_.shape.kv_heads); }
  Index rows_of(Index i) const { return books_.ledger(i).rows(); }
  static Index sum(const std::vector<Index>& v) {
    return std::accumulate(v.begin(), v.end(), Index{0});
  }

  // What Budgeters are shown: the candidates that are judged now, [first, last) of every head, and
  // their scores, which begin at row 0 of the head or, in a chunk, at its first row. For what is
  // measured once: all candidates there are.
  struct Candidates {
    const std::vector<std::vector<float>>* scores;
    const std::vector<Index>& first;
    const std::vector<Index>& last;
    const std::vector<Index>& all_first;
    const std::vector<Index>& all_last;
    bool chunk = false;
  };

  // ---- all rows each time (reach Window)

  void judge_all() {
    const Index tail = std::max(scorer().reach.ahead, keep_.recent);
    std::vector<Index> first(uz(heads_)), last(uz(heads_)), pins(uz(heads_)), held(uz(heads_));
    Index fresh = 0;
    for (Index i = 0; i < heads_; ++i) {
      const Index n = rows_of(i);
      held[uz(i)] = n;
      first[uz(i)] = scoring().skips(layer_of(i)) ? n : std::min(n, keep_.sinks);
      last[uz(i)] = std::max(first[uz(i)], n - tail);
      pins[uz(i)] = first[uz(i)] + n - last[uz(i)];
      fresh = std::max(fresh, books_.ledger(i).seen - books_.layers[uz(layer_of(i))].judged_at);
    }
    // Quotas count candidates: pins come on top in every head.
    std::vector<Index> cap(uz(heads_));
    for (Index i = 0; i < heads_; ++i) cap[uz(i)] = last[uz(i)] - first[uz(i)];
    Index total = 0;
    if (keep_.fraction > 0) {
      if (fresh < keep_.every) return;
      for (Index i = 0; i < heads_; ++i)
        if (cap[uz(i)] > 0)
          total += static_cast<Index>(keep_.fraction * double(books_.ledger(i).seen - pins[uz(i)]) +
                                      1e-9);
    } else {
      if (over_limit(held)) measure_lasting({nullptr, first, last, first, last});
      total = limit_rows(held, pins);
      if (total >= sum(held)) return;
      total -= sum(pins);
    }
    plan_.judged = true;
    if (total >= sum(cap)) return;

    demand();
    std::vector<std::vector<float>> scores(uz(heads_)), raw(uz(heads_));
    detail::run(books_.executor, heads_, [&](Index i) {
      if (first[uz(i)] >= last[uz(i)]) return;
      if (const auto& book = books_.layers[uz(layer_of(i))]; !book.scores.empty()) {
        scores[uz(i)] = book.scores[uz(head_of(i))];
        raw[uz(i)] = book.raw[uz(head_of(i))];
        return;
      }
      score(i, 0, held[uz(i)], first[uz(i)], last[uz(i)], scores[uz(i)], raw[uz(i)]);
    });
    const Shared shared = sharing();
    merge_shared(shared, scores, raw);
    const std::vector<Index> granted =
        grant(shared, {&scores, first, last, first, last}, cap, pins, total);
    detail::run(books_.executor, heads_, [&](Index i) {
      const Index k = granted[uz(i)];
      HeadPlan& part = plan_.heads[uz(i)];
      if (k >= last[uz(i)] - first[uz(i)]) return;
      part.all = false;
      part.kept.reserve(uz(pins[uz(i)] + k));
      append_range(part.kept, 0, first[uz(i)]);
      select_largest(scores[uz(i)], raw[uz(i)], first[uz(i)], last[uz(i)], k, 0, part.kept);
      append_range(part.kept, last[uz(i)], held[uz(i)]);
    });
  }

  // ---- layer by layer, during the first pass

  void trim() {
    const auto& book = books_.layers[uz(layer_)];
    const Index kv_heads = books_.shape.kv_heads;
    // A first pass, and a prompt.
    if (book.judged_at > 0 || book.seen() - book.committed_at < keep_.every) return;
    const Index tail = std::max(scorer().reach.ahead, keep_.recent);
    const Index rows = book.seen();
    std::vector<Index> first(uz(heads_)), last(uz(heads_)), cap(uz(heads_));
    Index total = keep_.tokens * heads_, all = 0;
    for (Index i = 0; i < heads_; ++i) {
      const bool skipped = scoring().skips(layer_of(i));
      const bool here = layer_of(i) <= layer_;
      const auto range = [&](Index n, Index& from, Index& to) {
        from = skipped ? n : std::min(n, keep_.sinks);
        to = std::max(from, n - tail);
      };
      if (here) range(rows_of(i), first[uz(i)], last[uz(i)]);
      // What could stay if nothing had been trimmed.
      Index from = 0, to = 0;
      const Index seen = here ? books_.ledger(i).seen : rows;
      range(seen, from, to);
      cap[uz(i)] = to - from;
      all += cap[uz(i)];
      if (keep_.tokens > 0)
        total -= seen - cap[uz(i)];
      else if (cap[uz(i)] > 0)
        total += static_cast<Index>(keep_.fraction * double(cap[uz(i)]) + 1e-9);
    }
    if (total < 0 || total >= all) return;

    demand();
    const Index base = layer_ * kv_heads;
    std::vector<std::vector<float>> scores(uz(heads_)), raw(uz(heads_));
    if (book.scores.empty()) {
      detail::run(books_.executor, kv_heads, [&](Index h) {
        const Index i = base + h;
        if (first[uz(i)] < last[uz(i)])
          score(i, 0, rows_of(i), first[uz(i)], last[uz(i)], scores[uz(i)], raw[uz(i)]);
      });
      merge_shared(sharing(), scores, raw);
    }
    measure_all({&scores, first, last, first, last});
    for (Index i = 0; i < base + kv_heads; ++i)
      if (const auto& held = books_.layers[uz(layer_of(i))]; !held.scores.empty()) {
        scores[uz(i)] = held.scores[uz(head_of(i))];
        raw[uz(i)] = held.raw[uz(head_of(i))];
      }
    const std::vector<double> most = most_rows(cap, rows, total);
    for (Index i = 0; i < base + kv_heads; ++i) {
      const Index k = static_cast<Index>(std::ceil(most[uz(i)] * (1 + 1e-9)));
      if (k >= last[uz(i)] - first[uz(i)]) continue;
      HeadPlan& part = plan_.heads[uz(i)];
      part.all = false;
      append_range(part.kept, 0, first[uz(i)]);
      select_largest(scores[uz(i)], raw[uz(i)], first[uz(i)], last[uz(i)], k, 0, part.kept);
      append_range(part.kept, last[uz(i)], rows_of(i));
    }
    if (book.scores.empty()) {
      const auto from = static_cast<std::ptrdiff_t>(base), to = from + kv_heads;
      plan_.scores.assign(std::make_move_iterator(scores.begin() + from),
                          std::make_move_iterator(scores.begin() + to));
      plan_.raw.assign(std::make_move_iterator(raw.begin() + from),
                       std::make_move_iterator(raw.begin() + to));
    }
  }

  // The most rows that a head of the layers that have come can get: what the Budgeter says, or equal
  // shares of what the caps leave.
  std::vector<double> most_rows(const std::vector<Index>& cap, Index rows, Index total) const {
    std::vector<double> out(uz(heads_), 0.0);
    bool told = false;
    for (std::size_t i = 0; i < books_.policies.size(); ++i) {
      const AnyPolicy& policy = books_.policies[i];
      if (!policy.traits().cascades) continue;
      policy.most(books_.shape, layer_ + 1, states_of(i, measured_), cap, rows, double(total), out);
      told = true;
    }
    if (told) return out;
    std::vector<Index> equal(uz(heads_));
    water_fill(std::vector<double>(uz(heads_), 1.0), std::vector<Index>(uz(heads_), 0), cap, total,
               equal);
    // Rounding may fall otherwise when all layers are there.
    for (Index i = 0; i < heads_; ++i) out[uz(i)] = double(equal[uz(i)] + 1);
    return out;
  }

  // ---- chunk by chunk, each row once (reach Chunks)

  void judge_chunks() {
    const Reach reach = scorer().reach;
    const Index ahead = std::max(reach.ahead, keep_.recent);
    std::vector<Index> at(uz(heads_)), start(uz(heads_));
    for (Index i = 0; i < heads_; ++i)
      start[uz(i)] = at[uz(i)] =
          std::min(rows_of(i), std::max(books_.ledger(i).judged, keep_.sinks));
    const auto ready = [&](Index i) {
      return !scoring().skips(layer_of(i)) && rows_of(i) - at[uz(i)] >= reach.chunk + ahead;
    };
    std::vector<Index> all_last(uz(heads_));
    for (Index i = 0; i < heads_; ++i)
      all_last[uz(i)] =
          scoring().skips(layer_of(i)) ? start[uz(i)] : std::max(start[uz(i)], rows_of(i) - ahead);
    bool demanded = false;
    // Rows do not change while chunks are judged, so where storage is lent all chunks of a head are
    // scored at once.
    std::vector<std::vector<float>> ready_scores(uz(heads_));
    std::vector<Index> cap(uz(heads_));
    std::vector<std::vector<float>> scores(uz(heads_)), raw(uz(heads_));
    for (;;) {
      std::fill(cap.begin(), cap.end(), 0);
      std::vector<Index> last = at;
      Index total = 0;
      for (Index i = 0; i < heads_; ++i)
        if (ready(i)) {
          cap[uz(i)] = reach.chunk;
          last[uz(i)] = at[uz(i)] + reach.chunk;
          total += static_cast<Index>(keep_.fraction * double(reach.chunk) + 1e-9);
        }
      if (sum(cap) == 0) break;
      if (!demanded) {
        demand();
        detail::run(books_.executor, heads_, [&](Index i) {
          const Index chunks = (rows_of(i) - at[uz(i)] - ahead) / reach.chunk;
          if (cap[uz(i)] > 0)
            score_chunks(i, at[uz(i)], reach.chunk, chunks, ahead, ready_scores[uz(i)]);
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
          score(i, at[uz(i)], reach.chunk + ahead, 0, reach.chunk, scores[uz(i)], raw[uz(i)]);
        }
      });
      const Shared shared = sharing();
      merge_shared(shared, scores, raw);
      const std::vector<Index> granted =
          grant(shared, {&scores, at, last, start, all_last, true}, cap, {}, total);
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

  // Under a limit the oldest closed rows leave; sinks and open rows are pins.
  void drop_oldest(const std::vector<Index>& start) {
    std::vector<Index> held(uz(heads_)), pins(uz(heads_)), cap(uz(heads_)), first(uz(heads_)),
        last(uz(heads_));
    for (Index i = 0; i < heads_; ++i) {
      HeadPlan& part = plan_.heads[uz(i)];
      const Index closed = part.all ? start[uz(i)] : part.closed;
      held[uz(i)] = part.all ? rows_of(i) : static_cast<Index>(part.kept.size());
      cap[uz(i)] = std::max<Index>(0, closed - keep_.sinks);
      pins[uz(i)] = held[uz(i)] - cap[uz(i)];
      // Seen from the rows before this plan, for a Budgeter that has not measured yet.
      first[uz(i)] = std::min(keep_.sinks, rows_of(i));
      last[uz(i)] = std::max(first[uz(i)], start[uz(i)]);
    }
    if (over_limit(held)) measure_lasting({nullptr, first, last, first, last});
    const Index limit = limit_rows(held, pins);
    if (limit >= sum(held)) return;
    const std::vector<Index> granted =
        grant(keep_.shared, {nullptr, first, last, first, last}, cap, pins, limit - sum(pins));
    for (Index i = 0; i < heads_; ++i) {
      HeadPlan& part = plan_.heads[uz(i)];
      const Index excess = cap[uz(i)] - granted[uz(i)];
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

  bool over_limit(const std::vector<Index>& held) const {
    return keep_.bytes > 0 && price_(held, prefill(books_)) > keep_.bytes;
  }

  // Rows that may stay in all heads together under tokens or bytes; all of them if the limit is not
  // reached.
  Index limit_rows(const std::vector<Index>& held, const std::vector<Index>& floor) const {
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
    if (price(held, whole) <= keep_.bytes) return sum(held);
    // As if the budget was even; grant() cuts further if the real one costs more.
    const std::vector<double> even(uz(heads_), 1.0);
    const auto fits = [&](Index total) {
      std::vector<Index> rows(uz(heads_));
      water_fill(even, floor, held, total, rows);
      return fits_bytes(rows, whole);
    };
    Index low = sum(floor), high = sum(held);
    if (!fits(low)) {
      if (price(floor, true) > keep_.bytes)
        fail("Keep::bytes: impossible budget: rows that cannot go need ", price(floor, true),
             " bytes, the limit is ", keep_.bytes);
      return low;
    }
    while (high - low > 1) {
      const Index mid = low + (high - low) / 2;
      (fits(mid) ? low : high) = mid;
    }
    return low;
  }

  // Bytes held with so many rows, what lasting measurements give back taken off.
  std::size_t price(const std::vector<Index>& rows, bool trimmed) const {
    return price_(rows, trimmed) - saved_;
  }
  // A limit in bytes is turned into rows after what lasts was measured: what it was measured from
  // (moments of queries, say) then goes, and its bytes are there for rows.
  void measure_lasting(const Candidates& candidates) {
    if (keep_.bytes == 0) return;
    measure_all(candidates, true);
    saved_ = 0;
    for (std::size_t p = 0; p < books_.policies.size(); ++p) {
      const std::size_t before = books_.states[p].bytes(), after = measured_.states[p].bytes();
      if (!measured_.states[p].empty() && after < before) saved_ += before - after;
    }
  }

  // Rows that are left after a judgement: room for those of the next `every` steps.
  bool fits_bytes(std::vector<Index> rows, bool whole) const {
    if (!whole)
      for (Index& r : rows) r += keep_.every;
    return price(rows, whole) <= keep_.bytes;
  }

  // ---- scores

  void demand() const {
    const PolicyTraits& traits = scorer();
    for (int layer = 0; layer < books_.shape.layers; ++layer) {
      if (books_.layers[uz(layer)].seen() == 0 || scoring().skips(layer)) continue;
      if (!books_.layers[uz(layer)].scores.empty() || (layer_ >= 0 && layer != layer_)) continue;
      if (traits.window > 0) books_.demand_window(layer);
      if (traits.observes && asks(traits.observe_needs, Need::attention | Need::queries))
        books_.demand_all(layer);
    }
  }

  // Scores of rows [first, last) of the `count` rows from `base` on; `raw` is set when pooling
  // changed them.
  void score(Index i, Index base, Index count, Index first, Index last, std::vector<float>& scores,
             std::vector<float>& raw) const {
    const int layer = layer_of(i), h = head_of(i);
    std::vector<Position> positions;
    Head head = books_.view(scorer_, layer, h, base, count, positions);
    head.first = first;
    head.last = last;
    scores.assign(uz(count), 0.f);
    if (score_stored(head, base, scores)) return smooth(last, scores, raw);
    Floats keys, values;
    show_rows(head, scorer().needs, base, count, keys, values);
    Matrix attention;
    if (const Index w = scorer().window; w > 0) {
      attention = books_.window_attention(layer, h, w, source_);
      point(head.attention, attention.data() + base, attention.rows(), count, attention.cols());
    }
    scoring().score(head, books_.states[scorer_].at(i), scores);
    smooth(last, scores, raw);
  }

  // Scores from storage, if the scorer can and the source lends it.
  bool score_stored(const Head& head, Index base, std::span<float> scores) const {
    thread_local std::vector<BlockRef> blocks;
    Tiles rows;
    if (!scorer().tile_scorer || scorer().window > 0 ||
        !source_.lend(head.layer, head.head, base, head.size(), blocks, rows))
      return false;
    scoring().score_tiles(head, rows, scores);
    return true;
  }
  // All chunks of a head in one pass; leaves `scores` empty where that cannot be.
  void score_chunks(Index i, Index base, Index chunk, Index chunks, Index ahead,
                    std::vector<float>& scores) const {
    if (!scorer().tile_scorer || scorer().pooling.kind != PoolKind::none) return;
    std::vector<Position> positions;
    Head head =
        books_.view(scorer_, layer_of(i), head_of(i), base, chunk * chunks + ahead, positions);
    head.last = chunk * chunks;
    scores.assign(uz(head.size()), 0.f);
    if (!score_stored(head, base, scores)) scores.clear();
  }

  void smooth(Index last, std::vector<float>& scores, std::vector<float>& raw) const {
    const Pooling pooling = scorer().pooling;
    if (pooling.kind == PoolKind::none || pooling.width <= 1) return;
    raw = scores;
    // Over everything scored, pins at the front included, as in the published code.
    pool(std::span<const float>(raw).first(uz(last)), pooling,
         std::span<float>(scores).first(uz(last)));
  }

  Shared sharing() const { return std::max(keep_.shared, scorer().shared); }
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

  // Keys and values of `count` rows from `base` on, if they are asked for.
  void show_rows(Head& head, Need needs, Index base, Index count, Floats& keys,
                 Floats& values) const {
    const Index dim = books_.shape.head_dim, width = books_.shape.value_width();
    if (asks(needs, Need::keys)) keys.reserve(std::max<Index>(1, count * dim));
    if (asks(needs, Need::values)) values.reserve(std::max<Index>(1, count * width));
    if (keys.data() || values.data())
      source_.read(head.layer, head.head, base, count, keys.data(), values.data());
    if (keys.data()) point(head.keys, keys.data(), count, dim, dim);
    if (values.data()) point(head.values, values.data(), count, width, width);
  }

  // ---- budgets

  // How many candidates of every head stay: `total` in all.
  std::vector<Index> grant(Shared shared, const Candidates& candidates,
                           const std::vector<Index>& cap, const std::vector<Index>& pins,
                           Index total) {
    measure_all(candidates);
    for (;;) {
      // Another round needs what was measured as it was.
      const bool once = keep_.bytes == 0 || pins.empty();
      Measurements measured = once ? std::move(measured_) : measured_;
      const std::vector<double> quota = share(candidates, cap, total, measured);
      std::vector<Index> granted = fill(shared, quota, cap, total);
      // A ragged budget may cost more than the even one by which the limit in bytes was turned into
      // rows.
      if (!once && total > 0) {
        std::vector<Index> rows = pins;
        for (Index i = 0; i < heads_; ++i) rows[uz(i)] += granted[uz(i)];
        if (!fits_bytes(std::move(rows), prefill(books_))) {
          total = std::max<Index>(0, total - std::max(heads_, total / 64));
          continue;
        }
      }
      measured_ = std::move(measured);
      return granted;
    }
  }

  // Every Budgeter rewrites the quotas: those that see the whole model first, then in the order
  // they were named.
  std::vector<double> share(const Candidates& candidates, const std::vector<Index>& cap,
                            Index total, Measurements& measured) const {
    // Equal among the heads that have candidates.
    const auto active = heads_ - std::count(cap.begin(), cap.end(), Index{0});
    std::vector<double> quota(uz(heads_), 0.0);
    for (Index i = 0; i < heads_; ++i)
      if (cap[uz(i)] > 0) quota[uz(i)] = double(total) / double(active);
    // The scores of closed rows are gone: all heads give up the same part of what they hold.
    if (!candidates.scores && budgeters_read_scores()) {
      std::copy(cap.begin(), cap.end(), quota.begin());
      return quota;
    }
    for (const bool model_wide : {true, false})
      for (std::size_t i = 0; i < books_.policies.size(); ++i) {
        const AnyPolicy& policy = books_.policies[i];
        if (!policy.traits().budgeter || policy.traits().all_layers != model_wide) continue;
        AnyStates& own = measured.states[i];
        if (policy.traits().changes_states && own.empty()) own = books_.states[i];
        policy.share(books_.shape, own.empty() ? books_.states[i] : own, quota);
        scale_to(quota, double(total));
      }
    for (Index i = 0; i < heads_; ++i)
      if (!std::isfinite(quota[uz(i)]) || quota[uz(i)] < 0)
        fail("quota: a Budgeter gave head ", head_of(i), " of layer ", layer_of(i),
             " a quota that is negative or not finite");
    return quota;
  }

  bool budgeters_read_scores() const {
    for (const AnyPolicy& policy : books_.policies)
      if (asks(policy.traits().measure_again_needs, Need::scores)) return true;
    return false;
  }

  // The states of a policy: those of this plan, if there are any.
  const AnyStates& states_of(std::size_t policy, const Measurements& measured) const {
    const AnyStates& own = measured.states[policy];
    return own.empty() ? books_.states[policy] : own;
  }

  // Budgeters look at the heads that they have to look at; all of them, or those that measure once.
  void measure_all(const Candidates& candidates, bool lasting_only = false) {
    if (!candidates.scores && !lasting_only && budgeters_read_scores()) return;
    for (std::size_t p = 0; p < books_.policies.size(); ++p) {
      const PolicyTraits& traits = books_.policies[p].traits();
      if (!traits.measurer) continue;
      const auto fresh = [&](Index i) {
        return rows_of(i) > 0 && !looked_[p] && (layer_ < 0 || layer_of(i) == layer_) &&
               !books_.layers[uz(layer_of(i))].measured[p];
      };
      const bool again = traits.measures_again && !lasting_only;
      bool any = again;
      for (Index i = 0; i < heads_ && traits.measures_once; ++i) any = any || fresh(i);
      if (!any) continue;
      AnyStates& states = measured_.states[p];
      if (states.empty()) states = books_.states[p];
      detail::run(books_.executor, heads_, [&](Index i) {
        if (traits.measures_once && fresh(i)) measure(p, i, false, candidates, states.at(i));
        if (again) measure(p, i, true, candidates, states.at(i));
      });
      looked_[p] = 1;
    }
  }

  void measure(std::size_t p, Index i, bool again, const Candidates& candidates,
               void* state) const {
    const AnyPolicy& policy = books_.policies[p];
    const PolicyTraits& traits = policy.traits();
    const int layer = layer_of(i), h = head_of(i);
    std::vector<Position> positions;
    Head head = books_.view(p, layer, h, 0, rows_of(i), positions);
    head.first = (again ? candidates.first : candidates.all_first)[uz(i)];
    head.last = (again ? candidates.last : candidates.all_last)[uz(i)];
    const Need needs = traits.measure_needs(again);
    if (asks(needs, Need::scores) && head.first < head.last)
      head.scores = std::span<const float>((*candidates.scores)[uz(i)])
                        .subspan(candidates.chunk ? 0 : uz(head.first), uz(head.last - head.first));
    if (traits.observes && rows_of(i) > 0 &&
        asks(traits.observe_needs, Need::attention | Need::queries))
      books_.demand_all(layer);
    Floats keys, values;
    show_rows(head, needs, 0, rows_of(i), keys, values);
    Matrix attention, queries;
    std::vector<Position> at;
    if (const Index w = traits.window; w > 0 && rows_of(i) > 0) {
      const bool wants_queries = asks(needs, Need::queries);
      if (wants_queries || asks(needs, Need::attention)) books_.demand_window(layer, wants_queries);
      if (asks(needs, Need::attention)) {
        attention = books_.window_attention(layer, h, w, source_);
        point(head.attention, attention.data(), attention.rows(), attention.cols(),
              attention.cols());
      }
      if (wants_queries) {
        const Matrix all = books_.window_queries(layer, w, at);
        const Index group = books_.shape.group(), dim = books_.shape.head_dim;
        queries.resize(all.rows() * group, dim);
        for (Index t = 0; t < all.rows(); ++t)
          std::copy_n(all.row(t).data() + h * group * dim, group * dim,
                      queries.row(t * group).data());
        point(head.queries, queries.data(), queries.rows(), dim, dim);
        head.query_positions = at;
      }
    }
    policy.measure(head, state);
  }

  // What has to outlive this plan. A measurement that is made anew each time does not.
  void persist() {
    bool any = false;
    for (std::size_t i = 0; i < books_.policies.size(); ++i) {
      const PolicyTraits& traits = books_.policies[i].traits();
      AnyStates& states = measured_.states[i];
      if (traits.budgeter && !traits.changes_states && traits.measures_again) states.clear();
      any = any || !states.empty();
    }
    if (any) plan_.measured = std::make_shared<Measurements>(std::move(measured_));
  }

  // Rounds quotas to rows, exact in total. Heads that share a set get the same number.
  std::vector<Index> fill(Shared shared, const std::vector<double>& quota,
                          const std::vector<Index>& cap, Index total) const {
    const Index g = sharers(shared);
    const std::size_t sets = uz(heads_ / g);
    std::vector<double> weight(sets, 0.0);
    std::vector<Index> low(sets, 0), high(sets), rows(sets), out(uz(heads_));
    for (std::size_t s = 0; s < sets; ++s) {
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

  const Books& books_;
  const RowSource& source_;
  const Pricing& price_;
  Keep keep_;
  Index heads_;
  std::size_t scorer_;
  int layer_ = -1;  // judged alone
  Plan plan_;
  std::size_t saved_ = 0;     // bytes that lasting measurements give back
  Measurements measured_;     // states that this plan measured or changed
  std::vector<char> looked_;  // by policy: it measured during this plan
};

}  // namespace detail
LESSKV_END_NAMESPACE
