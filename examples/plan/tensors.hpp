// SPDX-License-Identifier: MIT
// The tensors that a plan is made from: keys, values, and queries or attention weights of one
// sequence, read from .npy files and checked against each other.
#pragma once

#include <lesskv/cache/row_source.hpp>
#include <string>
#include <vector>

#include "npy.hpp"

namespace plan {

// One axis order for all: [head, row, channel]; a row is a token or a query, a channel of attention
// is a token.
struct Layer {
  std::string file;
  npy::Tensor tensor;

  lesskv::Index heads() const { return tensor.shape[0]; }
  lesskv::Index rows() const { return tensor.shape[1]; }
  lesskv::Index channels() const { return tensor.shape[2]; }
  lesskv::View view() const {
    return lesskv::View::by_head(tensor.data.data(), tensor.dtype, rows(),
                                 static_cast<int>(channels()));
  }
  lesskv::View view(lesskv::Index head) const;
  float at(lesskv::Index head, lesskv::Index row, lesskv::Index channel) const;
};

// A file is a model of one layer; a folder has one file a layer: l00.npy, l01.npy, ...
struct Paths {
  std::string keys, values;        // keys after RoPE
  std::string queries, attention;  // at most one of them; may be empty
};

struct Tensors {
  lesskv::Shape shape;       // dtype: the default of Shape
  lesskv::Index tokens = 0;  // the same in every layer
  std::vector<Layer> keys, values, queries, attention;

  lesskv::HeadView head(int layer, int head) const;
  // Attention of the query heads of one KV head, [query * group, tokens], query-major.
  lesskv::Matrix attention_of(int layer, int head) const;
};

// Throws std::runtime_error naming the file or the argument.
Tensors read_tensors(const Paths& paths);

// Fails if a number of keys, values or queries would be infinite when stored as `dtype`.
void check_range(const Tensors& tensors, lesskv::DType dtype);

}  // namespace plan
