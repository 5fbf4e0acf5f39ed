// SPDX-License-Identifier: MIT
// Judgement: one run of the policies over the books, from scores to the rows that stay. Reads only.
#pragma once

#include <functional>
#include <iterator>
#include <limits>
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
  Judgement(const Books& books, const RowSource& source, const Pricing& price);

  // True if the rows since the last commit came in one large piece (a prompt, a chunk of it) and
  // not step by step.
  static bool prefill(const Books& books);

  // Quick answer to "can anything go?", without scores and without an allocation: what a steady
  // step asks.
  bool due() const;

  Plan run();

  // Only what cannot stay in layers [0, layer], whatever the others need.
  Plan run_layer(int layer);

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

  void judge_all();

  // ---- layer by layer, during the first pass

  void trim();

  // The most rows that a head of the layers that have come can get: what the Budgeter says, or equal
  // shares of what the caps leave.
  std::vector<double> most_rows(const std::vector<Index>& cap, Index rows, Index total) const;

  // ---- chunk by chunk, each row once (reach Chunks)

  void judge_chunks();

  // Under a limit the oldest closed rows leave; sinks and open rows are pins.
  void drop_oldest(const std::vector<Index>& start);

  // ---- limits

  // Rows cost too much in the long run, or what is planned does not leave room for the next step.
  bool over_limit(const std::vector<Index>& held) const {
    if (by_ratio()) return price(held, true) > keep_.bytes;
    return keep_.bytes > 0 && (price(held) > keep_.bytes || most(1) > keep_.bytes);
  }

  // Keep::compression says how much: keep_.bytes is then what may be held after a compression that
  // encodes all it can.
  bool by_ratio() const { return keep_.compression > 0; }
  std::size_t bytes_of_ratio(const std::vector<Index>& seen) const;
  // The same as a share of `some` rows of each head, beside rows that stay.
  double fraction_of_ratio(const std::vector<Index>& stay, const std::vector<Index>& some) const;

  // Rows that may stay in all heads together under tokens or bytes; all of them if the limit is not
  // reached.
  Index limit_rows(const std::vector<Index>& held, const std::vector<Index>& floor) const;

  // Bytes held with so many rows, and those of the plan so far until `steps` more have come; what
  // lasting measurements give back taken off.
  std::size_t price(const std::vector<Index>& rows, bool least = false) const {
    return price_.rows(rows, least) - saved_;
  }
  std::size_t most(Index steps) const { return price_.most(plan_.heads, steps) - saved_; }
  // A limit in bytes is turned into rows after what lasts was measured: what it was measured from
  // (moments of queries, say) then goes, and its bytes are there for rows.
  void measure_lasting(const Candidates& candidates);

  // Rows that are left after a judgement: room for those of the next `every` steps.
  bool fits_bytes(std::vector<Index> rows) const;
  // The same of the plan as it is, to the byte; for a scorer with Chunks reach until the next chunk.
  bool plan_fits() const;

  // ---- scores

  void demand() const;

  // Scores of rows [first, last) of the `count` rows from `base` on; `raw` is set when pooling
  // changed them.
  void score(Index i, Index base, Index count, Index first, Index last, std::vector<float>& scores,
             std::vector<float>& raw) const;

  // Scores from storage, if the scorer can and the source lends it.
  bool score_stored(const Head& head, Index base, std::span<float> scores) const;
  // All chunks of a head in one pass; leaves `scores` empty where that cannot be.
  void score_chunks(Index i, Index base, Index chunk, Index chunks, Index ahead,
                    std::vector<float>& scores) const;

  void smooth(Index last, std::vector<float>& scores, std::vector<float>& raw) const;

  Shared sharing() const { return std::max(keep_.shared, scorer().shared); }
  Index sharers(Shared shared) const {
    return shared == Shared::head ? 1 : shared == Shared::layer ? books_.shape.kv_heads : heads_;
  }

  // The mean score decides for all heads that must keep the same rows.
  void merge_shared(Shared shared, std::vector<std::vector<float>>& scores,
                    std::vector<std::vector<float>>& raw) const;

  // Keys and values of `count` rows from `base` on, if they are asked for.
  void show_rows(Head& head, Need needs, Index base, Index count, Floats& keys,
                 Floats& values) const;

  // ---- rows that leave are folded into fewer

  static constexpr float held_score = std::numeric_limits<float>::max();
  Index merged_rows(const Candidates& candidates, Index total) const;
  void hold_merged(Index i, Index base, Index first, Index last, std::vector<float>& scores,
                   std::vector<float>& raw) const;
  std::vector<Index> divide_merged(const std::vector<std::vector<std::int32_t>>& leaving,
                                   Index rows) const;
  std::vector<std::int32_t>::const_iterator first_exact(
      Index i, const std::vector<std::int32_t>& leaving) const;
  // The rows `leaving` become at most `count` means, added to the plan. scores: from row `base` on.
  void merge(Index i, const std::vector<std::int32_t>& leaving, Index count,
             std::span<const float> scores, Index base, HeadPlan& part) const;
  // What rows that leave count in their mean: how many rows of the sequence each stands for, and its
  // score.
  std::vector<float> weights_of(std::span<const float> mass, std::span<const float> scores,
                                std::span<const std::int32_t> leaving, Index base) const;
  static std::vector<std::int32_t> rest(Index first, Index last,
                                        std::span<const std::int32_t> stay);
  static void add_rows(std::vector<std::int32_t>& kept, std::span<const std::int32_t> more);

  // ---- budgets

  // How many candidates of every head stay: `total` in all, less those that will be means of rows
  // that leave. Under a limit in bytes fewer, until what `select` plans with them is within it.
  std::vector<Index> grant(
      Shared shared, const Candidates& candidates, const std::vector<Index>& cap,
      const std::vector<Index>& pins, Index total,
      const std::function<void(const std::vector<Index>& granted, Index merged)>& select = nullptr);

  // Every Budgeter rewrites the quotas: those that see the whole model first, then in the order
  // they were named.
  std::vector<double> share(const Candidates& candidates, const std::vector<Index>& cap,
                            Index total, Measurements& measured) const;

  bool budgeters_read_scores() const;

  // The states of a policy: those of this plan, if there are any.
  const AnyStates& states_of(std::size_t policy, const Measurements& measured) const;

  // Budgeters look at the heads that they have to look at; all of them, or those that measure once.
  void measure_all(const Candidates& candidates, bool lasting_only = false);

  void measure(std::size_t p, Index i, bool again, const Candidates& candidates, void* state) const;

  // What has to outlive this plan. A measurement that is made anew each time does not.
  void persist();

  // Rounds quotas to rows, exact in total. Heads that share a set get the same number.
  std::vector<Index> fill(Shared shared, const std::vector<double>& quota,
                          const std::vector<Index>& cap, Index total) const;

  static void append_range(std::vector<std::int32_t>& kept, Index first, Index last);

  const Books& books_;
  const RowSource& source_;
  const Pricing& price_;
  Keep keep_;
  Index heads_;
  std::size_t scorer_, merger_;
  int layer_ = -1;  // judged alone
  Plan plan_;
  std::size_t saved_ = 0;     // bytes that lasting measurements give back
  Measurements measured_;     // states that this plan measured or changed
  std::vector<char> looked_;  // by policy: it measured during this plan
};

}  // namespace detail
LESSKV_END_NAMESPACE
