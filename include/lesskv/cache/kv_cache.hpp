// SPDX-License-Identifier: MIT
// KVCache: the keys and values of one sequence, per layer and per KV head, compressed by the
// policies that were named.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "attend.hpp"
#include "head_store.hpp"
#include "planner.hpp"

LESSKV_BEGIN_NAMESPACE

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
template <class... Ps>
class KVCache {
 public:
  explicit KVCache(const Shape& shape, Ps... policies) : planner_(shape, std::move(policies)...) {
    make_stores();
  }

  const Shape& shape() const { return planner_.shape(); }
  // Loops over heads go through it; default: the calling thread.
  void set_executor(Executor executor) { planner_.set_executor(std::move(executor)); }

  // New rows of one layer: keys (after RoPE) [token, kv_head, head_dim] and values [token, kv_head,
  // value_dim], any strides, f32, f16 or bf16; stored as Shape::dtype. Positions ascend; default:
  // the next ones.
  void append(int layer, const View& keys, const View& values,
              std::span<const Position> positions = {}) {
    planner_.check_append(layer, keys.tokens, positions);
    detail::check(keys, "keys");
    detail::check(values, "values");
    if (values.tokens != keys.tokens)
      fail("values: ", values.tokens, " tokens, but keys has ", keys.tokens);
    Rollback rollback{*this, layer};
    const Shape& s = shape();
    thread_local detail::Floats scratch;
    float* k = scratch.reserve(detail::block_rows * (s.head_dim + s.value_width()));
    float* v = k + detail::block_rows * s.head_dim;
    for (int h = 0; h < s.kv_heads; ++h)
      for (Index t = 0; t < keys.tokens; t += detail::block_rows) {
        const Index n = std::min(detail::block_rows, keys.tokens - t);
        for (Index r = 0; r < n; ++r) {
          detail::read_row(keys, t + r, h, s.head_dim, k + r * s.head_dim);
          detail::read_row(values, t + r, h, s.value_width(), v + r * s.value_width());
        }
        check_numbers("keys", layer, h, k, n * s.head_dim);
        check_numbers("values", layer, h, v, n * s.value_width());
        store(layer, h).append(k, v, n);
      }
    planner_.append(layer, keys.tokens, positions);
    rollback.armed = false;
  }

  // Attention of new queries [token, query_head, head_dim] over everything held, the rows of the
  // same pass included: out[token][query_head][value_dim], f32. Causal by position. The queries
  // also go to the policies that want them. A query that sees no row gives zeros.
  void attend(int layer, const View& queries, float* out, const AttendOptions& options = {}) {
    planner_.check_layer(layer);
    detail::check(queries, "queries");
    const Shape& s = shape();
    thread_local detail::Floats scratch;
    const float* plain = detail::read_all(queries, s.query_heads, s.head_dim, scratch);
    planner_.check_queries(layer, plain, queries.tokens);
    check_options(layer, queries.tokens, options);
    if (queries.tokens == 0) return;
    if (planner_.needs_queries()) {
      const StoreSource source(*this);
      planner_.observe_rows(layer, plain, queries.tokens, source, options.positions, options.scale);
    }
    detail::run(planner_.executor(), s.kv_heads, [&](Index h) {
      attend_head(layer, static_cast<int>(h), plain, queries.tokens, out, options);
    });
  }

  // For an engine with its own attention kernel, instead of attend(): the queries of the pass, or
  // the attention weights themselves ([w * group, rows held] of one KV head, rows sum to 1). Only
  // needed if a policy asks for them.
  void observe(int layer, const View& queries, std::span<const Position> positions = {},
               float scale = 0) {
    planner_.observe(layer, queries, StoreSource(*this), positions, scale);
  }
  void observe(int layer, int head, const Rows& attention) {
    planner_.observe(layer, head, attention);
  }

  // Attention weights of any queries [token, query_head, head_dim] over the rows held by one KV
  // head: [tokens * group, rows], query-major, then query head; each row sums to 1. Causal by
  // position; the queries are those of the newest rows unless positions are given. Changes nothing.
  Matrix attention(int layer, int head, const View& queries,
                   std::span<const Position> positions = {}, float scale = 0) const {
    return planner_.attention(layer, head, queries, StoreSource(*this), positions, scale);
  }

