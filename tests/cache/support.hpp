// SPDX-License-Identifier: MIT
// What the tests of the container share: random tensors, small scorers, and attention by its
// definition.
#pragma once

#include <cmath>
#include <lesskv/cache/kv_cache.hpp>
#include <random>
#include <vector>

#include "support/message.hpp"

namespace support {

using namespace lesskv;

inline Matrix normal(Index rows, Index columns, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  Matrix m(rows, columns);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = distribution(random);
  return m;
}

// Keys, values and queries of a whole sequence for one layer: [token][head][channel].
struct Tensors {
  Shape shape;
  Matrix keys, values, queries;

  Tensors(const Shape& s, Index tokens, unsigned seed)
      : shape(s),
        keys(normal(tokens, Index{s.kv_heads} * s.head_dim, seed * 3 + 1)),
        values(normal(tokens, Index{s.kv_heads} * s.value_width(), seed * 3 + 2)),
        queries(normal(tokens, Index{s.query_heads} * s.head_dim, seed * 3 + 3)) {}
  View k(Index first, Index n) const {
    return View::packed(keys.row(first).data(), n, shape.kv_heads, shape.head_dim);
  }
  View v(Index first, Index n) const {
    return View::packed(values.row(first).data(), n, shape.kv_heads, shape.value_width());
  }
  View q(Index first, Index n) const {
    return View::packed(queries.row(first).data(), n, shape.query_heads, shape.head_dim);
  }
};

// Feeds tokens [first, first + n) of every layer and returns the attention output of the last
// layer.
template <class Cache>
Matrix feed(Cache& cache, const std::vector<Tensors>& layers, Index first, Index n) {
  const Shape& s = cache.shape();
  Matrix out(n, Index{s.query_heads} * s.value_width());
  for (int l = 0; l < s.layers; ++l) {
    const Tensors& t = layers[static_cast<std::size_t>(l)];
    cache.append(l, t.k(first, n), t.v(first, n));
    cache.attend(l, t.q(first, n), out.data());
  }
  return out;
}

inline std::vector<Tensors> tensors(const Shape& s, Index tokens, unsigned seed) {
  std::vector<Tensors> out;
  for (int l = 0; l < s.layers; ++l)
    out.emplace_back(s, tokens, seed + 100u * static_cast<unsigned>(l));
  return out;
}

// Attention by its definition, in double, over the rows that a cache reads back. queries
// [token][query_head * dim].
template <class Cache>
Matrix attention_by_definition(const Cache& cache, int layer, const Matrix& queries,
                               const std::vector<Position>& at, const AttendOptions& options = {}) {
  const Shape& s = cache.shape();
  Matrix out = Matrix::Zero(queries.rows(), Index{s.query_heads} * s.value_width());
  const double scale =
      options.scale > 0 ? double{options.scale} : 1 / std::sqrt(double(s.head_dim));
  for (int h = 0; h < s.kv_heads; ++h) {
    const Matrix k = cache.keys(layer, h), v = cache.values(layer, h);
    const std::vector<Position> positions = cache.positions(layer, h);
    for (Index t = 0; t < queries.rows(); ++t)
      for (int g = 0; g < s.group(); ++g) {
        const int qh = h * s.group() + g;
        std::vector<double> logit;
        double max = -INFINITY;
        for (Index r = 0; r < k.rows(); ++r) {
          double x = 0;
          for (int c = 0; c < s.head_dim; ++c)
            x += double{queries(t, qh * s.head_dim + c)} * double{k(r, c)};
          x *= scale;
          if (options.softcap > 0)
            x = double{options.softcap} * std::tanh(x / double{options.softcap});
          if (!options.bias.empty())
            x += double{options.bias[static_cast<std::size_t>(h)][static_cast<std::size_t>(r)]};
          const Index fresh = r - (k.rows() - queries.rows());
          const bool hidden = options.mask && fresh >= 0 ? !options.mask[t * queries.rows() + fresh]
                                                         : positions[static_cast<std::size_t>(r)] >
                                                               at[static_cast<std::size_t>(t)];
          if (hidden) x = -INFINITY;
          logit.push_back(x);
          max = std::max(max, x);
        }
        double den = 0;
        if (!options.sink_logits.empty()) {
          max = std::max(max, double{options.sink_logits[static_cast<std::size_t>(qh)]});
          den = std::exp(double{options.sink_logits[static_cast<std::size_t>(qh)]} - max);
        }
        if (max == -INFINITY) continue;
        std::vector<double> sum(static_cast<std::size_t>(s.value_width()), 0.0);
        for (Index r = 0; r < k.rows(); ++r) {
          const double w = std::exp(logit[static_cast<std::size_t>(r)] - max);
          den += w;
          for (int c = 0; c < s.value_width(); ++c)
            sum[static_cast<std::size_t>(c)] += w * double{v(r, c)};
        }
        for (int c = 0; c < s.value_width(); ++c)
          out(t, qh * s.value_width() + c) =
              static_cast<float>(sum[static_cast<std::size_t>(c)] / den);
      }
  }
  return out;
}

inline std::vector<Position> range(Index first, Index n) {
  std::vector<Position> out;
  for (Index i = 0; i < n; ++i) out.push_back(Position{first + i});
  return out;
}

inline double relative_error(const Matrix& got, const Matrix& want) {
  return double((got - want).norm()) / std::max(1e-30, double(want.norm()));
}

// ---- small scorers, one per kind of need
struct SmallKeys {  // keys
  static constexpr Need needs = Need::keys;
  void score(const Head& head, std::span<float> out) const {
    for (Index r = head.first; r < head.last; ++r)
      out[static_cast<std::size_t>(r)] = -head.keys.row(r).norm();
  }
};
struct Recent {  // nothing
  static constexpr Need needs = Need::nothing;
  void score(const Head& head, std::span<float> out) const {
    for (Index r = head.first; r < head.last; ++r)
      out[static_cast<std::size_t>(r)] =
          static_cast<float>(to_int(head.positions[static_cast<std::size_t>(r)]));
  }
};
struct WindowAttention {  // queries of the newest tokens
  Index window = 8;
  static constexpr Need needs = Need::attention;
  Index window_size() const { return window; }
  Window reach() const { return {window}; }
  void score(const Head& head, std::span<float> out) const {
    for (Index r = 0; r < head.last; ++r)
      out[static_cast<std::size_t>(r)] = head.attention.col(r).mean();
  }
};
struct SumOfAttention {  // attention of every token, a column per row
  static constexpr Need needs = Need::attention;
  static constexpr int columns = 1;
  void observe(const Head& head, NoState&) const {
    const auto sum = head.column(0);
    for (Index r = 0; r < head.size(); ++r)
      sum[static_cast<std::size_t>(r)] += head.attention.col(r).sum();
  }
  void score(const Head& head, std::span<float> out) const {
    const auto sum = head.column(0);
    std::copy(sum.begin(), sum.end(), out.begin());
  }
};
struct ChunkValues {  // judge once: rows with large values, compared with the chunk that follows
  Index chunk = 8;
  Chunks reach() const { return {chunk, chunk}; }
  void score(const Head& head, std::span<float> out) const {
    const float next = head.values.middleRows(head.last, chunk).norm();
    for (Index r = head.first; r < head.last; ++r)
      out[static_cast<std::size_t>(r)] = head.values.row(r).norm() + next + head.keys(r, 0);
  }
};
// Where the budget goes: a fixed factor per KV head.
struct Tilted {
  void share(const Shape& s, std::span<const NoState>, std::span<double> quota) const {
    for (std::size_t i = 0; i < quota.size(); ++i) quota[i] *= 1 + static_cast<int>(i) % s.kv_heads;
  }
};

}  // namespace support
