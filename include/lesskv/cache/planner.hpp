// SPDX-License-Identifier: MIT
// Planner: decides which rows stay. It owns the books (positions, columns and states of policies,
// newest queries); keys and values stay where they are. KVCache is a planner and a store.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "books.hpp"
#include "judge.hpp"
#include "plan.hpp"
#include "row_source.hpp"

LESSKV_BEGIN_NAMESPACE

template <class... Ps>
class Planner {
  static_assert(detail::CheckPolicies<Ps...>::ok);

 public:
  explicit Planner(const Shape& shape, Ps... policies) : books_(shape, std::move(policies)...) {
    books_.each([&](auto, const auto& policy) {
      if constexpr (Scorer<std::decay_t<decltype(policy)>>) check_budget(reach_of(policy));
    });
  }

  const Shape& shape() const { return books_.shape; }
  void set_executor(Executor executor) { books_.executor = std::move(executor); }
  const Executor& executor() const { return books_.executor; }

  // Rows held by one KV head, and their positions, ascending.
  Index size(int layer, int head) const { return checked(layer, head).rows(); }
  std::vector<Position> positions(int layer, int head) const {
    const auto& held = checked(layer, head).positions;
    std::vector<Position> out(held.size());
    for (std::size_t i = 0; i < held.size(); ++i) out[i] = Position{held[i]};
    return out;
  }
  // The position that the next token of this layer gets when none is given.
  Position next_position(int layer) const {
    check_layer(layer);
    return Position{books_.layers[detail::uz(layer)].next};
  }
  // Rows ever appended to a layer (per KV head).
  Index seen(int layer) const {
    check_layer(layer);
    return books_.layers[detail::uz(layer)].seen();
  }
  // From this position on no row was ever dropped: truncate() to it or later loses nothing else.
  Position exact_from() const {
    std::int64_t newest = -1;
    for (Index i = 0; i < books_.shape.heads(); ++i)
      newest = std::max(newest, books_.ledger(i).newest_dropped);
    return Position{newest + 1};
  }
  // A policy of this planner looks at queries or attention: observe() must be called.
  bool needs_queries() const { return books_.window > 0 || books_.has_observers(); }

  // `tokens` rows were written to every head of a layer. Positions ascend and lie behind those
  // already there; gaps are allowed (tokens that never reached this layer).
  void append(int layer, Index tokens, std::span<const Position> positions = {}) {
    check_append(layer, tokens, positions);
    auto& book = books_.layers[detail::uz(layer)];
    thread_local std::vector<Position> scratch;
    if (positions.empty()) {
      scratch.resize(detail::uz(tokens));
      for (Index t = 0; t < tokens; ++t) scratch[detail::uz(t)] = Position{book.next + t};
      positions = scratch;
    }
    for (auto& head : book.heads) head.append(positions);
    for (Matrix& attention : book.attention) attention.resize(0, 0);
    if (tokens > 0) book.next = to_int(positions.back()) + 1;
    book.forget_scores();
    ++book.version;
  }

  // Queries of a forward pass, after append(): element (token, query head, channel). They belong to
  // the newest rows unless positions are given. `source` is only read when a policy gathers
  // attention as it comes (H2O). scale: of the logits, 0 for 1 / sqrt(head_dim).
  void observe(int layer, const View& queries, const Source& source,
               std::span<const Position> positions = {}, float scale = 0) {
    observe(layer, queries, detail::ViewSource(books_.shape, source), positions, scale);
  }
  void observe(int layer, const View& queries, const RowSource& source,
               std::span<const Position> positions = {}, float scale = 0) {
    check_layer(layer);
    detail::check(queries, "queries");
    if (!needs_queries() || queries.tokens == 0) return;
    thread_local detail::Floats scratch;
    const float* plain =
        detail::read_all(queries, books_.shape.query_heads, books_.shape.head_dim, scratch);
    check_queries(layer, plain, queries.tokens);
    observe_rows(layer, plain, queries.tokens, source, positions, scale);
  }

