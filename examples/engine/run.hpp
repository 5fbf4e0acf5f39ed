// SPDX-License-Identifier: MIT
// The forward pass, in the spirit of llama2.c. Attention is lesskv's and nothing else: every layer
// appends its keys and values to the cache and asks it to attend. Queries, keys and values are
// handed over after RoPE, channels half-split (as Hugging Face has them), token-major. Any
// KVCache<...> fits; after each forward() the caller calls compress().
#pragma once

#include <chrono>
#include <functional>
#include <lesskv/core/shape.hpp>
#include <lesskv/core/view.hpp>
#include <span>
#include <string>
#include <vector>

#include "drop_hidden.hpp"
#include "model.hpp"

namespace engine {

// What a cache for this model looks like.
inline lesskv::Shape cache_shape(const Model& model, lesskv::DType dtype = lesskv::DType::f16) {
  const Config& c = model.config();
  lesskv::Shape shape;
  shape.layers = static_cast<int>(c.layers);
  shape.query_heads = static_cast<int>(c.query_heads);
  shape.kv_heads = static_cast<int>(c.kv_heads);
  shape.head_dim = static_cast<int>(c.head_dim);
  shape.dtype = dtype;
  lesskv::Rope rope;
  rope.frequencies = model.frequencies();
  shape.rope = rope;
  return shape;
}

// The tensors of one layer for some tokens of a pass, valid during the call that hands them over:
// queries [token][query_head][head_dim], keys and values [token][kv_head][head_dim].
struct LayerTensors {
  int layer = 0;
  // Counted from the first token of the call; where tokens were dropped, from the first that is
  // left.
  Index first_token = 0, tokens = 0;
  const float *queries = nullptr, *keys = nullptr, *values = nullptr;
  std::span<const std::int64_t> positions = {};
};

// The state between layers, for tests: entry 0 is the embedding, entry l the output of layer l, and
// the last one (l = layers) is taken after the final norm. hidden is [token][width].
struct HiddenState {
  int entry = 0;
  Index first_token = 0, tokens = 0;
  const float* hidden = nullptr;
  std::span<const std::int64_t> positions = {};
};

struct ForwardOptions {
  Index logits = 1;  // of how many tokens at the end logits are wanted; 0: none, every_token: all
  std::function<void(const LayerTensors&)> on_tensors = {};
  std::function<void(const HiddenState&)> on_hidden = {};
};
constexpr Index every_token = -1;

// The work space of one thread of generation. Not to be used by two threads at once; the Model may
// be.
class Run {
 public:
  // Longer inputs are cut into passes of this many tokens, which bounds the work space.
  static constexpr Index pass_tokens = 512;

  explicit Run(const Model& model) : model_(&model) {}

  // Rows of matrix products go through it; default: the calling thread.
  void set_executor(Executor executor) { executor_ = std::move(executor); }

  const Model& model() const { return *model_; }

  // Feeds tokens that stand at first_position, first_position + 1, ... (however few rows the cache
  // still holds) and returns the logits of the last options.logits tokens, [token][vocabulary],
  // valid until the next call. Throws Error for a token outside the vocabulary, before the cache is
  // touched.
  template <class Cache>
  std::span<const float> forward(Cache& cache, std::span<const std::int32_t> tokens,
                                 std::int64_t first_position, const ForwardOptions& options = {}) {
    const Index count = static_cast<Index>(tokens.size());
    const Index wanted = check(tokens, first_position, options);
    for (Index first = 0; first < count; first += pass_tokens) {
      embed(tokens.subspan(static_cast<std::size_t>(first),
                           static_cast<std::size_t>(std::min(pass_tokens, count - first))),
            first_position + first, pass_);
      for (int l = 0; l < layers(); ++l) run_layer(cache, l, pass_, first, options);
      finish(pass_, first, count, wanted, options);
    }
    return logits(wanted);
  }

  // The same for a whole prompt, all of it through a layer before the next one, so that the tokens
  // that matter little can be left out on the way: the groups of layers run on fewer and fewer
  // tokens (UNComp). Positions stay; the cache holds fewer rows in later layers. The work space is
  // as before, and (width + head_dim) floats a token between the layers. With all tokens in every
  // group the result is forward()'s. Logits: of tokens that are sure to stay, those of the window.
  template <class Cache>
  std::span<const float> prefill(Cache& cache, std::span<const std::int32_t> tokens,
                                 std::int64_t first_position, const DropHidden& drop,
                                 const ForwardOptions& options = {}) {
    Index count = static_cast<Index>(tokens.size());
    const Index wanted = check(tokens, first_position, options);
    if (count == 0) throw Error("prefill: there are no tokens");
    const std::vector<Index> budgets = drop.budgets_for(count);
    lesskv::check_stages(drop.groups, budgets, layers(), count, drop.pins);
    if (budgets.back() < count && drop.pins.window < std::max<Index>(1, wanted))
      throw Error(
          "prefill: the window of tokens that stay must hold at least one, and all whose logits "
          "are asked for");
    std::vector<Pass> passes;
    for (Index first = 0; first < count; first += pass_tokens)
      embed(tokens.subspan(static_cast<std::size_t>(first),
                           static_cast<std::size_t>(std::min(pass_tokens, count - first))),
            first_position + first, passes.emplace_back());
    int layer = 0;
    for (std::size_t group = 0; group < budgets.size(); ++group) {
      if (budgets[group] < count) {
        const auto start = std::chrono::steady_clock::now();
        const std::vector<std::int32_t> kept =
            choose(cache, layer - 1, count, budgets[group], drop.pins);
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        if (drop.on_kept) drop.on_kept({layer, kept, taken.count()});
        passes = keep(std::move(passes), kept);
        count = budgets[group];
      }
      const bool border = group + 1 < budgets.size() && budgets[group + 1] < count;
      for (int left = drop.groups[group]; left > 0; --left, ++layer) {
        Index first = 0;
        for (Pass& pass : passes) {
          run_layer(cache, layer, pass, first, options);
          if (border && left == 1) hold_queries(pass, first, count, drop.pins.window);
          first += pass.hidden.tokens();
        }
      }
    }
    Index first = 0;
    for (Pass& pass : passes) {
      finish(pass, first, count, wanted, options);
      first += pass.hidden.tokens();
    }
    return logits(wanted);
  }

