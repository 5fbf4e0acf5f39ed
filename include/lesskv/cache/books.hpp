// SPDX-License-Identifier: MIT
// Books: the state that a planner keeps for all layers and heads, and the views of it that policies
// get.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/executor.hpp"
#include "any_policy.hpp"
#include "ledger.hpp"
#include "query_window.hpp"
#include "row_source.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

struct LayerBook {
  std::vector<Ledger> heads;
  std::int64_t next = 0;         // position of the next token
  Index observed = 0;            // queries seen
  bool probed = false;           // probes were seen
  std::int64_t probes_from = 0;  // while there are probes: the first position that is theirs
  Index judged_at = 0;           // rows seen at the last judgement
  Index committed_at = 0;        // rows seen at the last commit
  float scale = 0;               // of the attention logits; 0 before any query was seen
  QueryWindow window;
  std::vector<Matrix>
      attention;  // the engine's own weights of the newest queries, per head, until the next commit
  // After compress(layer), until compress(): the scores of the rows held, per head, and the un-pooled
  // ones.
  std::vector<std::vector<float>> scores, raw;
  std::vector<char> measured;  // by policy: it measured this layer
  std::uint64_t version = 0;   // grows with everything that a plan depends on

  Index seen() const { return heads[0].seen; }
  void forget_scores() {
    scores = {};
    raw = {};
  }
};

struct Books {
  Shape shape;
  Keep keep;
  std::vector<AnyPolicy> policies;
  std::vector<LayerBook> layers;
  // Per policy, one state a head [layer * kv_heads + head]: a Budgeter reads those of all heads.
  std::vector<AnyStates> states;
  std::vector<int> first_column;  // of each policy, in the ledgers
  int columns = 0;
  Index window = 0;      // queries to hold: the most that any policy still asks for
  bool probing = false;  // rows and queries that come are probes
  Executor executor;
  std::shared_ptr<const Rotation> rotation;  // if a policy asks for it

  Books(const Shape& s, const Keep* amount, std::vector<AnyPolicy> p);

  // What CheckPolicies says at compile time.
  void check_roles(bool has_keep) const;

  // No rows, no states.
  void reset();

  void reset_states();
  void forget_measurements();

  // The first policy of a role, &PolicyTraits::scorer for instance; the number of policies if there is
  // none.
  std::size_t index_of(bool PolicyTraits::*role) const;

  // Bytes of all states.
  std::size_t state_bytes() const;
  std::size_t rotation_bytes() const { return rotation ? rotation->bytes() : 0; }

  // Policy i measured every layer. Rows of a layer that holds none yet may still come.
  bool measured(std::size_t i) const;

  // A Budgeter that has measured wants no queries any more.
  void update_window();

  Ledger& ledger(Index i) { return layers[uz(i / shape.kv_heads)].heads[uz(i % shape.kv_heads)]; }
  const Ledger& ledger(Index i) const {
    return layers[uz(i / shape.kv_heads)].heads[uz(i % shape.kv_heads)];
  }

  // True if a policy wants to see queries, or attention computed from them, as they come.
  bool has_observers() const {
    return observers_ask(Need::queries) || observers_ask(Need::attention);
  }

  // A head as a policy sees it, from row `base` on, `count` rows. `positions` is scratch that must
  // outlive the view.
  Head view(std::size_t policy, int layer, int head, Index base, Index count,
            std::vector<Position>& positions) const;

  // Positions of the newest `tokens` rows of a layer.
  void newest_positions(int layer, Index tokens, std::vector<Position>& out) const;

  // Softmax weights of the given queries of one KV head over the first `rows` rows: out [tokens *
  // group][rows]. queries: [tokens][query_heads][head_dim]. scale: of the logits, 0 for that of the
  // last queries seen.
  void attention(int layer, int head, const float* queries, std::span<const Position> at,
                 Index rows, const RowSource& source, float* out, float scale = 0) const;

  // Shows new queries of one KV head to every observer, a few at a time so that the attention of a
  // block stays small.
  void observe(int layer, int head, const float* queries, std::span<const Position> at,
               const RowSource& source);

  // The same for queries [first, first + count), whose attention [count * group][rows] somebody has:
  // attend() did.
  void show_part(int layer, int head, const float* queries, std::span<const Position> at,
                 Index first, Index count, const Rows& attended);

  // Calls observe() of every observer with what it asked for.
  void show(int layer, int head, Index rows, const Rows& attended, const Rows& asked,
            std::span<const Position> at);

  bool observers_ask(Need one) const;

  // Attention weights of the newest w queries of a head: the engine's own if it gave them, else
  // computed from the queries held. [w * group][rows].
  Matrix window_attention(int layer, int head, Index w, const RowSource& source) const;

  // The newest w queries of a layer, or as many as are held: [w][query_heads * head_dim].
  Matrix window_queries(int layer, Index w, std::vector<Position>& at) const;

  // Fails unless the window of the layer ends with the newest token. Attention weights that the
  // engine gave will do, unless the queries themselves are wanted.
  void demand_window(int layer, bool queries = false) const;
  // Fails unless every token of the layer was observed.
  void demand_all(int layer) const;
  // Fails unless probes of the layer were seen.
  void demand_probes(int layer) const;
};

}  // namespace detail
LESSKV_END_NAMESPACE