  // The engine's own attention weights of one KV head instead: [w * group, rows held], query-major,
  // then query head; every row sums to 1 over the rows held. Its queries are those of the newest w
  // tokens. Call it for every head.
  void observe(int layer, int head, const Rows& attention) {
    const auto& rows = checked(layer, head);
    const Index group = books_.shape.group();
    if (attention.cols() != rows.rows())
      fail("attention: ", attention.cols(), " columns, but head ", head, " of layer ", layer,
           " holds ", rows.rows(), " rows");
    if (attention.rows() == 0 || attention.rows() % group != 0)
      fail("attention: ", attention.rows(), " rows are not a positive multiple of the group size ",
           group);
    const Index w = attention.rows() / group;
    if (w > rows.rows()) fail("attention: more queries than rows held");
    if (!attention.allFinite()) fail("attention: a weight is NaN or infinite");
    auto& book = books_.layers[detail::uz(layer)];
    const Index width = std::min(w, books_.window) * group;
    Matrix newest = attention.bottomRows(width);
    std::vector<Position> at(detail::uz(w));
    for (Index t = 0; t < w; ++t)
      at[detail::uz(t)] = Position{rows.positions[detail::uz(rows.rows() - w + t)]};
    books_.show(layer, head, rows.rows(), attention, make_rows(nullptr, 0, 0, 0), at);
    if (head == books_.shape.kv_heads - 1) book.observed += w;
    ++book.version;
    book.attention[detail::uz(head)] = std::move(newest);
  }

  // Attention weights of any queries [token, query head, channel] over the rows held by one KV
  // head: [tokens * group, rows], query-major, then query head. Causal by position; a row sums to
  // 1, or is 0 if it sees nothing. The queries belong to the newest rows unless positions are
  // given. scale: of the logits, 0 for 1 / sqrt(head_dim). No policy hears of it.
  Matrix attention(int layer, int head, const View& queries, const Source& source,
                   std::span<const Position> positions = {}, float scale = 0) const {
    return attention(layer, head, queries, detail::ViewSource(books_.shape, source), positions,
                     scale);
  }
  Matrix attention(int layer, int head, const View& queries, const RowSource& source,
                   std::span<const Position> positions = {}, float scale = 0) const {
    const Shape& s = books_.shape;
    const Index rows = checked(layer, head).rows();
    detail::check(queries, "queries");
    if (!(scale >= 0) || !std::isfinite(scale))
      fail("scale: it must be positive, or 0 for the default");
    detail::Floats scratch;
    const float* plain = detail::read_all(queries, s.query_heads, s.head_dim, scratch);
    check_queries(layer, plain, queries.tokens);
    std::vector<Position> newest;
    if (positions.empty()) {
      books_.newest_positions(layer, queries.tokens, newest);
      positions = newest;
    }
    if (static_cast<Index>(positions.size()) != queries.tokens)
      fail("positions: ", positions.size(), " given for ", queries.tokens, " queries");
    if (scale == 0) scale = 1.f / std::sqrt(static_cast<float>(s.head_dim));
    Matrix out(queries.tokens * s.group(), rows);
    if (out.size() > 0)
      books_.attention(layer, head, plain, positions, rows, source, out.data(), scale);
    return out;
  }

  // Which rows stay. Changes nothing: a plan may be dropped. `source(layer, head)` lends keys and
  // values.
  Plan plan(const Source& source) const {
    return plan(detail::ViewSource(books_.shape, source), plain_price());
  }
  Plan plan(const RowSource& source, const Pricing& price) const {
    Plan plan = detail::Judgement<Ps...>(books_, source, price).run();
    plan.version = version();
    return plan;
  }
  // During a prefill that goes layer by layer, after the whole prompt went through `layer`: rows of
  // this layer and of those before it that cannot stay whatever the other layers need. The sets
  // after plan() at the end are the same, the peak is lower. Layers to come are taken to get as many
  // rows as this one. Does nothing after the first compression.
  Plan plan(int layer, const Source& source) const {
    return plan(layer, detail::ViewSource(books_.shape, source));
  }
  Plan plan(int layer, const RowSource& source) const {
    static_assert(detail::CheckCascade<Ps...>::ok);
    check_layer(layer);
    const Pricing price = plain_price();
    Plan plan = detail::Judgement<Ps...>(books_, source, price).run_layer(layer);
    plan.version = version();
    return plan;
  }
  // False if plan() would keep everything without looking at a row. Allocates nothing.
  bool due(const RowSource& source, const Pricing& price) const {
    return detail::Judgement<Ps...>(books_, source, price).due();
  }

