// SPDX-License-Identifier: MIT
// Slow, double, obviously right: attention of some query rows over the keys and values of one KV
// head.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

namespace oracle {

struct AttentionOptions {
  double scale = 0;    // 0: 1 / sqrt(key_dim)
  double softcap = 0;  // 0: none
  // Which rows a query row sees; none given: all.
  std::function<bool(std::size_t query, std::size_t row)> sees;
  // Added to the logit; none given: 0.
  std::function<double(std::size_t query, std::size_t row)> bias;
  // A logit that takes part in the sum but has no value, per query row; empty: none.
  std::vector<double> sink_logits;
};

// Logits [query][row]; -inf where the query does not see the row. keys [row][key_dim], queries
// [query][key_dim].
inline std::vector<double> logits(std::span<const float> keys, std::span<const float> queries,
                                  std::size_t key_dim, const AttentionOptions& options = {}) {
  const std::size_t rows = keys.size() / key_dim, count = queries.size() / key_dim;
  const double scale =
      options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(key_dim));
  std::vector<double> out(count * rows);
  for (std::size_t i = 0; i < count; ++i)
    for (std::size_t row = 0; row < rows; ++row) {
      double x = 0;
      for (std::size_t c = 0; c < key_dim; ++c)
        x += double{queries[i * key_dim + c]} * double{keys[row * key_dim + c]};
      x *= scale;
      if (options.softcap > 0) x = options.softcap * std::tanh(x / options.softcap);
      if (options.bias) x += options.bias(i, row);
      if (options.sees && !options.sees(i, row)) x = -std::numeric_limits<double>::infinity();
      out[i * rows + row] = x;
    }
  return out;
}

// Softmax of each row of [count][n], in place. A row of -inf becomes 0.
inline void softmax(std::vector<double>& x, std::size_t n,
                    const std::vector<double>& sink_logits = {}) {
  for (std::size_t first = 0; n > 0 && first < x.size(); first += n) {
    double top =
        sink_logits.empty() ? -std::numeric_limits<double>::infinity() : sink_logits[first / n];
    for (std::size_t j = 0; j < n; ++j) top = std::max(top, x[first + j]);
    double sum = sink_logits.empty() ? 0 : std::exp(sink_logits[first / n] - top);
    for (std::size_t j = 0; j < n; ++j) {
      x[first + j] = std::isinf(x[first + j]) ? 0 : std::exp(x[first + j] - top);
      sum += x[first + j];
    }
    for (std::size_t j = 0; j < n; ++j) x[first + j] = sum > 0 ? x[first + j] / sum : 0;
  }
}

// Attention probabilities [query][row].
inline std::vector<double> probabilities(std::span<const float> keys,
                                         std::span<const float> queries, std::size_t key_dim,
                                         const AttentionOptions& options = {}) {
  std::vector<double> p = logits(keys, queries, key_dim, options);
  softmax(p, keys.size() / key_dim, options.sink_logits);
  return p;
}

// Outputs [query][value_dim]; 0 for a query that sees nothing. values [row][value_dim].
inline std::vector<double> attend(std::span<const float> keys, std::span<const float> values,
                                  std::span<const float> queries, std::size_t key_dim,
                                  std::size_t value_dim, const AttentionOptions& options = {}) {
  const std::size_t rows = keys.size() / key_dim, count = queries.size() / key_dim;
  const std::vector<double> p = probabilities(keys, queries, key_dim, options);
  std::vector<double> out(count * value_dim, 0);
  for (std::size_t i = 0; i < count; ++i)
    for (std::size_t row = 0; row < rows; ++row)
      for (std::size_t c = 0; c < value_dim; ++c)
        out[i * value_dim + c] += p[i * rows + row] * double{values[row * value_dim + c]};
  return out;
}

// Causal by position: query i sees the rows whose position is not above its own.
inline std::vector<double> attend(std::span<const float> keys, std::span<const float> values,
                                  std::span<const float> queries, std::size_t key_dim,
                                  std::size_t value_dim,
                                  std::span<const std::int64_t> key_positions,
                                  std::span<const std::int64_t> query_positions,
                                  AttentionOptions options = {}) {
  const auto hidden = options.sees;
  options.sees = [=](std::size_t i, std::size_t row) {
    return key_positions[row] <= query_positions[i] && (!hidden || hidden(i, row));
  };
  return attend(keys, values, queries, key_dim, value_dim, options);
}

// |a - b| / |b| over all numbers (Euclidean): the measure in which bounds are stated.
template <class A>
double relative_error(std::span<const A> a, std::span<const double> b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    size += b[i] * b[i];
  }
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

}  // namespace oracle