  // Call after every forward pass, when all layers are appended. Does nothing when nothing can go.
  void compress() {
    const StoreSource source(*this);
    const auto price = [this](std::span<const Index> rows, bool trimmed) {
      return bytes_for(rows, trimmed);
    };
    const Pricing& pricing = std::cref(price);
    if (!planner_.due(source, pricing)) {
      if (coded_) seal();
      return planner_.mark();
    }
    carry_out(planner_.plan(source, pricing));
  }

  // During a prefill that goes layer by layer, after the whole prompt went through `layer`: drops
  // what cannot stay whatever the other layers need, so that the peak is lower; the last layer ends
  // the pass as compress() does, with the same rows. Only with a budget that shrinks as layers
  // arrive: ZigZagKV, or none.
  void compress(int layer) {
    planner_.check_layer(layer);
    static_assert(detail::CheckCascade<Ps...>::ok);
    if (layer == shape().layers - 1) return compress();
    carry_out(planner_.plan(layer, StoreSource(*this)));
  }

  // Budgeters that measured once (ZigZagKV, UNComp) measure again at the next compression that can
  // drop rows: for a sequence whose text has changed its kind.
  void remeasure() { planner_.remeasure(); }
  // States of a policy, one per head [layer * kv_heads + head]: what it observed and measured.
  template <class P>
  std::span<const state_of<P>> states() const {
    return planner_.template states<P>();
  }

  // Read back one KV head: rows in position order, as f32 [rows, head_dim] and [rows, value_dim].
  Index size(int layer, int head) const { return planner_.size(layer, head); }
  std::vector<Position> positions(int layer, int head) const {
    return planner_.positions(layer, head);
  }
  Matrix keys(int layer, int head) const {
    Matrix out(size(layer, head), shape().head_dim);
    store(layer, head)
        .read(0, out.rows(), out.data(), nullptr, planner_.position_data(layer, head));
    return out;
  }
  Matrix values(int layer, int head) const {
    Matrix out(size(layer, head), shape().value_width());
    store(layer, head)
        .read(0, out.rows(), nullptr, out.data(), planner_.position_data(layer, head));
    return out;
  }
  Position next_position(int layer) const { return planner_.next_position(layer); }

  // Forgets everything at position p and later; the next token gets at most position p. Lossless
  // down to exact_from().
  void truncate(Position p) {
    planner_.truncate(p);
    for (int l = 0; l < shape().layers; ++l)
      for (int h = 0; h < shape().kv_heads; ++h) store(l, h).truncate(planner_.size(l, h));
  }
  Position exact_from() const { return planner_.exact_from(); }

  // A second sequence that starts as this one: blocks are shared until one of the two writes to
  // them.
  KVCache fork() const { return *this; }

  // As new, with the same policies.
  void clear() {
    planner_.clear();
    make_stores();
    peak_bytes_ = 0;
    compressions_ = 0;
  }

  // Everything held: rows with their slack, positions, columns and states of policies, retained
  // queries. Blocks shared with a fork count in both.
  std::size_t bytes() const {
    std::size_t sum = sizeof(*this) + planner_.bytes() + bytes_shared();
    for (const auto& store : stores_) sum += sizeof(store) + store.bytes();
    return sum;
  }
  // Within bytes(): dictionaries and tables that any number of caches with the same codec share;
  // each counted once.
  std::size_t bytes_shared() const {
    std::size_t sum = 0;
    each_shared([&](const SideCodec& codec) { sum += codec.shared_bytes(); });
    return sum;
  }

  Stats stats() const {
    Stats out;
    for (int l = 0; l < shape().layers; ++l)
      for (int h = 0; h < shape().kv_heads; ++h) {
        out.seen += planner_.seen(l);
        out.held += size(l, h);
      }
    out.dropped = out.seen - out.held;
    out.bytes = bytes();
    out.bytes_shared = bytes_shared();
    out.peak_bytes = std::max(peak_bytes_, out.bytes);
    out.compressions = compressions_;
    return out;
  }

 private:
  // Reads rows where they are stored.
  class StoreSource final : public RowSource {
   public:
    explicit StoreSource(const KVCache& cache) : cache_(cache) {}
    void read(int layer, int head, Index first, Index count, float* keys,
              float* values) const override {
      cache_.store(layer, head)
          .read(first, count, keys, values, cache_.planner_.position_data(layer, head));
    }
    void logits(int layer, int head, const float* queries, Index query_rows, Index rows,
                float scale, float* out, Index out_stride) const override {
      thread_local std::vector<BlockRef> blocks;
      thread_local detail::Floats workspace;
      AttendTask task = cache_.task(layer, head, rows, blocks);
      task.queries = queries;
      task.query_rows = query_rows;
      task.scale = scale;
      task.workspace = workspace.reserve(attend_workspace(task));
      kernels().logits(task, out, out_stride);
    }

