// SPDX-License-Identifier: MIT
// Books: the state that a planner keeps for all layers and heads, and the views of it that policies
// get.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/executor.hpp"
#include "ledger.hpp"
#include "query_window.hpp"
#include "row_source.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

template <class... Ps>
struct LayerBook {
  std::vector<Ledger<Ps...>> heads;
  std::int64_t next = 0;   // position of the next token
  Index observed = 0;      // queries seen
  Index judged_at = 0;     // rows seen at the last judgement
  Index committed_at = 0;  // rows seen at the last commit
  float scale = 0;         // of the attention logits; 0 before any query was seen
  QueryWindow window;
  std::vector<Matrix>
      attention;  // the engine's own weights of the newest queries, per head, until the next commit
  // After compress(layer), until compress(): the scores of the rows held, per head, and the un-pooled
  // ones.
  std::vector<std::vector<float>> scores, raw;
  std::array<bool, sizeof...(Ps)> measured{};  // policies that measured this layer
  std::uint64_t version = 0;                   // grows with everything that a plan depends on

  Index seen() const { return heads[0].seen; }
  void forget_scores() {
    scores = {};
    raw = {};
  }
};

template <class... Ps>
struct Books {
  Shape shape;
  std::tuple<Ps...> policies;
  std::vector<LayerBook<Ps...>> layers;
  // One state per policy and head, [layer * kv_heads + head]: a Budgeter reads those of all heads.
  std::tuple<std::vector<state_of<Ps>>...> states;
  Index window = 0;  // queries to hold: the most that any policy still asks for
  Executor executor;

  Books(const Shape& s, Ps... p) : shape(s), policies(std::move(p)...) {
    check(shape);
    each([&](auto, const auto& policy) { check_policy(policy, shape); });
    reset();
  }

  // No rows, no states.
  void reset() {
    layers.clear();
    layers.resize(uz(shape.layers));
    for (auto& layer : layers) {
      layer.heads.resize(uz(shape.kv_heads));
      layer.attention.resize(uz(shape.kv_heads));
      each([&](auto index, const auto& policy) {
        for (auto& head : layer.heads)
          head.columns[decltype(index)::value].resize(uz(columns_of(policy)));
      });
    }
    reset_states();
  }

  void reset_states() {
    each([&](auto index, const auto& policy) {
      auto& of_policy = std::get<decltype(index)::value>(states);
      of_policy.clear();
      of_policy.reserve(uz(shape.heads()));
      for (Index i = 0; i < shape.heads(); ++i) of_policy.push_back(make_state(policy));
    });
    forget_measurements();
  }
  void forget_measurements() {
    for (auto& layer : layers) layer.measured.fill(false);
    update_window();
  }

  // Bytes of all states.
  std::size_t state_bytes() const {
    std::size_t sum = 0;
    each([&](auto index, const auto& policy) {
      using State = state_of<std::decay_t<decltype(policy)>>;
      if constexpr (!std::is_empty_v<State>)
        for (const State& state : std::get<decltype(index)::value>(states))
          sum += sizeof(State) + detail::state_bytes(state);
    });
    return sum;
  }

  // A policy measured every layer. Rows of a layer that holds none yet may still come.
  template <std::size_t I>
  bool measured() const {
    for (const auto& layer : layers)
      if (!layer.measured[I]) return false;
    return true;
  }

  // A Budgeter that has measured wants no queries any more.
  void update_window() {
    window = 0;
    each([&](auto index, const auto& policy) {
      using P = std::decay_t<decltype(policy)>;
      if constexpr (Budgeter<P>) {
        Need needs = measure_needs_of(policy, true);
        if (!measured<decltype(index)::value>()) needs = needs | measure_needs_of(policy, false);
        if (!asks(needs, Need::attention | Need::queries)) return;
      }
      window = std::max(window, window_of(policy));
    });
  }

