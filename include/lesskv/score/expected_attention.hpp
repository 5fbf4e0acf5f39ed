// SPDX-License-Identifier: MIT
// ExpectedAttention: which rows stay, by the attention that queries to come are expected to pay
// them.
//
// Paper:    Devoto, Jeblick and Jegou, "Expected Attention: KV Cache Compression by Estimating
//           Attention from Future Queries Distribution", arXiv 2510.00636; kvpress
//           ExpectedAttentionPress.
// Formula:  queries before RoPE are taken to be normal with the mean m and the covariance S of those
//           seen. R: the mean of the rotations of the next `future` positions. Of a query head,
//             z_i = k_i.(R m) / sqrt(d) + k_i.(R S R')k_i / (2 d),
//           the logarithm of E[exp(q.k_i / sqrt(d))]; a_i = softmax of z over the rows behind the
//           sinks; score = (mean of a_i over the query heads + epsilon) |v_i|.
// Needs:    every query, keys, values (for their norm), and Shape::rope.
// Cost:     as they come, queries are turned back and their moments summed: d^2 / 2 products a query
//           and head; at each judgement d^2 a row and query head. State: see query_moments.hpp; with
//           the covariance 8.4 kB a query head of 64 channels, as much as 33 rows of f16 keys and
//           values. It counts in bytes().
// Defaults: future 512, covariance and value norm on, epsilon 0, 4 sinks, whose queries do not count:
//           as in kvpress. Its authors use epsilon 0.02 where heads get different budgets.
// Differs:  the sinks are pins, not scores. Moments of queries that stream by; kvpress takes those of
//           one prompt. Rows are judged again with what the queries since have shown.
#pragma once

#include <cmath>
#include <string_view>
#include <vector>

#include "../core/concepts.hpp"
#include "../kernels/row_products.hpp"
#include "query_moments.hpp"

LESSKV_BEGIN_NAMESPACE

struct ExpectedAttention {
  Index future = 512;
  bool covariance = true;
  bool value_norm = true;
  double epsilon = 0;
  Index outliers = 4;

  static constexpr std::string_view name = "expected";
  static constexpr std::string_view summary =
      "attention expected of queries to come (Expected Attention, arXiv 2510.00636)";
  static constexpr Keep published{.sinks = 4};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("future", self.future, "positions to come over which the rotation is averaged");
    visit("covariance", self.covariance, "of queries counts, not their mean alone");
    visit("value_norm", self.value_norm, "times the length of the value");
    visit("epsilon", self.epsilon, "added to the attention before that");
    visit("outliers", self.outliers, "first queries of the sequence that do not count");
  }

  struct State {
    std::vector<QueryMoments> moments;  // one a query head
    std::size_t bytes() const {
      std::size_t sum = moments.capacity() * sizeof(QueryMoments);
      for (const QueryMoments& one : moments) sum += one.bytes();
      return sum;
    }
  };
  Need needs() const {
    return Need::rope | Need::queries | Need::keys | (value_norm ? Need::values : Need::nothing);
  }
  Need observe_needs() const { return Need::rope | Need::queries; }
  void check() const {
    if (future < 1 || future > 1 << 20)
      fail("ExpectedAttention::future is ", future, "; it must lie between 1 and 2^20");
    if (!(epsilon >= 0) || !std::isfinite(epsilon))
      fail("ExpectedAttention::epsilon must not be negative");
    if (outliers < 0) fail("ExpectedAttention::outliers is negative");
  }

  void observe(const Head& head, State& state) const {
    using detail::uz;
    const Index group = head.group, dim = head.queries.cols(), pairs = head.rotation->pairs();
    const Index n = static_cast<Index>(head.query_positions.size());
    Index from = 0;
    while (from < n && to_int(head.query_positions[uz(from)]) < outliers) ++from;
    if (from == n) return;
    thread_local std::vector<float> angles, plain;
    angles.resize(uz((n - from) * 2 * pairs));
    plain.resize(uz((n - from) * dim));
    for (Index t = from; t < n; ++t) {
      float* cosine = angles.data() + (t - from) * 2 * pairs;
      float* sine = cosine + pairs;
      head.rotation->angles(head.query_positions[uz(t)], cosine, sine);
      for (Index i = 0; i < pairs; ++i) sine[i] = -sine[i];  // back
    }
    state.moments.resize(uz(group));
    for (Index g = 0; g < group; ++g) {
      for (Index t = from; t < n; ++t) {
        float* to = plain.data() + (t - from) * dim;
        std::copy_n(head.queries.data() + (t * group + g) * head.queries.outerStride(), dim, to);
        const float* cosine = angles.data() + (t - from) * 2 * pairs;
        head.rotation->apply(to, cosine, cosine + pairs);
      }
      state.moments[uz(g)].add(plain.data(), n - from, dim, covariance);
    }
  }

  void score(const Head& head, const State& state, std::span<float> out) const {
    using detail::uz;
    if (head.first >= head.last) return;
    const Index rows = head.size() - head.first;
    const Rows keys = make_rows(head.keys.data() + head.first * head.keys.outerStride(), rows,
                                head.keys.cols(), head.keys.outerStride());
    std::vector<double> logit(uz(rows)), sum(uz(rows), 0.0);
    const MeanRotation turn(*head.rotation, head.step, future);
    for (const QueryMoments& moments : state.moments) {
      if (moments.count() == 0) continue;
      logits(keys, turn, moments, logit);
      const double top = *std::max_element(logit.begin(), logit.end());
      double total = 0;
      for (double& x : logit) total += x = std::exp(x - top);
      for (std::size_t r = 0; r < sum.size(); ++r) sum[r] += logit[r] / total;
    }
    const double heads = double(std::max<std::size_t>(1, state.moments.size()));
    for (Index r = head.first; r < head.last; ++r) {
      double score = sum[uz(r - head.first)] / heads;
      if (value_norm) score = (score + epsilon) * double{head.values.row(r).norm()};
      out[uz(r)] = static_cast<float>(score);
    }
  }

 private:
  // The mean of the rotations of `count` positions from `first` on: in the plane of each pair of
  // channels a rotation that is shorter than 1.
  struct MeanRotation {
    const Rotation& rotation;
    std::vector<double> cosine, sine;

    MeanRotation(const Rotation& of, Index first, Index count)
        : rotation(of), cosine(detail::uz(of.pairs()), 0.0), sine(cosine) {
      std::vector<float> angles(2 * cosine.size());
      for (Index p = first; p < first + count; ++p) {
        of.angles(Position{p}, angles.data(), angles.data() + cosine.size());
        for (std::size_t i = 0; i < cosine.size(); ++i) {
          cosine[i] += double{angles[i]} / double(count);
          sine[i] += double{angles[cosine.size() + i]} / double(count);
        }
      }
    }
    void apply(double* x) const { rotation.apply(x, cosine.data(), sine.data()); }
  };

  // Of every row of `keys`.
  void logits(const Rows& keys, const MeanRotation& turn, const QueryMoments& moments,
              std::span<double> logit) const;
};