    bool lend(int layer, int head, Index first, Index count, std::vector<BlockRef>& blocks,
              Tiles& out) const override {
      const detail::HeadStore& from = cache_.store(layer, head);
      if (from.coded()) return false;  // blocks need not be full
      blocks.clear();
      for (Index b = first / detail::block_rows; b * detail::block_rows < first + count; ++b)
        blocks.push_back(from.block(b));
      out = {blocks, first % detail::block_rows, cache_.shape().dtype, cache_.shape().head_dim,
             cache_.shape().value_width()};
      return true;
    }

   private:
    const KVCache& cache_;
  };

  void carry_out(const Plan& plan) {
    std::size_t plan_bytes = 0;
    for (const HeadPlan& head : plan.heads)
      plan_bytes += head.kept.capacity() * sizeof(std::int32_t);
    const auto encoders = hold_encoders();
    peak_bytes_ = std::max(peak_bytes_, bytes() + plan_bytes + encoder_bytes());
    const bool trim = planner_.prefill();
    detail::run(planner_.executor(), shape().heads(), [&](Index i) {
      const HeadPlan& head = plan.heads[detail::uz(i)];
      if (coded_)
        seal(i, head.all ? std::span<const std::int32_t>{} : head.kept, head.all, head.closed,
             trim);
      else if (!head.all)
        stores_[detail::uz(i)].keep(head.kept, trim);
    });
    if (!plan.empty()) ++compressions_;
    planner_.commit(plan);
  }

  // Takes back rows that were written before an error.
  struct Rollback {
    KVCache& cache;
    int layer;
    bool armed = true;
    ~Rollback() {
      if (!armed) return;
      for (int h = 0; h < cache.shape().kv_heads; ++h)
        cache.store(layer, h).truncate(cache.planner_.size(layer, h));
    }
  };

  // The codecs of a head: the last policy that has one for a side decides.
  void make_stores() {
    const Shape& s = shape();
    stores_.clear();
    stores_.reserve(detail::uz(s.heads()));
    std::shared_ptr<const SideCodec> keys, values;
    for (int l = 0; l < s.layers; ++l)
      for (int h = 0; h < s.kv_heads; ++h) {
        planner_.each_policy([&](const auto& policy) {
          using P = std::decay_t<decltype(policy)>;
          if constexpr (Codec<P>) {
            if (l + h > 0 && !codec_per_head(policy)) return;
            if (auto of = make_codec(policy, Side::keys, s.head_dim, l, h)) keys = std::move(of);
            if (auto of = make_codec(policy, Side::values, s.value_width(), l, h))
              values = std::move(of);
          }
        });
        stores_.emplace_back(s.head_dim, s.value_width(), s.dtype, keys, values);
        coded_ = coded_ || keys || values;
      }
  }

  // Tables of the codecs, for as long as blocks are encoded.
  std::vector<std::shared_ptr<const void>> hold_encoders() const {
    std::vector<std::shared_ptr<const void>> out;
    each_shared([&](const SideCodec& codec) {
      if (auto encoder = codec.encoder()) out.push_back(std::move(encoder));
    });
    return out;
  }
  std::size_t encoder_bytes() const {
    std::size_t sum = 0;
    each_shared([&](const SideCodec& codec) { sum += codec.encoder_bytes(); });
    return sum;
  }
  // Codecs that share something, one for each of what they share.
  template <class Visit>
  void each_shared(Visit&& visit) const {
    std::vector<const void*> seen;
    for (const auto& store : stores_)
      for (const SideCodec* codec : {store.key_codec(), store.value_codec()}) {
        if (!codec || !codec->identity()) continue;
        if (std::find(seen.begin(), seen.end(), codec->identity()) != seen.end()) continue;
        seen.push_back(codec->identity());
        visit(*codec);
      }
  }

