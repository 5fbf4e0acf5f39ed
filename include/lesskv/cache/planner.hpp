// SPDX-License-Identifier: MIT
// Planner: decides which rows stay. It owns the books (positions, columns and states of policies,
// newest queries); keys and values stay where they are. KVCache is a planner and a store.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "../core/executor.hpp"
#include "any_policy.hpp"
#include "plan.hpp"
#include "row_source.hpp"

LESSKV_BEGIN_NAMESPACE

namespace detail {
struct Books;
struct Ledger;
struct Measurements;
}  // namespace detail

// A planner whose policies are known at run time: of any role, in any order. `keep` may be null
// where nothing says which rows stay.
class AnyPlanner {
 public:
  AnyPlanner(const Shape& shape, const Keep* keep, std::vector<AnyPolicy> policies);
  ~AnyPlanner();
  AnyPlanner(const AnyPlanner&);
  AnyPlanner(AnyPlanner&&) noexcept;
  AnyPlanner& operator=(const AnyPlanner&);
  AnyPlanner& operator=(AnyPlanner&&) noexcept;

  const Shape& shape() const;
  void set_executor(Executor executor);
  const Executor& executor() const;

  // Rows held by one KV head, and their positions, ascending.
  Index size(int layer, int head) const;
  std::vector<Position> positions(int layer, int head) const;
  // With a Merger (Centroids): what attention adds to the logits of every row, the log of how many
  // rows of the sequence it stands for.
  std::vector<float> log_mass(int layer, int head) const;
  // The position that the next token of this layer gets when none is given.
  Position next_position(int layer) const;
  // Rows ever appended to a layer (per KV head).
  Index seen(int layer) const;
  // From this position on no row was ever dropped: truncate() to it or later loses nothing else.
  Position exact_from() const;
  // A policy of this planner looks at queries or attention: observe() must be called.
  bool needs_queries() const;
  // A policy looks at the attention of every query (H2O); between begin_probes() and end_probes(), of
  // probes.
  bool wants_attention() const;
  // A policy looks at the attention of probes (KVzip): there must be some before plan().
  bool needs_probes() const;

  // `tokens` rows were written to every head of a layer. Positions ascend and lie behind those
  // already there; gaps are allowed (tokens that never reached this layer).
  void append(int layer, Index tokens, std::span<const Position> positions = {});

  // Queries of a forward pass, after append(): element (token, query head, channel). They belong to
  // the newest rows unless positions are given. `source` is only read when a policy gathers
  // attention as it comes (H2O). scale: of the logits, 0 for 1 / sqrt(head_dim).
  void observe(int layer, const View& queries, const Source& source,
               std::span<const Position> positions = {}, float scale = 0);
  void observe(int layer, const View& queries, const RowSource& source,
               std::span<const Position> positions = {}, float scale = 0);

  // The engine's own attention weights of one KV head instead: [w * group, rows held], query-major,
  // then query head; every row sums to 1 over the rows held. Its queries are those of the newest w
  // tokens. Call it for every head.
  void observe(int layer, int head, const Rows& attention);

  // What is appended and observed in between are probes: queries that are no part of the sequence, of
  // a replay of the context for instance. Policies that ask for probes see their attention over the
  // rows held and their own rows; all others see nothing of them. At the end their rows are gone and
  // all else is as before. Meanwhile there is no plan() and no truncate().
  void begin_probes();
  void end_probes();

  // Attention weights of any queries [token, query head, channel] over the rows held by one KV
  // head: [tokens * group, rows], query-major, then query head. Causal by position; a row sums to
  // 1, or is 0 if it sees nothing. The queries belong to the newest rows unless positions are
  // given. scale: of the logits, 0 for 1 / sqrt(head_dim). No policy hears of it.
  Matrix attention(int layer, int head, const View& queries, const Source& source,
                   std::span<const Position> positions = {}, float scale = 0) const;
  Matrix attention(int layer, int head, const View& queries, const RowSource& source,
                   std::span<const Position> positions = {}, float scale = 0) const;

  // Which rows stay. Changes nothing: a plan may be dropped. `source(layer, head)` lends keys and
  // values.
  Plan plan(const Source& source) const;
  Plan plan(const RowSource& source, const Pricing& price) const;
  // During a prefill that goes layer by layer, after the whole prompt went through `layer`: rows of
  // this layer and of those before it that cannot stay whatever the other layers need. The sets
  // after plan() at the end are the same, the peak is lower. Layers to come are taken to get as many
  // rows as this one. Does nothing after the first compression.
  Plan plan(int layer, const Source& source) const;
  Plan plan(int layer, const RowSource& source) const;
  // False if plan() would keep everything without looking at a row. Allocates nothing.
  bool due(const RowSource& source, const Pricing& price) const;

  // Carries a plan out in the books, after the rows were moved: the only place where rows leave
  // them.
  void commit(const Plan& plan);
  // A forward pass ended and nothing was to go.
  void mark();
  // The rows since the last commit came in one large piece: a compression then gives back every
  // spare row.
  bool prefill() const;

  // States of the first policy of type P, one per head [layer * kv_heads + head]: what it observed
  // and measured.
  template <class P>
  std::span<const state_of<P>> states() const {
    const AnyStates* found = find_states(&detail::tag_of<P>);
    if (!found) fail("states<P>(): P is none of the policies");
    return found->all<state_of<P>>();
  }

