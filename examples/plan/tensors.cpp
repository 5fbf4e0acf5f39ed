// SPDX-License-Identifier: MIT
#include "tensors.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>

namespace plan {

using namespace lesskv;

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& place, const std::string& what) {
  throw std::runtime_error(place + ": " + what);
}

std::string layer_file(std::size_t layer) {
  return (layer < 10 ? "l0" : "l") + std::to_string(layer) + ".npy";
}

std::string text_of(const std::vector<Index>& shape) {
  std::string out;
  for (const Index axis : shape) out += (out.empty() ? "" : ", ") + std::to_string(axis);
  return "[" + out + "]";
}

// The files of an argument, layer by layer.
std::vector<std::string> files_of(const std::string& argument, const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return {path};
  std::set<std::string> there;
  for (const auto& entry : fs::directory_iterator(path))
    if (entry.path().extension() == ".npy") there.insert(entry.path().filename().string());
  if (there.empty()) fail(argument + " " + path, "the folder has no .npy file");
  std::vector<std::string> out;
  for (std::size_t layer = 0; layer < there.size(); ++layer) {
    const std::string name = layer_file(layer);
    if (!there.contains(name))
      fail(argument + " " + path,
           name + " is missing; the folder has " + std::to_string(there.size()) +
               " .npy files, and they must be l00.npy to " + layer_file(there.size() - 1));
    out.push_back((fs::path(path) / name).string());
  }
  return out;
}

float number(const npy::Tensor& tensor, std::size_t i) {
  if (tensor.dtype == DType::f32) {
    float x;
    std::memcpy(&x, tensor.data.data() + 4 * i, 4);
    return x;
  }
  f16 x;
  std::memcpy(&x, tensor.data.data() + 2 * i, 2);
  return to_float(x);
}

void check_numbers(const Layer& layer, float limit, const char* what) {
  const auto n = static_cast<std::size_t>(layer.tensor.size());
  for (std::size_t i = 0; i < n; ++i)
    if (!(std::abs(number(layer.tensor, i)) <= limit)) {
      const auto at = static_cast<Index>(i);
      const Index row = at / layer.channels();
      fail(layer.file,
           "the number at " +
               text_of({row / layer.rows(), row % layer.rows(), at % layer.channels()}) + " " +
               what);
    }
}

std::vector<Layer> read_layers(const std::string& argument, const std::string& path,
                               const char* axes, std::size_t layers) {
  std::vector<Layer> out;
  const std::vector<std::string> files = files_of(argument, path);
  if (layers > 0 && files.size() != layers)
    fail(argument + " " + path, "has " + std::to_string(files.size()) + " layers, but --keys has " +
                                    std::to_string(layers));
  for (const std::string& file : files) {
    out.push_back({file, npy::read(file)});
    const std::vector<Index>& shape = out.back().tensor.shape;
    if (shape.size() != 3) fail(file, "has shape " + text_of(shape) + "; it must be " + axes);
    for (const Index axis : shape)
      if (axis < 1 || axis > std::numeric_limits<std::int32_t>::max())
        fail(file, "has shape " + text_of(shape) + "; no axis may be empty or beyond 2^31");
    check_numbers(out.back(), std::numeric_limits<float>::max(), "is NaN or infinite");
    if (shape != out.front().tensor.shape)
      fail(file, "has shape " + text_of(shape) + ", but " + out.front().file + " has " +
                     text_of(out.front().tensor.shape));
  }
  return out;
}

// Rows of the newest queries, of query heads that belong to the KV heads of the keys.
void check_queries(const Layer& queries, const Layer& keys) {
  const Index heads = queries.heads(), group = heads / keys.heads();
  if (heads % keys.heads() != 0 || group > 128)
    fail(queries.file, "has " + std::to_string(heads) + " query heads, but " + keys.file + " has " +
                           std::to_string(keys.heads()) +
                           " KV heads; there must be 1 to 128 query heads to each of them");
  if (queries.rows() > keys.rows())
    fail(queries.file, "has " + std::to_string(queries.rows()) + " queries, but " + keys.file +
                           " has " + std::to_string(keys.rows()) + " tokens");
}