  // Encodes the closed rows of a head, of those that stay.
  void seal(Index i, std::span<const std::int32_t> kept, bool all, Index closed, bool whole) {
    const int layer = static_cast<int>(i / shape().kv_heads),
              head = static_cast<int>(i % shape().kv_heads);
    detail::HeadStore& store = stores_[detail::uz(i)];
    const Index rows = all ? store.rows() : static_cast<Index>(kept.size());
    const auto exact = planner_.exact_rows(layer, rows, closed);
    if (all) {
      if (!seals(i, closed, whole)) return;
      thread_local std::vector<std::int32_t> every;
      every.resize(detail::uz(rows));
      std::iota(every.begin(), every.end(), 0);
      kept = every;
    }
    store.compact(kept, exact.front, rows - exact.open, whole, planner_.position_data(layer, head));
  }
  // Whether rows of a head of which all stay would be encoded now.
  bool seals(Index i, Index closed, bool whole) const {
    const detail::HeadStore& store = stores_[detail::uz(i)];
    const auto exact =
        planner_.exact_rows(static_cast<int>(i / shape().kv_heads), store.rows(), closed);
    const Index waiting = store.uncoded(exact.front, store.rows() - exact.open);
    return whole ? waiting > 0 : waiting >= detail::block_rows;
  }
  void seal() {
    const bool whole = planner_.prefill();
    bool any = false;
    for (Index i = 0; i < shape().heads() && !any; ++i) {
      const int layer = static_cast<int>(i / shape().kv_heads),
                head = static_cast<int>(i % shape().kv_heads);
      any = seals(i, planner_.judged_rows(layer, head), whole);
    }
    if (!any) return;
    const auto encoders = hold_encoders();
    peak_bytes_ = std::max(peak_bytes_, bytes() + encoder_bytes());
    detail::run(planner_.executor(), shape().heads(), [&](Index i) {
      const int layer = static_cast<int>(i / shape().kv_heads),
                head = static_cast<int>(i % shape().kv_heads);
      seal(i, {}, true, planner_.judged_rows(layer, head), whole);
    });
  }

  detail::HeadStore& store(int layer, int head) {
    return stores_[detail::uz(layer * shape().kv_heads + head)];
  }
  const detail::HeadStore& store(int layer, int head) const {
    return stores_[detail::uz(layer * shape().kv_heads + head)];
  }

  void check_numbers(const char* name, int layer, int head, const float* x, Index n) const {
    if (!detail::fits(x, n, shape().dtype))
      fail(name, ": layer ", layer, ", KV head ", head,
           " has a number that is NaN, infinite or too large for ", name_of(shape().dtype));
  }

  void check_options(int layer, Index tokens, const AttendOptions& options) const {
    const Shape& s = shape();
    if (!(options.scale >= 0) || !std::isfinite(options.scale))
      fail("scale: it must be positive, or 0 for the default");
    if (!(options.softcap >= 0) || !std::isfinite(options.softcap))
      fail("softcap: it must be positive, or 0 for none");
    if (!options.sink_logits.empty() &&
        options.sink_logits.size() != static_cast<std::size_t>(s.query_heads))
      fail("sink_logits: ", options.sink_logits.size(), " given for ", s.query_heads,
           " query heads");
    if (!options.positions.empty() && static_cast<Index>(options.positions.size()) != tokens)
      fail("positions: ", options.positions.size(), " given for ", tokens, " queries");
    if (options.positions.empty() && tokens > size(layer, 0))
      fail("queries: ", tokens, " tokens, but layer ", layer, " holds ", size(layer, 0),
           " rows; call append() first, or give positions");
    if (options.bias.empty()) return;
    if (options.bias.size() != static_cast<std::size_t>(s.kv_heads))
      fail("bias: ", options.bias.size(), " spans given for ", s.kv_heads, " KV heads");
    for (int h = 0; h < s.kv_heads; ++h)
      if (static_cast<Index>(options.bias[detail::uz(h)].size()) != size(layer, h))
        fail("bias: KV head ", h, " holds ", size(layer, h), " rows, but ",
             options.bias[detail::uz(h)].size(), " numbers were given");
  }

  // The first `rows` rows of a head, as a kernel reads them.
  AttendTask task(int layer, int head, Index rows, std::vector<BlockRef>& blocks) const {
    const detail::HeadStore& from = store(layer, head);
    blocks.clear();
    const std::uint32_t* positions = planner_.position_data(layer, head);
    for (Index b = 0; b < from.block_count() && from.first_row(b) < rows; ++b) {
      blocks.push_back(from.block(b));
      blocks.back().rows = std::min(blocks.back().rows, rows - from.first_row(b));
      blocks.back().positions = positions + from.first_row(b);
    }
    AttendTask task{};
    task.blocks = blocks.data();
    task.block_count = static_cast<Index>(blocks.size());
    task.dtype = shape().dtype;
    if (from.key_codec()) task.key_code = &from.key_codec()->code();
    if (from.value_codec()) task.value_code = &from.value_codec()->code();
    task.key_dim = shape().head_dim;
    task.value_dim = shape().value_width();
    return task;
  }