  // Budgeters that measured once measure again at the next compression that can drop rows.
  void remeasure();

  // Forgets rows at position p and later. Columns of the rows that stay keep what they gathered,
  // and so do states, as long as any row stays.
  void truncate(Position p);
  // Forgets everything; policies and executor stay.
  void clear();

  // Bytes of the books; what they would be with that many rows per head; and when `step` more rows
  // have come to every head after such a plan.
  std::size_t bytes() const;
  std::size_t bytes_for(std::span<const Index> rows) const;
  std::size_t bytes_after(std::span<const HeadPlan> heads, Index step) const;

  // ---- for KVCache
  // Rows that a codec may not take: the first `front` of a head, and the newest `open`, which may
  // still be judged as they are or are pinned.
  struct ExactRows {
    Index front = 0, open = 0;
    bool closes = true;  // the oldest open row closes when a row is appended
  };
  ExactRows exact_rows(int layer, Index rows, Index closed) const;
  // The most that may be open at any time.
  Index most_open(int layer) const;
  // There is a limit in bytes: storage grows in small steps.
  bool limits_bytes() const;
  // Rows leave from between others, not only the oldest.
  bool drops_between() const;
  std::span<const AnyPolicy> policies() const;
  // The rows of a head that were judged for good, as the books stand.
  Index judged_rows(int layer, int head) const;
  const std::uint32_t* position_data(int layer, int head) const;
  bool has_merged(int layer, int head) const;
  // out[r - first] += the log mass of row r, for r in [first, last).
  void add_log_mass(int layer, int head, Index first, Index last, float* out) const;
  void check_layer(int layer) const;
  void check_no_probes() const;
  void check_append(int layer, Index tokens, std::span<const Position> positions) const;
  void check_queries(int layer, const float* queries, Index tokens) const;
  // Queries as f32 [token][query_head][head_dim], checked.
  void observe_rows(int layer, const float* queries, Index tokens, const RowSource& source,
                    std::span<const Position> positions, float scale);
  // The same in steps, for a cache that has the attention anyway: where the queries are, then what
  // each head of them sees, in order, then the end. `positions` must live until the end.
  std::span<const Position> begin_observation(int layer, Index tokens,
                                              std::span<const Position> positions, float scale);
  void show(int layer, int head, const float* queries, std::span<const Position> positions,
            Index first, Index count, const Rows& attention);
  void end_observation(int layer, const float* queries, Index tokens,
                       std::span<const Position> positions);
  // States of a policy, by its place in policies().
  AnyStates& states_of(std::size_t policy);
  // Rows of a head before position p.
  Index rows_before(int layer, int head, Position p) const;

 private:
  const AnyStates* find_states(const void* tag) const;
  const detail::Ledger& checked(int layer, int head) const;
  void check_budget(const detail::Reach& reach) const;
  // How many of the newest queries the next judgement will still want, if it was judged now.
  Index queries_until_next(bool whole) const;
  // Changes with everything that a plan depends on.
  std::uint64_t version() const;
  class PlainPricing;
  // Of the books, without what follows rows.
  std::size_t fixed_bytes() const;
  // Rows leave, scores follow those that stay; nothing counts as judged yet.
  void commit_layer(const Plan& plan);
  // What a plan measured stays; of one layer, or of all.
  void take(detail::Measurements& fresh, int layer = -1);

  std::unique_ptr<detail::Books> books_;
  std::uint64_t version_ = 0;
};

namespace detail {
template <class P>
void take_policy([[maybe_unused]] P& policy, [[maybe_unused]] std::vector<AnyPolicy>& out) {
  if constexpr (!is_keep<P>) out.emplace_back(std::move(policy));
}
template <class P>
void find_keep([[maybe_unused]] const P& policy, [[maybe_unused]] const Keep*& out) {
  if constexpr (is_keep<P>) out = &policy;
}
// Policies as they were named, Keep apart.
template <class... Ps>
std::vector<AnyPolicy> list_policies(Ps&... policies) {
  std::vector<AnyPolicy> out;
  out.reserve(sizeof...(Ps));
  (take_policy(policies, out), ...);
  return out;
}
template <class... Ps>
const Keep* keep_of(const Ps&... policies) {
  const Keep* keep = nullptr;
  (find_keep(policies, keep), ...);
  return keep;
}
}  // namespace detail

// A planner whose policies are known at compile time: what does not fit together does not compile.
template <class... Ps>
class Planner : public AnyPlanner {
  static_assert(detail::CheckPolicies<Ps...>::ok);

 public:
  explicit Planner(const Shape& shape, Ps... policies)
      : AnyPlanner(shape, detail::keep_of(policies...), detail::list_policies(policies...)) {}

  using AnyPlanner::plan;
  Plan plan(int layer, const Source& source) const {
    static_assert(detail::CheckCascade<Ps...>::ok);
    return AnyPlanner::plan(layer, source);
  }
  template <class P>
  std::span<const state_of<P>> states() const {
    static_assert((std::same_as<P, Ps> || ...),
                  "lesskv: states<P>(): P is none of the policies of this cache");
    return AnyPlanner::states<P>();
  }
};

template <class... Ps>
Planner(Shape, Ps...) -> Planner<Ps...>;

LESSKV_END_NAMESPACE

#if !LESSKV_DECLARE_ONLY
#include "planner.inc"
#endif