  // f(integral_constant<index>, policy) for every policy.
  template <class F>
  void each(F&& f) const {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (f(std::integral_constant<std::size_t, I>{}, std::get<I>(policies)), ...);
    }
    (std::index_sequence_for<Ps...>{});
  }

  Ledger<Ps...>& ledger(Index i) {
    return layers[uz(i / shape.kv_heads)].heads[uz(i % shape.kv_heads)];
  }
  const Ledger<Ps...>& ledger(Index i) const {
    return layers[uz(i / shape.kv_heads)].heads[uz(i % shape.kv_heads)];
  }

  Keep keep() const {
    if constexpr (CheckPolicies<Ps...>::keeps > 0)
      return std::get<Keep>(policies);
    else
      return {};
  }

  // True if a policy wants to see queries, or attention computed from them, as they come.
  bool has_observers() const {
    return observers_ask(Need::queries) || observers_ask(Need::attention);
  }

  // A head as policy I sees it, from row `base` on, `count` rows. `positions` is scratch that must
  // outlive the view.
  template <std::size_t I>
  Head view(int layer, int head, Index base, Index count, std::vector<Position>& positions) const {
    const auto& book = layers[uz(layer)];
    const auto& rows = book.heads[uz(head)];
    positions.resize(uz(count));
    for (Index r = 0; r < count; ++r) positions[uz(r)] = Position{rows.positions[uz(base + r)]};
    Head out;
    out.layer = layer;
    out.head = head;
    out.group = shape.group();
    out.step = book.next;
    out.positions = positions;
    out.first = 0;
    out.last = count;
    // Only observe() may write columns, and it is only called from functions that may change the
    // books.
    out.column_data = const_cast<std::vector<float>*>(rows.columns[I].data());
    out.column_offset = base;
    return out;
  }

  // Positions of the newest `tokens` rows of a layer.
  void newest_positions(int layer, Index tokens, std::vector<Position>& out) const {
    const auto& held = layers[uz(layer)].heads[0].positions;
    if (tokens > static_cast<Index>(held.size()))
      fail("queries: ", tokens, " tokens, but layer ", layer, " holds ", held.size(),
           " rows; call append() first, or give positions");
    out.resize(uz(tokens));
    for (Index t = 0; t < tokens; ++t) out[uz(t)] = Position{held[held.size() - uz(tokens - t)]};
  }

  // Softmax weights of the given queries of one KV head over the first `rows` rows: out [tokens *
  // group][rows]. queries: [tokens][query_heads][head_dim]. scale: of the logits, 0 for that of the
  // last queries seen.
  void attention(int layer, int head, const float* queries, std::span<const Position> at,
                 Index rows, const RowSource& source, float* out, float scale = 0) const {
    const Index tokens = static_cast<Index>(at.size()), group = shape.group(), dim = shape.head_dim;
    thread_local Floats scratch;
    thread_local std::vector<Index> visible;
    float* packed = scratch.reserve(tokens * group * dim);
    visible.resize(uz(tokens * group));
    const auto& book = layers[uz(layer)];
    for (Index t = 0; t < tokens; ++t) {
      const Index seen = std::min(rows, book.heads[uz(head)].find(to_int(at[uz(t)]) + 1));
      const float* from = queries + (t * shape.query_heads + head * group) * dim;
      std::copy_n(from, group * dim, packed + t * group * dim);
      for (Index g = 0; g < group; ++g) visible[uz(t * group + g)] = seen;
    }
    source.logits(layer, head, packed, tokens * group, rows, scale > 0 ? scale : book.scale, out,
                  rows);
    kernels().softmax_rows(out, tokens * group, rows, visible.data(), rows);
  }

  // Shows new queries of one KV head to every observer, a few at a time so that the attention of a
  // block stays small.
  void observe(int layer, int head, const float* queries, std::span<const Position> at,
               const RowSource& source) {
    const Index tokens = static_cast<Index>(at.size()), group = shape.group(), dim = shape.head_dim;
    const Index rows = layers[uz(layer)].heads[uz(head)].rows();
    const Index step =
        std::clamp<Index>((Index{1} << 18) / std::max<Index>(1, group * rows), 1, 64);
    thread_local Floats weights, plain;
    for (Index first = 0; first < tokens; first += step) {
      const Index count = std::min(step, tokens - first);
      const auto part = at.subspan(uz(first), uz(count));
      const float* from = queries + first * shape.query_heads * dim;
      // Rows behind the newest of these queries have no weight; they are not shown.
      const Index shown = layers[uz(layer)].heads[uz(head)].find(to_int(part.back()) + 1);
      Rows attended = make_rows(nullptr, 0, 0, 0), asked = attended;
      if (observers_ask(Need::attention)) {
        float* out = weights.reserve(count * group * shown);
        attention(layer, head, from, part, shown, source, out);
        point(attended, out, count * group, shown, shown);
      }
      if (observers_ask(Need::queries)) {
        float* out = plain.reserve(count * group * dim);
        for (Index t = 0; t < count; ++t)
          std::copy_n(from + (t * shape.query_heads + head * group) * dim, group * dim,
                      out + t * group * dim);
        point(asked, out, count * group, dim, dim);
      }
      show(layer, head, shown, attended, asked, part);
    }
  }

  // Calls observe() of every observer with what it asked for.
  void show(int layer, int head, Index rows, const Rows& attended, const Rows& asked,
            std::span<const Position> at) {
    thread_local std::vector<Position> positions;
    each([&](auto index, const auto& policy) {
      using P = std::decay_t<decltype(policy)>;
      if constexpr (Observer<P>) {
        if (!observes(policy)) return;
        Head seen = view<decltype(index)::value>(layer, head, 0, rows, positions);
        const Need needs = observe_needs_of(policy);
        const bool wanted = (asks(needs, Need::attention) && attended.size() > 0) ||
                            (asks(needs, Need::queries) && asked.size() > 0);
        if (!wanted) return;
        point(seen.attention, attended.data(), attended.rows(), attended.cols(),
              attended.outerStride());
        point(seen.queries, asked.data(), asked.rows(), asked.cols(), asked.outerStride());
        seen.query_positions = at;
        policy.observe(seen,
                       std::get<decltype(index)::value>(states)[uz(layer * shape.kv_heads + head)]);
      }
    });
  }

  bool observers_ask(Need one) const {
    bool any = false;
    each([&](auto, const auto& policy) {
      any = any || (observes(policy) && asks(observe_needs_of(policy), one));
    });
    return any;
  }

  // Attention weights of the newest w queries of a head: the engine's own if it gave them, else
  // computed from the queries held. [w * group][rows].
  Matrix window_attention(int layer, int head, Index w, const RowSource& source) const {
    const auto& book = layers[uz(layer)];
    const Index rows = book.heads[uz(head)].rows(), group = shape.group();
    if (const Matrix& own = book.attention[uz(head)]; own.size() > 0)
      return own.bottomRows(std::min<Index>(w * group, own.rows()));
    std::vector<Position> at;
    const Matrix queries = window_queries(layer, w, at);
    Matrix out(queries.rows() * group, rows);
    attention(layer, head, queries.data(), at, rows, source, out.data());
    return out;
  }

  // The newest w queries of a layer, or as many as are held: [w][query_heads * head_dim].
  Matrix window_queries(int layer, Index w, std::vector<Position>& at) const {
    const QueryWindow& held = layers[uz(layer)].window;
    const Index have = std::min(w, held.count());
    const Index width = Index{shape.query_heads} * shape.head_dim;
    Matrix queries(have, width);
    at.resize(uz(have));
    for (Index i = 0; i < have; ++i) {
      held.read(held.count() - have + i, queries.data() + i * width);
      at[uz(i)] = held.position(held.count() - have + i);
    }
    return queries;
  }

  // Fails unless the window of the layer ends with the newest token. Attention weights that the
  // engine gave will do, unless the queries themselves are wanted.
  void demand_window(int layer, bool queries = false) const {
    const auto& book = layers[uz(layer)];
    bool given = !queries;
    for (const Matrix& own : book.attention) given = given && own.size() > 0;
    if (given) return;
    if (book.window.count() == 0 ||
        to_int(book.window.position(book.window.count() - 1)) != book.next - 1)
      fail("queries: the policy needs the attention of the newest tokens of layer ", layer,
           "; call attend() or observe() after append() and before compress()");
  }
  // Fails unless every token of the layer was observed.
  void demand_all(int layer) const {
    const auto& book = layers[uz(layer)];
    if (book.observed < book.seen())
      fail("queries: the policy needs the attention of every token, but layer ", layer, " saw ",
           book.observed, " of ", book.seen(), "; call attend() or observe() after every append()");
  }
};

}  // namespace detail
LESSKV_END_NAMESPACE
