// SPDX-License-Identifier: MIT
// The reference tensors: keys, values and queries of SmolLM2-135M-Instruct at layers 0, 15 and 29
// over 1024 tokens, and what the methods' own code makes of them.
#pragma once

#include <gtest/gtest.h>

#include <lesskv/lesskv.hpp>
#include <string>
#include <vector>

#include "support/npy.hpp"

namespace reference {

using namespace lesskv;

inline std::string path(const std::string& file) {
  return std::string(LESSKV_TEST_DATA) + "/" + file;
}
inline std::string layer_name(int layer) {
  return (layer < 10 ? "l0" : "l") + std::to_string(layer);
}

// One tensor of f16, [head][token][64].
struct Tensor {
  support::Npy<std::uint16_t> file;
  explicit Tensor(const std::string& name)
      : file(support::load_npy<std::uint16_t>(path("inputs/" + name + ".npy"))) {}
  Index heads() const { return static_cast<Index>(file.shape[0]); }
  Index tokens() const { return static_cast<Index>(file.shape[1]); }
  View view(Index first, Index count) const {
    View all = View::by_head(file.data.data(), DType::f16, tokens(), 64);
    return all.tokens_from(first, count);
  }
  View view() const { return view(0, tokens()); }
};

inline Shape shape() {
  return {.layers = 1,
          .query_heads = 9,
          .kv_heads = 3,
          .head_dim = 64,
          .dtype = DType::f16,
          .rope = Rope{.theta = 100000}};
}

inline std::vector<std::int32_t> positions(const std::vector<Position>& at) {
  std::vector<std::int32_t> out;
  for (const Position p : at) out.push_back(static_cast<std::int32_t>(to_int(p)));
  return out;
}

// Row h of an int32 [heads][n] file.
inline std::vector<std::int32_t> row(const support::Npy<std::int32_t>& file, int h) {
  const std::size_t n = file.shape[1];
  const auto from =
      file.data.begin() + static_cast<std::ptrdiff_t>(n * static_cast<std::size_t>(h));
  return {from, from + static_cast<std::ptrdiff_t>(n)};
}

inline support::Npy<std::int32_t> kept(const std::string& file) {
  return support::load_npy<std::int32_t>(path(file));
}

// A head as a scorer sees it, with keys and values of a file pair.
struct Seen {
  Matrix keys, values, attention;
  std::vector<Position> positions;
  std::vector<float> scores;
  Head head;

  Seen(int layer, int h) : Seen(KVCache<>(shape()), layer, h) {}
  Seen(KVCache<> cache, int layer, int h) {
    const Tensor k("k_" + layer_name(layer)), v("v_" + layer_name(layer));
    cache.append(0, k.view(), v.view());
    keys = cache.keys(0, h);
    values = cache.values(0, h);
    positions = cache.positions(0, h);
    scores.assign(positions.size(), 0.f);
    head.layer = layer;
    head.head = h;
    head.group = 3;
    head.step = 1024;
    head.positions = positions;
    head.last = head.size();
    detail::point(head.keys, keys.data(), keys.rows(), keys.cols(), keys.cols());
    detail::point(head.values, values.data(), values.rows(), values.cols(), values.cols());
  }
};

// Scores equal the file within `tolerance` of the file's largest value, on rows [first, last).
inline void expect_scores(const std::vector<float>& got, const float* want, Index first, Index last,
                          float tolerance) {
  float largest = 0;
  for (Index r = first; r < last; ++r) largest = std::max(largest, std::abs(want[r]));
  for (Index r = first; r < last; ++r)
    ASSERT_NEAR(got[static_cast<std::size_t>(r)], want[r], tolerance * largest) << "row " << r;
}

}  // namespace reference