#if !LESSKV_DECLARE_ONLY
LESSKV_FUNCTION void ExpectedAttention::logits(const Rows& keys, const MeanRotation& turn,
                                               const QueryMoments& moments,
                                               std::span<double> logit) const {
  using detail::uz;
  const Index dim = keys.cols();
  std::vector<double> mean(uz(dim));
  for (Index c = 0; c < dim; ++c) mean[uz(c)] = double{moments.mean()[uz(c)]};
  turn.apply(mean.data());
  // What every key is multiplied with: the mean, and each row of the covariance.
  const Index count = covariance ? 1 + dim : 1;
  detail::Floats directions(count * dim);
  for (Index c = 0; c < dim; ++c)
    directions.data()[c] = static_cast<float>(mean[uz(c)] / std::sqrt(double(dim)));
  if (covariance) {
    std::vector<double> turned(uz(dim * dim));
    for (Index i = 0; i < dim; ++i)
      for (Index j = 0; j < dim; ++j) turned[uz(i * dim + j)] = moments.covariance(i, j);
    for (int side = 0; side < 2; ++side) {
      for (Index i = 0; i < dim; ++i) turn.apply(turned.data() + i * dim);
      for (Index i = 0; i < dim; ++i)
        for (Index j = 0; j < i; ++j) std::swap(turned[uz(i * dim + j)], turned[uz(j * dim + i)]);
    }
    for (Index i = 0; i < dim * dim; ++i)
      directions.data()[dim + i] = static_cast<float>(turned[uz(i)] / (2 * double(dim)));
  }
  constexpr Index block = detail::RowProducts::block;
  detail::RowProducts products(directions.data(), count, dim);
  for (Index first = 0; first < keys.rows(); first += block) {
    const Index rows = std::min(block, keys.rows() - first);
    const float* product =
        products.of(keys.data() + first * keys.outerStride(), keys.outerStride(), rows);
    const auto to = logit.subspan(uz(first), uz(rows));
    for (Index r = 0; r < rows; ++r) to[uz(r)] = double{product[r]};
    for (Index c = 0; c + 1 < count; ++c)
      for (Index r = 0; r < rows; ++r)
        to[uz(r)] += double{products.at(r, c)} * double{product[(1 + c) * block + r]};
  }
}
#endif  // !LESSKV_DECLARE_ONLY

LESSKV_END_NAMESPACE