void check_attention(const Layer& layer) {
  for (Index h = 0; h < layer.heads(); ++h)
    for (Index q = 0; q < layer.rows(); ++q) {
      double sum = 0;
      float least = 0;
      for (Index t = 0; t < layer.channels(); ++t) {
        sum += double{layer.at(h, q, t)};
        least = std::min(least, layer.at(h, q, t));
      }
      // f16 weights round: far less than this, and logits are far more off.
      if (least < 0 || std::abs(sum - 1) > 0.05)
        fail(layer.file, "the weights of query head " + std::to_string(h) + ", query " +
                             std::to_string(q) +
                             " are no softmax: they must not be negative and must sum to 1, not " +
                             std::to_string(sum));
    }
}

}  // namespace

View Layer::view(Index head) const {
  View out = view();
  out.data = tensor.data.data() + head * out.head_stride * size_of(tensor.dtype);
  return out;
}

float Layer::at(Index head, Index row, Index channel) const {
  return number(tensor, static_cast<std::size_t>((head * rows() + row) * channels() + channel));
}

HeadView Tensors::head(int layer, int head) const {
  const auto l = static_cast<std::size_t>(layer);
  return {keys[l].view(head), values[l].view(head)};
}

Matrix Tensors::attention_of(int layer, int head) const {
  const Layer& from = attention[static_cast<std::size_t>(layer)];
  const Index group = shape.group();
  Matrix out(from.rows() * group, tokens);
  for (Index q = 0; q < from.rows(); ++q)
    for (Index g = 0; g < group; ++g)
      for (Index t = 0; t < tokens; ++t) out(q * group + g, t) = from.at(head * group + g, q, t);
  return out;
}

Tensors read_tensors(const Paths& paths) {
  if (paths.keys.empty()) fail("--keys", "is missing");
  if (paths.values.empty()) fail("--values", "is missing");
  if (!paths.queries.empty() && !paths.attention.empty())
    fail("--attention", "goes without --queries: give one of them");
  Tensors out;
  out.keys = read_layers("--keys", paths.keys, "[head, token, channel]", 0);
  const std::size_t layers = out.keys.size();
  out.values = read_layers("--values", paths.values, "[head, token, channel]", layers);
  const Layer &keys = out.keys[0], &values = out.values[0];
  if (values.heads() != keys.heads() || values.rows() != keys.rows())
    fail(values.file, "has " + std::to_string(values.heads()) + " heads and " +
                          std::to_string(values.rows()) + " tokens, but " + keys.file + " has " +
                          std::to_string(keys.heads()) + " and " + std::to_string(keys.rows()));
  Index query_heads = keys.heads();
  if (!paths.queries.empty()) {
    out.queries = read_layers("--queries", paths.queries, "[query_head, query, channel]", layers);
    const Layer& queries = out.queries[0];
    check_queries(queries, keys);
    if (queries.channels() != keys.channels())
      fail(queries.file, "has " + std::to_string(queries.channels()) + " channels, but " +
                             keys.file + " has " + std::to_string(keys.channels()));
    query_heads = queries.heads();
  }
  if (!paths.attention.empty()) {
    out.attention =
        read_layers("--attention", paths.attention, "[query_head, query, token]", layers);
    const Layer& attention = out.attention[0];
    check_queries(attention, keys);
    if (attention.channels() != keys.rows())
      fail(attention.file, "has weights of " + std::to_string(attention.channels()) +
                               " tokens, but " + keys.file + " has " + std::to_string(keys.rows()));
    for (const Layer& layer : out.attention) check_attention(layer);
    query_heads = attention.heads();
  }
  out.tokens = keys.rows();
  out.shape.layers = static_cast<int>(layers);
  out.shape.query_heads = static_cast<int>(query_heads);
  out.shape.kv_heads = static_cast<int>(keys.heads());
  out.shape.head_dim = static_cast<int>(keys.channels());
  out.shape.value_dim = static_cast<int>(values.channels());
  return out;
}

void check_range(const Tensors& tensors, DType dtype) {
  const std::string what =
      std::string("is too large for ") + name_of(dtype) + "; say store(dtype=f32) in the policy";
  for (const auto* layers : {&tensors.keys, &tensors.values, &tensors.queries})
    for (const Layer& layer : *layers) check_numbers(layer, largest(dtype), what.c_str());
}

}  // namespace plan