  // Memory of the work space.
  std::size_t bytes() const;

 private:
  // Up to pass_tokens tokens on their way through the layers.
  struct Pass {
    Panels hidden, cosines, sines;
    std::vector<std::int64_t> positions;
  };

  int layers() const { return static_cast<int>(model_->config().layers); }
  // Fails for bad arguments; how many tokens' logits are wanted.
  Index check(std::span<const std::int32_t> tokens, std::int64_t first_position,
              const ForwardOptions& options) const;
  void embed(std::span<const std::int32_t> tokens, std::int64_t first_position, Pass& pass);
  void point_rows(Index tokens);
  void project(int layer, const Pass& pass);  // norm, Q, K, V, RoPE; leaves them in rows_
  // Output projection of rows_.attended, then the feed-forward network.
  void finish_layer(int layer, Pass& pass);
  void show_hidden(const ForwardOptions& options, int entry, const Pass& pass, Index first_token);
  // Behind the last layer: logits of those tokens of the pass that are among the last `wanted`.
  void finish(const Pass& pass, Index first, Index count, Index wanted,
              const ForwardOptions& options);
  void write_logits(const Pass& pass, Index first_token, Index row);
  std::span<const float> logits(Index tokens) const {
    return {logits_.data(), static_cast<std::size_t>(tokens * model_->config().vocabulary)};
  }

  // ---- of prefill()
  // Of the pass that was just projected: copies what belongs to the last `window` of `count`
  // tokens to last_queries_.
  void hold_queries(const Pass& pass, Index first, Index count, Index window);
  // The passes of the kept tokens only; every old pass is freed as soon as it was read.
  std::vector<Pass> keep(std::vector<Pass> passes, std::span<const std::int32_t> kept);

  template <class Cache>
  void run_layer(Cache& cache, int layer, Pass& pass, Index first, const ForwardOptions& options) {
    if (options.on_hidden) show_hidden(options, layer, pass, first);
    project(layer, pass);
    const Index n = pass.hidden.tokens();
    if (options.on_tensors)
      options.on_tensors(
          {layer, first, n, rows_.queries, rows_.keys, rows_.values, pass.positions});
    positions_.clear();
    for (const std::int64_t position : pass.positions)
      positions_.push_back(lesskv::Position{position});
    const lesskv::Shape& shape = cache.shape();
    cache.append(layer, lesskv::View::packed(rows_.keys, n, shape.kv_heads, shape.head_dim),
                 lesskv::View::packed(rows_.values, n, shape.kv_heads, shape.head_dim), positions_);
    cache.attend(layer, lesskv::View::packed(rows_.queries, n, shape.query_heads, shape.head_dim),
                 rows_.attended);
    finish_layer(layer, pass);
  }

  // Which `wanted` of the newest `count` rows go on, by the attention that the last queries of
  // `layer` pay them.
  template <class Cache>
  std::vector<std::int32_t> choose(const Cache& cache, int layer, Index count, Index wanted,
                                   const lesskv::HiddenPins& pins) const {
    const lesskv::Shape& shape = cache.shape();
    const lesskv::View queries = lesskv::View::packed(
        last_queries_.data(), std::min(pins.window, count), shape.query_heads, shape.head_dim);
    std::vector<float> scores(static_cast<std::size_t>(count), 0.f);
    for (int h = 0; h < shape.kv_heads; ++h) {
      const lesskv::Matrix attention = cache.attention(layer, h, queries);
      const Index old = attention.cols() - count;  // rows of earlier passes
      lesskv::add_column_sums(
          lesskv::make_rows(attention.data() + old, attention.rows(), count, attention.cols()),
          scores);
    }
    return lesskv::select_hidden(scores, wanted, pins);
  }

  const Model* model_;
  Executor executor_;
  Pass pass_;
  Panels normed_, queries_, keys_, values_, attended_, gate_, up_, vocabulary_;
  struct {
    float *queries = nullptr, *keys = nullptr, *values = nullptr, *attended = nullptr;
  } rows_;
  Buffer row_buffer_, logits_, last_queries_;
  std::vector<lesskv::Position> positions_;
};

}  // namespace engine
