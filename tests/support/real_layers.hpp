// SPDX-License-Identifier: MIT
// Three layers of a real model and what a code does to attention over them: 960 rows that are
// stored, the queries of the 64 tokens behind them.
#pragma once

#include <algorithm>
#include <cmath>
#include <lesskv/cache/kv_cache.hpp>
#include <span>
#include <string>
#include <vector>

#include "oracle/attention.hpp"
#include "support/npy.hpp"

namespace support {

// SmolLM2-135M-Instruct on 1024 tokens of prose and code (tests/data/inputs), keys and queries after
// RoPE.
struct RealLayer {
  static constexpr std::ptrdiff_t tokens = 1024, rows = 960, queries = tokens - rows;
  static constexpr int kv_heads = 3, query_heads = 9, group = 3, dim = 64;

  int layer = 0;
  std::vector<float> keys, values;  // [kv_head][token][channel]
  std::vector<float> asked;         // [query_head][token][channel], of the last `asked_tokens`
  std::ptrdiff_t asked_tokens = 0;

  lesskv::View k(std::ptrdiff_t first, std::ptrdiff_t n) const {
    return lesskv::View::by_head(keys.data() + first * dim, lesskv::DType::f32, n, dim, tokens);
  }
  lesskv::View v(std::ptrdiff_t first, std::ptrdiff_t n) const {
    return lesskv::View::by_head(values.data() + first * dim, lesskv::DType::f32, n, dim, tokens);
  }
  lesskv::View q(std::ptrdiff_t first, std::ptrdiff_t n) const {
    const std::ptrdiff_t row = first - (tokens - asked_tokens);
    return lesskv::View::by_head(asked.data() + row * dim, lesskv::DType::f32, n, dim,
                                 asked_tokens);
  }
  // Of one head: [row][channel].
  std::span<const float> keys_of(int head) const { return of(keys, head); }
  std::span<const float> values_of(int head) const { return of(values, head); }
  // The queries of the last 64 tokens that read this head: [token][query head of the group][channel].
  std::vector<float> queries_of(int head) const {
    std::vector<float> out;
    for (std::ptrdiff_t t = asked_tokens - queries; t < asked_tokens; ++t)
      for (int g = 0; g < group; ++g) {
        const float* from = asked.data() + ((head * group + g) * asked_tokens + t) * dim;
        out.insert(out.end(), from, from + dim);
      }
    return out;
  }

 private:
  static std::span<const float> of(const std::vector<float>& x, int head) {
    return std::span(x).subspan(static_cast<std::size_t>(head * tokens * dim),
                                static_cast<std::size_t>(rows * dim));
  }
};

// Layers 0, 15 and 29. The files hold f16; here keys and values are larger by 1/256 and queries
// smaller, so that f16 has something to round.
inline std::vector<RealLayer> real_layers(const std::string& data) {
  constexpr float larger = 1 + 1.f / 256;
  std::vector<RealLayer> out;
  for (const int layer : {0, 15, 29}) {
    RealLayer one;
    one.layer = layer;
    const std::string name = (layer < 10 ? "_l0" : "_l") + std::to_string(layer) + ".npy";
    one.keys = load_npy<float>(data + "/inputs/k" + name).data;
    one.values = load_npy<float>(data + "/inputs/v" + name).data;
    const std::string queries = layer == 15 ? "/inputs/q" : "/inputs/qwin64";
    one.asked = load_npy<float>(data + queries + name).data;
    one.asked_tokens = static_cast<std::ptrdiff_t>(one.asked.size()) / (one.query_heads * one.dim);
    for (float& x : one.keys) x *= larger;
    for (float& x : one.values) x *= larger;
    for (float& x : one.asked) x /= larger;
    out.push_back(std::move(one));
  }
  return out;
}

// Means over the heads of the layers.
struct CodeError {
  double key_nmse = 0, value_nmse = 0;  // square error / sum of squares
  double key_max = 0, value_max = 0;    // largest error / root mean square
  // Root mean square error of q.k / sqrt(dim), less its mean over the rows, which the softmax takes
  // off.
  double logits = 0;
  double output = 0;  // |out - exact| / |exact|

  void add(const CodeError& other, double share) {
    key_nmse += share * other.key_nmse, value_nmse += share * other.value_nmse;
    key_max += share * other.key_max, value_max += share * other.value_max;
    logits += share * other.logits, output += share * other.output;
  }
};

// The exact attention of one head, and the error of any other.
class HeadError {
 public:
  HeadError(const RealLayer& layer, int head)
      : keys_(layer.keys_of(head)),
        values_(layer.values_of(head)),
        queries_(layer.queries_of(head)),
        logits_(oracle::logits(keys_, queries_, RealLayer::dim)),
        output_(oracle::attend(keys_, values_, queries_, RealLayer::dim, RealLayer::dim)) {}

