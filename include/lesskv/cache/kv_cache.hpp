// SPDX-License-Identifier: MIT
// KVCache: the keys and values of one sequence, per layer and per KV head, compressed by the
// policies that were named.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "attend.hpp"
#include "planner.hpp"

LESSKV_BEGIN_NAMESPACE

namespace detail {
class HeadStore;
}

struct Stats {
  Index seen = 0;     // rows ever appended, over all layers and heads
  Index held = 0;     // rows held now
  Index dropped = 0;  // rows that compress() dropped
  std::size_t bytes = 0;
  std::size_t bytes_shared = 0;  // within it: what many caches share (dictionaries)
  std::size_t peak_bytes = 0;  // the most that was ever held, as seen at compress() and at stats()
  Index compressions = 0;      // calls of compress() in which rows left
};

// One cache is one sequence. append, attend and observe may run at the same time for different
// layers; const functions at any time beside each other; compress, truncate and clear alone. Forks
// are independent of each other in every way. After an error the cache is as it was.
//
// AnyCache: its policies are known at run time, of any role and in any order. `keep` may be null
// where nothing says which rows stay.
class AnyCache {
 public:
  AnyCache(const Shape& shape, const Keep* keep, std::vector<AnyPolicy> policies);
  ~AnyCache();
  AnyCache(const AnyCache&);
  AnyCache(AnyCache&&) noexcept;
  AnyCache& operator=(const AnyCache&);
  AnyCache& operator=(AnyCache&&) noexcept;

  const Shape& shape() const { return planner_.shape(); }
  // Loops over heads go through it; default: the calling thread.
  void set_executor(Executor executor) { planner_.set_executor(std::move(executor)); }

  // New rows of one layer: keys (after RoPE) [token, kv_head, head_dim] and values [token, kv_head,
  // value_dim], any strides, f32, f16 or bf16; stored as Shape::dtype. Positions ascend; default:
  // the next ones.
  void append(int layer, const View& keys, const View& values,
              std::span<const Position> positions = {});

  // Room for `tokens` more entries of every head, each head in one stretch of memory: for a prompt
  // that is appended in chunks (one call of append does the same for its own tokens). The room counts
  // in bytes(); a compression that drops rows gives back what is left of it.
  void reserve(Index tokens);

  // Attention of new queries [token, query_head, head_dim] over everything held, the rows of the
  // same pass included: out[token][query_head][value_dim], f32. Causal by position. The queries
  // also go to the policies that want them. A query that sees no row gives zeros.
  void attend(int layer, const View& queries, float* out, const AttendOptions& options = {});

  // For an engine with its own attention kernel, instead of attend(): the queries of the pass, or
  // the attention weights themselves ([w * group, rows held] of one KV head, rows sum to 1). Only
  // needed if a policy asks for them.
  void observe(int layer, const View& queries, std::span<const Position> positions = {},
               float scale = 0);
  void observe(int layer, int head, const Rows& attention) {
    planner_.observe(layer, head, attention);
  }
  // A policy looks at the attention of every query (H2O): attend() has it at hand, observe() with
  // queries computes it.
  bool wants_attention() const { return planner_.wants_attention(); }

  // Probes: queries that are no part of the sequence, of a replay of the context for instance. What is
  // appended, attended and observed in between are theirs: policies that ask for probes (KVzip) see
  // their attention over the rows held and over their own, all others see nothing of them. At the end
  // their rows are gone and all else is as before. Meanwhile there is no compress() and no truncate().
  void begin_probes() { planner_.begin_probes(); }
  void end_probes();
  bool needs_probes() const { return planner_.needs_probes(); }

  // Attention weights of any queries [token, query_head, head_dim] over the rows held by one KV
  // head: [tokens * group, rows], query-major, then query head; each row sums to 1. Causal by
  // position; the queries are those of the newest rows unless positions are given. Changes nothing.
  Matrix attention(int layer, int head, const View& queries,
                   std::span<const Position> positions = {}, float scale = 0) const;

  // Call after every forward pass, when all layers are appended. Does nothing when nothing can go.
  void compress();

  // During a prefill that goes layer by layer, after the whole prompt went through `layer`: drops
  // what cannot stay whatever the other layers need, so that the peak is lower; the last layer ends
  // the pass as compress() does, with the same rows. Only with a budget that shrinks as layers
  // arrive: ZigZagKV, or none.
  void compress(int layer);

  // Budgeters that measured once (ZigZagKV, UNComp) measure again at the next compression that can
  // drop rows: for a sequence whose text has changed its kind.
  void remeasure() { planner_.remeasure(); }
  // States of a policy, one per head [layer * kv_heads + head]: what it observed and measured.
  template <class P>
  std::span<const state_of<P>> states() const {
    return planner_.states<P>();
  }

