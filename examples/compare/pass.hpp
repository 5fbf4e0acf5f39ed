// SPDX-License-Identifier: MIT
// One exact pass over a text: the exact cache, and the keys, values and queries it was made of, to
// be replayed into any number of other caches through the same functions that an engine calls.
#pragma once

#include <chrono>
#include <engine/replay.hpp>
#include <engine/run.hpp>
#include <lesskv/lesskv.hpp>
#include <span>
#include <vector>

#include "row_scores.hpp"

namespace compare {

using lesskv::DType;
using lesskv::View;

class Clock {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Tensors of a pass after RoPE, as f16: keys and values are then bit for bit what an f16 cache
// stores.
class Tensors {
 public:
  explicit Tensors(const lesskv::Shape& shape)
      : shape_(shape), layers_(static_cast<std::size_t>(shape.layers)) {}

  Index tokens() const { return tokens_; }

  // Of tokens that follow those already there.
  void add(const engine::LayerTensors& part) {
    Layer& layer = layers_[static_cast<std::size_t>(part.layer)];
    add(layer.keys, part.keys, part.tokens * shape_.kv_heads * shape_.head_dim);
    add(layer.values, part.values, part.tokens * shape_.kv_heads * shape_.value_width());
    add(layer.queries, part.queries, part.tokens * shape_.query_heads * shape_.head_dim);
    if (part.layer == 0) tokens_ += part.tokens;
  }
  View keys(int layer) const { return view(at(layer).keys, shape_.kv_heads, shape_.head_dim); }
  View values(int layer) const {
    return view(at(layer).values, shape_.kv_heads, shape_.value_width());
  }
  View queries(int layer) const {
    return view(at(layer).queries, shape_.query_heads, shape_.head_dim);
  }

 private:
  using Halves = std::vector<std::uint16_t>;
  struct Layer {
    Halves keys, values, queries;
  };
  static void add(Halves& to, const float* from, Index count) {
    const std::size_t old = to.size();
    to.resize(old + static_cast<std::size_t>(count));
    lesskv::kernels().from_f32(DType::f16, from, to.data() + old, count);
  }
  const Layer& at(int layer) const { return layers_[static_cast<std::size_t>(layer)]; }
  View view(const Halves& data, int heads, int width) const {
    return View::packed(data.data(), DType::f16, tokens_, heads, width);
  }

  lesskv::Shape shape_;
  std::vector<Layer> layers_;
  Index tokens_ = 0;
};

struct Pass {
  lesskv::KVCache<> exact;
  Tensors tensors;
  double milliseconds = 0;
  // A replay of the text, chunk by chunk, for policies that ask for probes; what KVzip makes of it,
  // which is the same at every compression; and what both took.
  std::vector<Tensors> probes;
  std::shared_ptr<const RowNumbers> probe_scores;
  double probe_milliseconds = 0;

  explicit Pass(const lesskv::Shape& shape) : exact(shape), tensors(shape) {}
};

// Feeds tokens to an exact cache that may hold some already; their tensors are added to `tensors`.
inline std::span<const float> forward_and_keep(engine::Run& run, lesskv::KVCache<>& exact,
                                               Tensors& tensors,
                                               std::span<const std::int32_t> tokens,
                                               Index position) {
  engine::ForwardOptions options;
  options.on_tensors = [&](const engine::LayerTensors& part) { tensors.add(part); };
  return run.forward(exact, tokens, position, options);
}

// KVzip, which notes its scores.
struct NotedKVzip : lesskv::KVzip {
  std::shared_ptr<RowNumbers> noted;

  void score(const lesskv::Head& head, std::span<float> out) const {
    lesskv::KVzip::score(head, out);
    std::copy(out.begin() + head.first, out.begin() + head.last,
              noted->of(head.layer, head.head) + head.first);
  }
};

// Chunks as replay_chunks() makes them.
inline void keep_probes(engine::Run& run, Pass& pass,
                        const std::vector<std::vector<std::int32_t>>& chunks) {
  const lesskv::Shape& shape = pass.exact.shape();
  NotedKVzip policy;
  policy.noted = std::make_shared<RowNumbers>(shape, pass.tensors.tokens());
  const lesskv::Keep keep{.fraction = 0.5};
  std::vector<lesskv::AnyPolicy> policies;
  policies.emplace_back(policy);
  lesskv::AnyCache again(shape, &keep, std::move(policies));
  for (int layer = 0; layer < shape.layers; ++layer)
    again.append(layer, pass.tensors.keys(layer), pass.tensors.values(layer));
  engine::ForwardOptions options;
  options.on_tensors = [&](const engine::LayerTensors& part) { pass.probes.back().add(part); };
  const Clock clock;
  engine::replay(run, again, chunks, pass.tensors.tokens(), options,
                 [&](std::size_t) { pass.probes.emplace_back(shape); });
  pass.probe_milliseconds = clock.milliseconds();
  again.compress();
  pass.probe_scores = policy.noted;
}

inline Pass exact_pass(engine::Run& run, std::span<const std::int32_t> tokens) {
  Pass pass(engine::cache_shape(run.model()));
  const Clock clock;
  forward_and_keep(run, pass.exact, pass.tensors, tokens, 0);
  pass.exact.compress();
  pass.milliseconds = clock.milliseconds();
  return pass;
}

// Replays a pass into a cache; compress() is left to the caller.
template <class Cache>
void replay(const Tensors& tensors, Cache& cache) {
  for (int layer = 0; layer < cache.shape().layers; ++layer) {
    cache.append(layer, tensors.keys(layer), tensors.values(layer));
    cache.observe(layer, tensors.queries(layer));
  }
}

// The pass and, for policies that ask for them, its probes.
template <class Cache>
void show_probes(const Pass& pass, Cache& cache) {
  if (!cache.needs_probes()) return;
  for (const Tensors& chunk : pass.probes) {
    cache.begin_probes();
    replay(chunk, cache);
    cache.end_probes();
  }
}
template <class Cache>
void replay(const Pass& pass, Cache& cache) {
  replay(pass.tensors, cache);
  show_probes(pass, cache);
}

// The same, and the time that looking at queries takes an engine which calls attend(). A policy that
// gathers attention gets it there; what that adds is seen on every fifth layer, beside a cache
// without policies, and taken five times. Probes take the time of the replay, in which KVzip looks at
// them.
template <class Cache>
double timed_replay(const Pass& pass, Cache& cache, bool replayed) {
  constexpr int every = 5;
  const Tensors& tensors = pass.tensors;
  const lesskv::Shape& shape = cache.shape();
  lesskv::KVCache<> bare(shape);
  std::vector<float> out(
      static_cast<std::size_t>(tensors.tokens() * shape.query_heads * shape.value_width()));
  double milliseconds = 0;
  for (int layer = 0; layer < shape.layers; ++layer) {
    cache.append(layer, tensors.keys(layer), tensors.values(layer));
    const lesskv::View queries = tensors.queries(layer);
    if (!cache.wants_attention()) {
      const Clock clock;
      cache.observe(layer, queries);
      milliseconds += clock.milliseconds();
    } else if (layer % every == 0) {
      bare.append(layer, tensors.keys(layer), tensors.values(layer));
      const Clock without;
      bare.attend(layer, queries, out.data());
      milliseconds -= every * without.milliseconds();
      const Clock with;
      cache.attend(layer, queries, out.data());
      milliseconds += every * with.milliseconds();
    } else {
      cache.observe(layer, queries);
    }
  }
  show_probes(pass, cache);
  return milliseconds + (replayed ? pass.probe_milliseconds : 0);
}

}  // namespace compare