  const std::vector<float>& queries() const { return queries_; }
  // Rows as they are read back; what attention gave, [token][query head of the group][channel].
  CodeError measure(std::span<const float> keys, std::span<const float> values,
                    std::span<const double> output) const {
    CodeError out;
    difference(keys_, keys, out.key_nmse, out.key_max);
    difference(values_, values, out.value_nmse, out.value_max);
    const std::vector<double> logits = oracle::logits(keys, queries_, RealLayer::dim);
    constexpr std::size_t rows = RealLayer::rows;
    for (std::size_t first = 0; first < logits.size(); first += rows) {
      double sum = 0, squares = 0;
      for (std::size_t i = first; i < first + rows; ++i) {
        const double d = logits[i] - logits_[i];
        sum += d, squares += d * d;
      }
      out.logits += (squares - sum * sum / rows) / static_cast<double>(logits.size());
    }
    out.logits = std::sqrt(out.logits);
    out.output = output_error(output);
    return out;
  }
  double output_error(std::span<const double> output) const {
    return oracle::relative_error(output, std::span<const double>(output_));
  }

 private:
  static void difference(std::span<const float> x, std::span<const float> y, double& nmse,
                         double& max) {
    double error = 0, square = 0, most = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double d = double{y[i]} - double{x[i]};
      error += d * d, square += double{x[i]} * double{x[i]}, most = std::max(most, std::abs(d));
    }
    nmse = error / square;
    max = most / std::sqrt(square / static_cast<double>(x.size()));
  }

  std::span<const float> keys_, values_;
  std::vector<float> queries_;
  std::vector<double> logits_, output_;
};

// What a cache that holds the first 960 rows of a layer answers to the 64 tokens behind them, one
// token at a time, [kv_head][token][query head of the group][channel]: by its decode kernels, with
// all that they round.
inline std::vector<std::vector<double>> answers(lesskv::AnyCache& cache, const RealLayer& layer,
                                                int at) {
  constexpr int width = RealLayer::group * RealLayer::dim;
  std::vector<std::vector<double>> out(RealLayer::kv_heads);
  std::vector<float> step(RealLayer::query_heads * RealLayer::dim);
  for (std::ptrdiff_t t = RealLayer::rows; t < RealLayer::tokens; ++t) {
    cache.attend(at, layer.q(t, 1), step.data());
    for (int h = 0; h < RealLayer::kv_heads; ++h)
      out[static_cast<std::size_t>(h)].insert(out[static_cast<std::size_t>(h)].end(),
                                              step.data() + h * width,
                                              step.data() + (h + 1) * width);
  }
  return out;
}

// All heads, and what a way of storing their rows does to them.
class RealHeads {
 public:
  explicit RealHeads(const std::string& data) : layers_(real_layers(data)) {
    for (const RealLayer& layer : layers_)
      for (int h = 0; h < layer.kv_heads; ++h) heads_.emplace_back(layer, h);
  }
  const std::vector<RealLayer>& layers() const { return layers_; }

  // A cache of the model that holds the first 960 rows of the three layers, coded.
  lesskv::AnyCache fill(lesskv::AnyCache cache) const {
    for (const RealLayer& layer : layers_)
      cache.append(layer.layer, layer.k(0, layer.rows), layer.v(0, layer.rows));
    cache.compress();
    return cache;
  }
  static lesskv::Shape shape() {
    return {.layers = 30,
            .query_heads = RealLayer::query_heads,
            .kv_heads = RealLayer::kv_heads,
            .head_dim = RealLayer::dim};
  }
  // Of a cache that holds all 960 rows.
  CodeError error_of(lesskv::AnyCache& cache) const {
    CodeError sum;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      const auto output = answers(cache, layers_[l], layers_[l].layer);
      for (int h = 0; h < RealLayer::kv_heads; ++h) {
        const lesskv::Matrix keys = cache.keys(layers_[l].layer, h),
                             values = cache.values(layers_[l].layer, h);
        sum.add(
            head(l, h).measure(numbers(keys), numbers(values), output[static_cast<std::size_t>(h)]),
            1.0 / static_cast<double>(heads_.size()));
      }
    }
    return sum;
  }
  // Of rows that went through a format, read with queries that went through another.
  template <class Rows, class Queries>
  CodeError error_of(Rows&& rows, Queries&& asked) const {
    CodeError sum;
    for (std::size_t l = 0; l < layers_.size(); ++l)
      for (int h = 0; h < RealLayer::kv_heads; ++h) {
        const std::vector<float> keys = rows(layers_[l].keys_of(h)),
                                 values = rows(layers_[l].values_of(h)),
                                 queries = asked(head(l, h).queries());
        sum.add(head(l, h).measure(
                    keys, values,
                    oracle::attend(keys, values, queries, RealLayer::dim, RealLayer::dim)),
                1.0 / static_cast<double>(heads_.size()));
      }
    return sum;
  }
  // Mean over the heads of f(rows of that head): f(keys) or f(values).
  template <class F>
  double mean(bool keys, F&& f) const {
    double sum = 0;
    for (const RealLayer& layer : layers_)
      for (int h = 0; h < layer.kv_heads; ++h)
        sum += f(keys ? layer.keys_of(h) : layer.values_of(h));
    return sum / static_cast<double>(heads_.size());
  }

 private:
  const HeadError& head(std::size_t layer, int h) const {
    return heads_[layer * RealLayer::kv_heads + static_cast<std::size_t>(h)];
  }
  static std::span<const float> numbers(const lesskv::Matrix& m) {
    return {m.data(), static_cast<std::size_t>(m.size())};
  }

  std::vector<RealLayer> layers_;
  std::vector<HeadError> heads_;
};

}  // namespace support