  // Carries a plan out in the books, after the rows were moved: the only place where rows leave
  // them.
  void commit(const Plan& plan) {
    if (plan.version != version() || plan.heads.size() != detail::uz(books_.shape.heads()))
      fail("plan: it was made from another state of this planner");
    if (plan.layer >= 0) return commit_layer(plan);
    const bool whole = prefill();
    for (Index i = 0; i < books_.shape.heads(); ++i) {
      const HeadPlan& part = plan.heads[detail::uz(i)];
      auto& head = books_.ledger(i);
      if (!part.all) head.keep(part.kept, whole);
      if (plan.judged) head.judged = part.closed;
    }
    for (auto& book : books_.layers) {
      for (Matrix& attention : book.attention) attention = Matrix();
      if (plan.judged) book.judged_at = book.seen();
    }
    if (plan.measured) take(*static_cast<detail::Measurements<Ps...>*>(plan.measured.get()));
    if (plan.judged)
      for (auto& book : books_.layers) book.window.shrink(queries_until_next(whole));
    mark();
    ++version_;
  }
  // A forward pass ended and nothing was to go.
  void mark() {
    for (auto& book : books_.layers) {
      book.committed_at = book.seen();
      book.forget_scores();
    }
  }
  // The rows since the last commit came in one large piece: a compression then gives back every
  // spare row.
  bool prefill() const { return detail::Judgement<Ps...>::prefill(books_); }

  // States of a policy, one per head [layer * kv_heads + head]: what it observed and measured.
  template <class P>
  std::span<const state_of<P>> states() const {
    static_assert((std::same_as<P, Ps> || ...),
                  "lesskv: states<P>(): P is none of the policies of this cache");
    return std::get<index_of<P>()>(books_.states);
  }

  // Budgeters that measured once measure again at the next compression that can drop rows.
  void remeasure() {
    books_.forget_measurements();
    ++version_;
  }

  // Forgets rows at position p and later. Columns of the rows that stay keep what they gathered,
  // and so do states, as long as any row stays.
  void truncate(Position p) {
    if (to_int(p) < 0) fail("position: it is negative");
    for (auto& book : books_.layers) {
      for (auto& head : book.heads) {
        head.truncate(head.find(to_int(p)));
        head.seen = std::min<Index>(head.seen, to_int(p));
      }
      book.next = std::min(book.next, to_int(p));
      book.observed = std::min(book.observed, book.seen());
      book.judged_at = std::min(book.judged_at, book.seen());
      book.committed_at = std::min(book.committed_at, book.seen());
      book.window.truncate(p);
      book.forget_scores();
      for (Matrix& attention : book.attention) attention = Matrix();
    }
    Index held = 0;
    for (Index i = 0; i < books_.shape.heads(); ++i) held += books_.ledger(i).rows();
    if (held == 0) books_.reset_states();
    ++version_;
  }
  // Forgets everything; policies and executor stay.
  void clear() {
    version_ = version() + 1;
    books_.reset();
  }

  // Bytes of the books, and what they would be with that many rows per head.
  std::size_t bytes() const {
    std::size_t sum = books_.state_bytes();
    for (const auto& book : books_.layers) {
      sum += sizeof(book) + book.window.bytes() + book.attention.capacity() * sizeof(Matrix);
      for (const auto& head : book.heads) sum += head.bytes();
      for (const Matrix& own : book.attention) sum += detail::uz(own.size()) * sizeof(float);
      for (const auto* of_heads : {&book.scores, &book.raw})
        for (const auto& scores : *of_heads)
          sum += sizeof(scores) + scores.capacity() * sizeof(float);
    }
    return sum;
  }
  std::size_t bytes_for(std::span<const Index> rows, bool trimmed) const {
    const Shape& s = books_.shape;
    // Between compressions the window of queries fills up again.
    const bool retained = !trimmed || queries_until_next(true) > 0;
    std::size_t sum = books_.state_bytes();
    for (const auto& book : books_.layers)
      sum += sizeof(book) + book.attention.capacity() * sizeof(Matrix) +
             detail::QueryWindow::bytes_for(retained ? books_.window : 0,
                                            Index{s.query_heads} * s.head_dim, s.dtype);
    for (Index i = 0; i < s.heads(); ++i)
      sum += books_.ledger(i).bytes_for(rows[detail::uz(i)], trimmed);
    return sum;
  }