  // Read back one KV head: rows in position order, as f32 [rows, head_dim] and [rows, value_dim].
  Index size(int layer, int head) const { return planner_.size(layer, head); }
  std::vector<Position> positions(int layer, int head) const {
    return planner_.positions(layer, head);
  }
  // With a Merger (Centroids): what attention adds to the logits of every row, the log of how many
  // rows of the sequence it stands for.
  std::vector<float> log_mass(int layer, int head) const { return planner_.log_mass(layer, head); }
  Matrix keys(int layer, int head) const;
  Matrix values(int layer, int head) const;
  Position next_position(int layer) const { return planner_.next_position(layer); }

  // Forgets everything at position p and later; the next token gets at most position p. Lossless
  // down to exact_from().
  void truncate(Position p);
  Position exact_from() const { return planner_.exact_from(); }

  // A second sequence that starts as this one: blocks are shared until one of the two writes to
  // them.
  AnyCache fork() const { return *this; }

  // As new, with the same policies.
  void clear();

  // Everything held: rows with their slack, positions, columns and states of policies, retained
  // queries. Blocks shared with a fork count in both.
  std::size_t bytes() const;
  // Within bytes(): dictionaries and tables that any number of caches with the same codec share;
  // each counted once.
  std::size_t bytes_shared() const;

  Stats stats() const;

 private:
  class StoreSource;
  class StorePricing;
  struct Rollback;

  void carry_out(const Plan& plan);

  // The codecs of a head: the last policy that has one for a side decides.
  void make_stores();

  void allot_bits(std::span<const HeadPlan> heads);

  // Encodes the closed rows of a head, of those that stay.
  void seal(Index i, std::span<const std::int32_t> kept, bool all, Index closed, bool whole);
  void seal();
  bool seals(Index i, Index closed, bool whole) const;
  // Tables of the codecs, for as long as blocks are encoded.
  std::vector<std::shared_ptr<const void>> hold_encoders() const;
  std::size_t encoder_bytes() const;
  // Codecs that share something, one for each of what they share.
  std::vector<const SideCodec*> sharing_codecs() const;

  detail::HeadStore& store(int layer, int head);
  const detail::HeadStore& store(int layer, int head) const;

  void check_numbers(const char* name, int layer, int head, const float* x, Index n) const;

  void check_options(int layer, Index tokens, const AttendOptions& options) const;

  // Blocks [begin, end) of a head, as far as they hold the first `rows` rows, as a kernel reads them.
  AttendTask task(int layer, int head, Index rows, Index begin, Index end,
                  std::vector<BlockRef>& blocks) const;

  // Queries [first, last) of a pass of `tokens` queries.
  struct Pass {
    const float* queries;
    Index tokens, first, last;
  };
  // The attention weights of a pass over one head, and what completes them.
  struct Weights {
    float *data = nullptr, *block_max = nullptr;  // [rows][stride], [rows][blocks]
    Index stride = 0, blocks = 0;
    float *max = nullptr, *den = nullptr;  // [rows], of all parts
  };
  // weights: null, or one for each KV head, of a pass of few rows.
  void attend_heads(int layer, const float* queries, Index tokens, float* out,
                    const AttendOptions& options, const Weights* weights = nullptr) const;
  void attend_part(int layer, int head, Index part, Index count, const Pass& pass, float* partial,
                   const AttendOptions& options, const Weights* weights = nullptr) const;
  void merge_parts(int head, Index count, const Pass& pass, const float* partials, float* out,
                   const Weights* weights = nullptr) const;
  // attend(), and the attention on the way to the policies that look at it: it is computed once.
  void attend_and_show(int layer, const float* queries, Index tokens, float* out,
                       const AttendOptions& options);
  void show(int layer, int head, const Pass& pass, std::span<const Position> positions,
            const Weights& weights);

  std::size_t bytes_for(std::span<const Index> rows, bool least) const;
  std::size_t most_bytes(std::span<const HeadPlan> heads, Index steps) const;

  AnyPlanner planner_;
  std::vector<detail::HeadStore> stores_;
  bool coded_ = false;
  std::size_t peak_bytes_ = 0;
  Index compressions_ = 0;
};

// Its policies are known at compile time: what does not fit together does not compile.
template <class... Ps>
class KVCache : public AnyCache {
  static_assert(detail::CheckPolicies<Ps...>::ok);

 public:
  explicit KVCache(const Shape& shape, Ps... policies)
      : AnyCache(shape, detail::keep_of(policies...), detail::list_policies(policies...)) {}

  using AnyCache::compress;
  void compress(int layer) {
    static_assert(detail::CheckCascade<Ps...>::ok);
    AnyCache::compress(layer);
  }
  template <class P>
  std::span<const state_of<P>> states() const {
    static_assert((std::same_as<P, Ps> || ...),
                  "lesskv: states<P>(): P is none of the policies of this cache");
    return AnyCache::states<P>();
  }
  KVCache fork() const { return *this; }
};

template <class... Ps>
KVCache(Shape, Ps...) -> KVCache<Ps...>;

LESSKV_END_NAMESPACE

#if !LESSKV_DECLARE_ONLY
#include "kv_cache.inc"
#endif
