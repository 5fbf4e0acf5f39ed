// SPDX-License-Identifier: MIT
// LMBA and LMBO of a pass, from attention by its definition.
#include "compare/layers.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

namespace layers_test {

using namespace compare;
using lesskv::Matrix;

constexpr lesskv::Shape shape{
    .layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 16, .dtype = DType::f16};
constexpr Index tokens = 150, window = 32;

// Random tensors; those of layer 1 look sharply at a few keys.
Pass random_pass() {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  Pass pass(shape);
  for (int layer = 0; layer < shape.layers; ++layer) {
    std::vector<float> q(tokens * 6 * 16), k(tokens * 2 * 16), v(k.size());
    for (float& x : q) x = (layer == 0 ? 0.5f : 3.f) * normal(random);
    for (float& x : k) x = normal(random);
    for (float& x : v) x = normal(random) + 0.2f;
    pass.tensors.add({layer, 0, tokens, q.data(), k.data(), v.data()});
    pass.exact.append(layer, pass.tensors.keys(layer), pass.tensors.values(layer));
  }
  return pass;
}

// Causal softmax attention of query `t` of a query head, in double.
std::vector<double> attention(const Pass& pass, int layer, int head, Index t) {
  const Matrix keys = pass.exact.keys(layer, head / shape.group());
  std::vector<float> q(16);
  lesskv::detail::read_row(pass.tensors.queries(layer), t, head, 16, q.data());
  std::vector<double> out(tokens, 0.0);
  double sum = 0;
  for (Index r = 0; r <= t; ++r) {
    double logit = 0;
    for (Index c = 0; c < 16; ++c) logit += double{q[std::size_t(c)]} * double{keys(r, c)};
    sum += out[std::size_t(r)] = std::exp(logit / 4);
  }
  for (double& x : out) x /= sum;
  return out;
}

double lmba(const Pass& pass, int layer) {
  double sum = 0;
  for (int head = 0; head < shape.query_heads; ++head) {
    std::vector<double> mean(tokens, 0.0);
    for (Index t = tokens - window; t < tokens; ++t) {
      const std::vector<double> one = attention(pass, layer, head, t);
      for (std::size_t r = 0; r < mean.size(); ++r) mean[r] += one[r] / double(window);
    }
    std::sort(mean.begin(), mean.end(), std::greater<>());
    double mass = 0;
    for (std::size_t k = 0; mass < 0.9; ++k, ++sum) mass += mean[k];
  }
  return sum / shape.query_heads;
}

double lmbo(const Pass& pass, int layer, double similarity) {
  double sum = 0;
  for (Index t = tokens - window; t < tokens; ++t) {
    std::vector<Matrix> weights, values;
    for (int h = 0; h < shape.kv_heads; ++h) {
      weights.emplace_back(shape.group(), tokens);
      values.push_back(pass.exact.values(layer, h));
      for (int g = 0; g < shape.group(); ++g) {
        const std::vector<double> one = attention(pass, layer, h * shape.group() + g, t);
        for (Index r = 0; r < tokens; ++r) weights.back()(g, r) = float(one[std::size_t(r)]);
      }
    }
    std::vector<lesskv::AttendedValues> heads;
    for (std::size_t h = 0; h < weights.size(); ++h)
      heads.push_back({lesskv::make_rows(weights[h]), lesskv::make_rows(values[h])});
    sum += double(lesskv::rows_for_output(heads, similarity));
  }
  return sum / double(window);
}

TEST(LayerNeeds, AreThoseOfTheDefinition) {
  const Pass pass = random_pass();
  const LayerNeeds needs = layer_needs(pass, 0.95);
  ASSERT_EQ(needs.lmba.size(), 2U);
  ASSERT_EQ(needs.lmbo.size(), 2U);
  for (int layer = 0; layer < 2; ++layer) {
    // One key more or less where a sum only just reaches the share; a step of the grid likewise.
    EXPECT_NEAR(needs.lmba[std::size_t(layer)], lmba(pass, layer), 0.34) << layer;
    EXPECT_NEAR(needs.lmbo[std::size_t(layer)], lmbo(pass, layer, 0.95), 0.5) << layer;
  }
  // The mean of the window is spread over many keys also where every query looks at a few.
  EXPECT_GT(needs.lmbo[0], 2 * needs.lmbo[1]);
  EXPECT_LT(layer_needs(pass, 0.8).lmbo[0], needs.lmbo[0]);
  EXPECT_GT(layer_needs(pass, 1).lmbo[0], 0.95 * double(tokens));  // all keys that a query sees
}

}  // namespace layers_test