  void attend_head(int layer, int head, const float* queries, Index tokens, float* out,
                   const AttendOptions& options) const {
    const Shape& s = shape();
    const Index group = s.group(), rows = tokens * group, dim = s.head_dim, width = s.value_width();
    const Index held = size(layer, head);
    thread_local std::vector<BlockRef> blocks;
    thread_local std::vector<Index> visible;
    thread_local detail::Floats buffer, workspace, bias;
    AttendTask task = this->task(layer, head, held, blocks);
    float* at = buffer.reserve(rows * (dim + width + 2));
    float* num = at + rows * dim;
    float* max = num + rows * width;
    float* den = max + rows;
    visible.resize(detail::uz(rows));
    for (Index t = 0; t < tokens; ++t) {
      std::copy_n(queries + (t * s.query_heads + head * group) * dim, group * dim,
                  at + t * group * dim);
      const Index seen =
          options.mask ? held
          : options.positions.empty()
              ? held - (tokens - 1 - t)
              : planner_.rows_before(layer, head,
                                     Position{to_int(options.positions[detail::uz(t)]) + 1});
      for (Index g = 0; g < group; ++g) {
        const Index i = t * group + g;
        visible[detail::uz(i)] = seen;
        const bool sink = !options.sink_logits.empty();
        max[i] = sink ? options.sink_logits[detail::uz(head * group + g)]
                      : -std::numeric_limits<float>::infinity();
        den[i] = sink ? 1.f : 0.f;
      }
    }
    std::fill_n(num, rows * width, 0.f);
    task.queries = at;
    task.query_rows = rows;
    task.visible = visible.data();
    task.scale = options.scale > 0 ? options.scale : 1.f / std::sqrt(static_cast<float>(dim));
    task.softcap = options.softcap;
    const float* own = options.bias.empty() ? nullptr : options.bias[detail::uz(head)].data();
    task.bias = own;
    if (options.mask) {
      // A mask among the new rows is a bias of its own per query: 0, or -infinity.
      float* full = bias.reserve(rows * held);
      for (Index i = 0; i < rows; ++i)
        for (Index r = 0; r < held; ++r) {
          const Index fresh = r - (held - tokens);
          const bool hidden = fresh >= 0 && !options.mask[i / group * tokens + fresh];
          full[i * held + r] = hidden ? -std::numeric_limits<float>::infinity()
                               : own  ? own[r]
                                      : 0.f;
        }
      task.bias = full;
      task.bias_stride = held;
    }
    task.max = max;
    task.den = den;
    task.num = num;
    task.workspace = workspace.reserve(attend_workspace(task));
    kernels().attend(task);
    for (Index i = 0; i < rows; ++i) {
      const float scale = den[i] > 0 ? 1.f / den[i] : 0.f;
      float* to = out + (i / group * s.query_heads + head * group + i % group) * width;
      for (Index c = 0; c < width; ++c) to[c] = num[i * width + c] * scale;
    }
  }

  std::size_t bytes_for(std::span<const Index> rows, bool trimmed) const {
    std::size_t sum = sizeof(*this) + planner_.bytes_for(rows, trimmed);
    if (coded_) sum += bytes_shared();
    for (std::size_t i = 0; i < stores_.size(); ++i) {
      Index front = 0, open = 0;
      if (coded_) {
        const int layer = static_cast<int>(static_cast<Index>(i) / shape().kv_heads);
        // Rows that are not closed will not leave.
        const Index left =
            stores_[i].rows() -
            planner_.judged_rows(layer, static_cast<int>(static_cast<Index>(i) % shape().kv_heads));
        const auto exact = planner_.exact_rows(layer, rows[i], std::max<Index>(0, rows[i] - left));
        front = exact.front;
        open = exact.open;
      }
      sum += sizeof(stores_[i]) + stores_[i].bytes_for(rows[i], front, open, trimmed);
    }
    return sum;
  }

  Planner<Ps...> planner_;
  std::vector<detail::HeadStore> stores_;
  bool coded_ = false;
  std::size_t peak_bytes_ = 0;
  Index compressions_ = 0;
};

template <class... Ps>
KVCache(Shape, Ps...) -> KVCache<Ps...>;

LESSKV_END_NAMESPACE
