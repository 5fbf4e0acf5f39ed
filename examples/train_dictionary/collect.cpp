// SPDX-License-Identifier: MIT
#include "collect.hpp"

#include <atomic>
#include <cmath>
#include <engine/run.hpp>
#include <lesskv/core/rope.hpp>
#include <lesskv/lesskv.hpp>
#include <thread>

namespace training {
namespace {

using lesskv::detail::uz;

void prepare(Vectors& out, const engine::Config& config, Index tokens) {
  out.layers = static_cast<int>(config.layers);
  out.heads = static_cast<int>(config.kv_heads);
  out.dim = static_cast<int>(config.head_dim);
  out.tokens = tokens;
  out.rows.assign(uz(config.layers),
                  std::vector<lesskv::f16>(uz(tokens * config.kv_heads * config.head_dim)));
}

void measure(Vectors& out, bool means) {
  const std::size_t heads = static_cast<std::size_t>(out.layers * out.heads);
  const std::size_t dim = static_cast<std::size_t>(out.dim);
  std::vector<double> sum(heads * dim), square(heads);
  for (int l = 0; l < out.layers; ++l)
    for (Index t = 0; t < out.tokens; ++t)
      for (int h = 0; h < out.heads; ++h) {
        const std::size_t head = static_cast<std::size_t>(l * out.heads + h);
        const lesskv::f16* x = out.rows[static_cast<std::size_t>(l)].data() +
                               (t * out.heads + h) * static_cast<Index>(dim);
        for (std::size_t c = 0; c < dim; ++c) {
          const double value = static_cast<double>(lesskv::to_float(x[c]));
          sum[head * dim + c] += value;
          square[head] += value * value;
        }
      }
  const double count = static_cast<double>(std::max(out.tokens, Index{1}));
  out.mean.resize(heads * dim);
  out.scale.resize(heads);
  for (std::size_t head = 0; head < heads; ++head) {
    double mean_square = 0;
    for (std::size_t c = 0; c < dim; ++c) {
      const double mean = means ? sum[head * dim + c] / count : 0;
      out.mean[head * dim + c] = static_cast<float>(mean);
      mean_square += mean * mean;
    }
    const double variance = std::max(square[head] / count - mean_square, 1e-12);
    out.scale[head] = static_cast<float>(std::sqrt(variance));
  }
}

lesskv::Executor executor(int threads) {
  return [threads](Index count, const std::function<void(Index)>& task) {
    std::atomic<Index> next{0};
    const auto work = [&] {
      for (Index i = next++; i < count; i = next++) task(i);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(work);
    work();
    for (std::thread& thread : others) thread.join();
  };
}

}  // namespace

void Vectors::read(int layer, Index token, int head, float* out) const {
  const std::size_t at = uz((token * heads + head) * dim);
  const std::size_t mean_at = static_cast<std::size_t>((layer * heads + head) * dim);
  for (std::size_t c = 0; c < static_cast<std::size_t>(dim); ++c)
    out[c] = lesskv::to_float(rows[static_cast<std::size_t>(layer)][at + c]) - mean[mean_at + c];
}

Collected collect(const engine::Model& model, std::span<const std::int32_t> tokens,
                  const CollectOptions& options, const std::function<void(Index)>& on_window) {
  if (options.window <= options.skip || options.skip < 0)
    lesskv::fail("collect::window must be larger than skip");
  const Index all = static_cast<Index>(tokens.size());
  Index kept = 0;
  for (Index first = 0; first < all; first += options.window)
    kept += std::max(std::min(options.window, all - first) - options.skip, Index{0});
  if (kept < 1) lesskv::fail("collect::tokens: the text is too short");
  Collected out;
  prepare(out.keys, model.config(), kept);
  prepare(out.values, model.config(), kept);
  lesskv::Rope rope;
  rope.frequencies = model.frequencies();
  const lesskv::Rotation rotation(rope, out.keys.dim);
  engine::Run run(model);
  if (options.threads > 1) run.set_executor(executor(options.threads));
  const lesskv::Shape shape = engine::cache_shape(model);
  Index written = 0;
  for (Index first = 0; first < all; first += options.window) {
    const Index n = std::min(options.window, all - first);
    if (n <= options.skip) break;
    lesskv::KVCache<> cache(shape);
    engine::ForwardOptions forward;
    forward.logits = 0;
    forward.on_tensors = [&](const engine::LayerTensors& tensors) {
      std::vector<float> key(static_cast<std::size_t>(out.keys.dim));
      const Index dim = out.keys.dim, heads = out.keys.heads;
      for (Index t = 0; t < tensors.tokens; ++t) {
        const Index position = tensors.first_token + t;
        if (position < options.skip) continue;
        for (Index h = 0; h < heads; ++h) {
          const Index from = (t * heads + h) * dim;
          const Index to = ((written + position - options.skip) * heads + h) * dim;
          std::copy_n(tensors.keys + from, dim, key.data());
          if (options.before_rope) rotation.undo(key.data(), lesskv::Position{position});
          const std::size_t layer = static_cast<std::size_t>(tensors.layer);
          for (Index c = 0; c < dim; ++c) {
            out.keys.rows[layer][uz(to + c)] = lesskv::to_f16(key[uz(c)]);
            out.values.rows[layer][uz(to + c)] = lesskv::to_f16(tensors.values[from + c]);
          }
        }
      }
    };
    run.forward(cache, tokens.subspan(uz(first), uz(n)), 0, forward);
    written += n - options.skip;
    if (on_window) on_window(first + n);
  }
  measure(out.keys, options.means);
  measure(out.values, options.means);
  return out;
}

}  // namespace training
