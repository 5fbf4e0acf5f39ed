// SPDX-License-Identifier: MIT
// A small set of dictionaries, and what tests with them share.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <lesskv/codec/csr.hpp>
#include <lesskv/codec/csr_codec.hpp>
#include <lesskv/codec/sparse/levels.hpp>

#include "cache/support.hpp"
#include "sparse_support.hpp"

namespace csr {

using namespace support;
using sparse::random_atoms;

inline const Shape shape{.layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 32};

inline void expect_says(const std::string& got, const std::string& want) {
  EXPECT_NE(got.find(want), std::string::npos) << got;
}

inline std::vector<double> frequencies(int dim, double theta) {
  std::vector<double> out;
  for (int i = 0; i < dim / 2; ++i) out.push_back(std::pow(theta, -2.0 * i / dim));
  return out;
}

// Layers 0 and 1 share the dictionary of keys; values have one each, in `chunks` parts.
inline DictionarySet example(bool before_rope = true, int chunks = 1, Index atoms = 200) {
  const auto make = [&](int dim, unsigned seed) {
    const Pursuit coder(Dictionary(dim, atoms, random_atoms(atoms, dim, seed).data()));
    const std::vector<float> rows = sparse::random_rows(400, dim, seed + 50);
    return fit_levels(coder, rows.data(), 400, 8, 16);
  };
  DictionarySet set;
  set.layers = shape.layers;
  set.kv_heads = shape.kv_heads;
  set.keys_before_rope = before_rope;
  set.dictionaries.push_back(make(shape.head_dim, 1));
  set.key_dictionary = {0, 0};
  for (int i = 0; i < 2 * chunks; ++i) {
    set.value_dictionary.push_back(static_cast<std::uint32_t>(set.dictionaries.size()));
    set.dictionaries.push_back(make(shape.head_dim / chunks, 10u + static_cast<unsigned>(i)));
  }
  set.rope_frequencies = frequencies(shape.head_dim, 10000);
  const auto means = [](unsigned seed) {
    std::vector<float> out = sparse::random_rows(shape.heads(), shape.head_dim, seed);
    for (float& x : out) x *= 0.5f;
    return out;
  };
  set.key_mean = means(7);
  set.value_mean = means(8);
  return set;
}

struct File {
  std::string path;
  explicit File(const DictionarySet& set) {
    path = ::testing::TempDir() + "lesskv_csr_" + std::to_string(::getpid()) + ".lesskvd";
    set.save(path);
  }
  ~File() { std::remove(path.c_str()); }
};

}  // namespace csr