  // ---- for KVCache
  // Rows that a codec may not take: the first `front` of a head, and the newest `open`, which may
  // still be judged as they are or are pinned.
  struct ExactRows {
    Index front = 0, open = 0;
  };
  ExactRows exact_rows(int layer, Index rows, Index closed) const {
    const Keep keep = books_.keep();
    ExactRows out{std::min(keep.sinks, rows), keep.coded_recent ? 0 : std::min(keep.recent, rows)};
    books_.each([&](auto, const auto& policy) {
      if constexpr (Scorer<std::decay_t<decltype(policy)>>) {
        const detail::Reach reach = reach_of(policy);
        if (reach.chunk > 0 && !skips_layer(policy, layer))
          out.open = std::max(out.open, rows - std::max(closed, std::min(keep.sinks, rows)));
        else if (reach.chunk == 0 && !keep.coded_recent)
          out.open = std::max(out.open, std::min(reach.ahead, rows));
      }
    });
    out.open = std::min(out.open, rows - out.front);
    return out;
  }
  template <class F>
  void each_policy(F&& f) const {
    books_.each([&](auto, const auto& policy) { f(policy); });
  }
  // The rows of a head that were judged for good, as the books stand.
  Index judged_rows(int layer, int head) const { return checked(layer, head).judged; }
  const std::uint32_t* position_data(int layer, int head) const {
    return checked(layer, head).positions.data();
  }
  void check_layer(int layer) const {
    if (layer < 0 || layer >= books_.shape.layers)
      fail("layer: ", layer, " is not in [0, ", books_.shape.layers, ")");
  }
  void check_append(int layer, Index tokens, std::span<const Position> positions) const {
    check_layer(layer);
    if (tokens < 0) fail("tokens: negative");
    std::int64_t last = books_.layers[detail::uz(layer)].next - 1;
    if (!positions.empty() && static_cast<Index>(positions.size()) != tokens)
      fail("positions: ", positions.size(), " given for ", tokens, " tokens");
    for (const Position p : positions) {
      if (to_int(p) <= last) fail("positions: ", to_int(p), " does not lie behind ", last);
      last = to_int(p);
    }
    if (positions.empty()) last += tokens;
    if (last >= std::int64_t{0xffffffff}) fail("positions: beyond 2^32 - 2");
  }
  void check_queries(int layer, const float* queries, Index tokens) const {
    const Shape& s = books_.shape;
    if (!detail::fits(queries, tokens * s.query_heads * s.head_dim, s.dtype))
      fail("queries: layer ", layer, " has a number that is NaN, infinite or too large for ",
           name_of(s.dtype));
  }
  // Queries as f32 [token][query_head][head_dim], checked.
  void observe_rows(int layer, const float* queries, Index tokens, const RowSource& source,
                    std::span<const Position> positions, float scale) {
    auto& book = books_.layers[detail::uz(layer)];
    thread_local std::vector<Position> newest;
    if (positions.empty()) {
      books_.newest_positions(layer, tokens, newest);
      positions = newest;
    }
    if (static_cast<Index>(positions.size()) != tokens)
      fail("positions: ", positions.size(), " given for ", tokens, " queries");
    book.scale = scale > 0 ? scale : 1.f / std::sqrt(static_cast<float>(books_.shape.head_dim));
    if (books_.has_observers())
      detail::run(books_.executor, books_.shape.kv_heads, [&](Index h) {
        books_.observe(layer, static_cast<int>(h), queries, positions, source);
      });
    book.window.push(queries, tokens, Index{books_.shape.query_heads} * books_.shape.head_dim,
                     books_.window, books_.shape.dtype, positions);
    book.observed += tokens;
    ++book.version;
  }
  // Rows of a head before position p.
  Index rows_before(int layer, int head, Position p) const {
    return books_.layers[detail::uz(layer)].heads[detail::uz(head)].find(to_int(p));
  }

