// SPDX-License-Identifier: MIT
// Keys and values of a model over text, as the dictionaries are to code them.
#pragma once

#include <cstdint>
#include <engine/model.hpp>
#include <functional>
#include <lesskv/core/types.hpp>
#include <span>
#include <vector>

namespace training {

using lesskv::Index;

struct CollectOptions {
  Index window = 1024;  // tokens that see each other
  Index skip = 4;       // first tokens of a window: attention sinks, which a cache keeps exact
  bool before_rope = true;
  bool means = true;  // of the heads are removed
  int threads = 1;
};

// Vectors of one side: [layer][(token * heads + head) * dim], f16, and the mean (0 if it is not to
// be removed) and the root mean square norm (less the mean) of every head.
struct Vectors {
  int layers = 0, heads = 0, dim = 0;
  Index tokens = 0;
  std::vector<std::vector<lesskv::f16>> rows;
  std::vector<float> mean;   // [layer][head][dim]
  std::vector<float> scale;  // [layer][head]

  // The vector less its mean, not scaled.
  void read(int layer, Index token, int head, float* out) const;
};

struct Collected {
  Vectors keys, values;
};

// `on_window` is called after every window with the tokens done so far.
Collected collect(const engine::Model& model, std::span<const std::int32_t> tokens,
                  const CollectOptions& options, const std::function<void(Index)>& on_window = {});

}  // namespace training
