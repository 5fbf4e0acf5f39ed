// SPDX-License-Identifier: MIT
// The forward pass, in the spirit of llama2.c. Attention is lesskv's and nothing else: every layer
// appends its keys and values to the cache and asks it to attend. Queries, keys and values are
// handed over after RoPE, channels half-split (as Hugging Face has them), token-major. Any
// KVCache<...> fits; after each forward() the caller calls compress().
#pragma once

#include <functional>
#include <lesskv/core/shape.hpp>
#include <lesskv/core/view.hpp>
#include <span>
#include <string>

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
  return shape;
}

// The tensors of one layer for some tokens of a pass, valid during the call that hands them over:
// queries [token][query_head][head_dim], keys and values [token][kv_head][head_dim].
struct LayerTensors {
  int layer = 0;
  Index first_token = 0, tokens = 0;  // counted from the first token of the forward() call
  const float *queries = nullptr, *keys = nullptr, *values = nullptr;
};

// The state between layers, for tests: entry 0 is the embedding, entry l the output of layer l, and
// the last one (l = layers) is taken after the final norm. hidden is [token][width].
struct HiddenState {
  int entry = 0;
  Index first_token = 0, tokens = 0;
  const float* hidden = nullptr;
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
    const Index wanted = options.logits == every_token ? count : options.logits;
    if (wanted < 0 || wanted > count)
      throw Error("forward: logits of more tokens are asked for than are fed");
    if (first_position < 0) throw Error("forward: first_position is negative");
    for (const std::int32_t token : tokens)
      if (token < 0 || token >= model_->config().vocabulary)
        throw Error("forward: token " + std::to_string(token) + " is outside the vocabulary");
    logits_.reserve(wanted * model_->config().vocabulary);
    for (Index first = 0; first < count; first += pass_tokens) {
      const Index n = std::min(pass_tokens, count - first);
      embed(tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n)),
            first_position + first);
      for (int l = 0; l < static_cast<int>(model_->config().layers); ++l) {
        if (options.on_hidden) show_hidden(options, l, first);
        project(l);
        if (options.on_tensors)
          options.on_tensors({l, first, n, rows_.queries, rows_.keys, rows_.values});
        const lesskv::Shape& shape = cache.shape();
        cache.append(l, lesskv::View::packed(rows_.keys, n, shape.kv_heads, shape.head_dim),
                     lesskv::View::packed(rows_.values, n, shape.kv_heads, shape.head_dim));
        cache.attend(l, lesskv::View::packed(rows_.queries, n, shape.query_heads, shape.head_dim),
                     rows_.attended);
        finish_layer(l);
      }
      if (options.on_hidden) show_hidden(options, static_cast<int>(model_->config().layers), first);
      const Index from = std::max(first, count - wanted);
      if (from < first + n) write_logits(from - first, from - (count - wanted));
    }
    return {logits_.data(), static_cast<std::size_t>(wanted * model_->config().vocabulary)};
  }

  // Memory of the work space.
  std::size_t bytes() const;

 private:
  void embed(std::span<const std::int32_t> tokens, std::int64_t first_position);
  void project(int layer);  // norm, Q, K, V, RoPE; leaves them in rows_
  void finish_layer(
      int layer);  // output projection of rows_.attended, then the feed-forward network
  void show_hidden(const ForwardOptions& options, int entry, Index first_token);
  void write_logits(Index first_token, Index row);

  const Model* model_;
  Executor executor_;
  Panels hidden_, normed_, queries_, keys_, values_, attended_, gate_, up_, cosines_, sines_,
      vocabulary_;
  struct {
    float *queries = nullptr, *keys = nullptr, *values = nullptr, *attended = nullptr;
  } rows_;
  Buffer row_buffer_, logits_;
};

}  // namespace engine