 private:
  const auto& checked(int layer, int head) const {
    check_layer(layer);
    if (head < 0 || head >= books_.shape.kv_heads)
      fail("head: ", head, " is not in [0, ", books_.shape.kv_heads, ")");
    return books_.layers[detail::uz(layer)].heads[detail::uz(head)];
  }
  void check_budget(const detail::Reach& reach) const {
    const Keep keep = books_.keep();
    detail::check(keep, reach.chunk > 0);
    // A scorer with Chunks reach leaves up to one row less than it needs to start.
    const Index open = std::max(reach.ahead, keep.recent) + std::max<Index>(0, reach.chunk - 1);
    const Index pinned = keep.sinks + open;
    if (keep.tokens > 0 && keep.tokens < pinned)
      fail("Keep::tokens is ", keep.tokens, ": an impossible budget, ", pinned,
           " rows of a head cannot go (sinks, recent rows and those that the scorer cannot judge "
           "yet)");
  }
  // How many of the newest queries the next judgement will still want, if it was judged now.
  Index queries_until_next(bool whole) const {
    const Keep keep = books_.keep();
    // Cut to the limit after a prompt, the next token already asks again; else `every` rows come
    // first.
    const bool at_once = keep.fraction <= 0 && whole;
    return at_once ? books_.window : std::max<Index>(0, books_.window - keep.every);
  }
  template <class P>
  static constexpr std::size_t index_of() {
    constexpr bool same[] = {std::same_as<P, Ps>..., false};
    std::size_t i = 0;
    while (i < sizeof...(Ps) && !same[i]) ++i;
    return i;
  }
  // Changes with everything that a plan depends on.
  std::uint64_t version() const {
    std::uint64_t sum = version_;
    for (const auto& book : books_.layers) sum += book.version;
    return sum;
  }
  // Bytes of keys and values alone.
  Pricing plain_price() const {
    return [this](std::span<const Index> rows, bool) {
      const Shape& s = books_.shape;
      std::size_t sum = 0;
      for (const Index r : rows)
        sum += detail::uz(r * (s.head_dim + s.value_width()) * size_of(s.dtype));
      return sum;
    };
  }
  // Rows leave, scores follow those that stay; nothing counts as judged yet.
  void commit_layer(const Plan& plan) {
    const Index heads = books_.shape.kv_heads;
    if (!plan.scores.empty()) {
      auto& book = books_.layers[detail::uz(plan.layer)];
      book.scores = plan.scores;
      book.raw = plan.raw;
    }
    for (Index i = 0; i < heads * (plan.layer + 1); ++i) {
      const HeadPlan& part = plan.heads[detail::uz(i)];
      if (part.all) continue;
      books_.ledger(i).keep(part.kept, true);
      auto& book = books_.layers[detail::uz(i / heads)];
      for (auto* of_heads : {&book.scores, &book.raw}) {
        auto& scores = (*of_heads)[detail::uz(i % heads)];
        if (scores.empty()) continue;
        std::vector<float> kept(part.kept.size());
        for (std::size_t r = 0; r < kept.size(); ++r)
          kept[r] = scores[static_cast<std::size_t>(part.kept[r])];
        scores = std::move(kept);
      }
    }
    for (Matrix& attention : books_.layers[detail::uz(plan.layer)].attention) attention = Matrix();
    if (plan.measured)
      take(*static_cast<detail::Measurements<Ps...>*>(plan.measured.get()), plan.layer);
    ++version_;
  }
  // What a plan measured stays; of one layer, or of all.
  void take(detail::Measurements<Ps...>& fresh, int layer = -1) {
    books_.each([&](auto index, const auto&) {
      constexpr std::size_t I = decltype(index)::value;
      auto& states = std::get<I>(fresh.states);
      if (states.empty()) return;
      std::get<I>(books_.states) = std::move(states);
      for (std::size_t l = 0; l < books_.layers.size(); ++l)
        if (books_.layers[l].seen() > 0 && (layer < 0 || static_cast<int>(l) == layer))
          books_.layers[l].measured[I] = true;
    });
    books_.update_window();
  }

  detail::Books<Ps...> books_;
  std::uint64_t version_ = 0;
};

template <class... Ps>
Planner(Shape, Ps...) -> Planner<Ps...>;

LESSKV_END_NAMESPACE
