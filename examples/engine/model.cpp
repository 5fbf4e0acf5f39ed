// SPDX-License-Identifier: MIT
#include "model.hpp"

#include <cmath>

#include "dequantize.hpp"

namespace engine {
namespace {

// A size from the metadata; bounded so that sums and products of sizes cannot overflow.
Index size_from(const Gguf& file, const std::string& key) {
  const std::uint64_t value = file.unsigned_number(key);
  if (value == 0 || value > (1u << 28))
    throw Error("gguf: metadata '" + key + "' is " + std::to_string(value));
  return static_cast<Index>(value);
}

}  // namespace

Model::Model(Gguf file) : file_(std::move(file)) {
  read_config();
  const Config& c = config_;
  embedding_ = matrix("token_embd.weight", c.vocabulary, c.width);
  output_ =
      file_.find("output.weight") ? matrix("output.weight", c.vocabulary, c.width) : embedding_;
  output_norm_ = vector("output_norm.weight", c.width);
  for (Index l = 0; l < c.layers; ++l) {
    const std::string block = "blk." + std::to_string(l) + ".";
    for (const char* name :
         {"attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias", "attn_q_norm.weight"})
      if (file_.find(block + name))
        throw Error("gguf: tensor '" + block + name + "' is not supported by this engine");
    Layer layer;
    layer.query = matrix(block + "attn_q.weight", c.query_heads * c.head_dim, c.width);
    layer.key = matrix(block + "attn_k.weight", c.kv_heads * c.head_dim, c.width);
    layer.value = matrix(block + "attn_v.weight", c.kv_heads * c.head_dim, c.width);
    layer.output = matrix(block + "attn_output.weight", c.width, c.query_heads * c.head_dim);
    layer.gate = matrix(block + "ffn_gate.weight", c.feed_forward, c.width);
    layer.up = matrix(block + "ffn_up.weight", c.feed_forward, c.width);
    layer.down = matrix(block + "ffn_down.weight", c.width, c.feed_forward);
    layer.attention_norm = vector(block + "attn_norm.weight", c.width);
    layer.feed_forward_norm = vector(block + "ffn_norm.weight", c.width);
    layer.query.interleaved_head_dim = layer.key.interleaved_head_dim = c.head_dim;
    layers_.push_back(std::move(layer));
  }
  read_frequencies();  // last: its size is checked by now
}

Model Model::open(const std::string& path) {
  Gguf file = Gguf::open(path);
  try {
    return Model(std::move(file));
  } catch (const Error& error) {
    throw Error(path + ": " + error.what());
  }
}

void Model::read_config() {
  const std::string_view architecture = file_.string("general.architecture");
  if (architecture != "llama")
    throw Error("gguf: general.architecture is '" + std::string(architecture) +
                "'; this engine runs 'llama'");
  if (file_.unsigned_number("llama.expert_count", 0) > 0)
    throw Error("gguf: llama.expert_count is not 0; mixtures of experts are not supported");
  Config& c = config_;
  c.layers = size_from(file_, "llama.block_count");
  c.width = size_from(file_, "llama.embedding_length");
  c.feed_forward = size_from(file_, "llama.feed_forward_length");
  c.query_heads = size_from(file_, "llama.attention.head_count");
  c.kv_heads = file_.has("llama.attention.head_count_kv")
                   ? size_from(file_, "llama.attention.head_count_kv")
                   : c.query_heads;
  c.context = file_.has("llama.context_length") ? size_from(file_, "llama.context_length") : 0;
  c.norm_epsilon = static_cast<float>(file_.real("llama.attention.layer_norm_rms_epsilon"));
  if (!(c.norm_epsilon > 0 && c.norm_epsilon < 1))
    throw Error("gguf: llama.attention.layer_norm_rms_epsilon must lie between 0 and 1");
  if (c.query_heads % c.kv_heads != 0)
    throw Error("gguf: llama.attention.head_count (" + std::to_string(c.query_heads) +
                ") is not a multiple of head_count_kv (" + std::to_string(c.kv_heads) + ")");
  if (file_.has("llama.attention.key_length")) {
    c.head_dim = size_from(file_, "llama.attention.key_length");
  } else {
    if (c.width % c.query_heads != 0)
      throw Error("gguf: llama.embedding_length is not a multiple of llama.attention.head_count");
    c.head_dim = c.width / c.query_heads;
  }
  if (file_.unsigned_number("llama.attention.value_length",
                            static_cast<std::uint64_t>(c.head_dim)) !=
      static_cast<std::uint64_t>(c.head_dim))
    throw Error(
        "gguf: llama.attention.value_length differs from the key length, which is not supported");
  c.vocabulary = file_.tensor("token_embd.weight").rows;
}

void Model::read_frequencies() {
  const Index dim = config_.head_dim;
  const auto rotated =
      file_.unsigned_number("llama.rope.dimension_count", static_cast<std::uint64_t>(dim));
  if (rotated != static_cast<std::uint64_t>(dim) || dim % 2 != 0)
    throw Error("gguf: llama.rope.dimension_count is " + std::to_string(rotated) +
                ", the heads have " + std::to_string(dim) +
                " channels; they must be equal and even");
  const double base = file_.real("llama.rope.freq_base", 10000.0);
  if (!(base >= 1 && base < 1e12)) throw Error("gguf: llama.rope.freq_base is out of range");
  double scale = 1;
  const std::string_view scaling = file_.string("llama.rope.scaling.type", "none");
  if (scaling == "linear") {
    scale = file_.real("llama.rope.scaling.factor");
    if (!(scale > 0 && scale < 1e6)) throw Error("gguf: llama.rope.scaling.factor is out of range");
  } else if (scaling != "none") {
    throw Error("gguf: llama.rope.scaling.type '" + std::string(scaling) + "' is not supported");
  }
  std::vector<float> factors(static_cast<std::size_t>(dim / 2), 1.f);
  if (file_.find("rope_freqs.weight")) factors = vector("rope_freqs.weight", dim / 2);
  for (Index i = 0; i < dim / 2; ++i) {
    const double frequency =
        std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
    frequencies_.push_back(frequency / scale / double{factors[static_cast<std::size_t>(i)]});
    if (!std::isfinite(frequencies_.back()))
      throw Error("gguf: tensor 'rope_freqs.weight' has a factor of 0");
  }
}

Weights Model::matrix(const std::string& name, Index rows, Index columns) const {
  const Tensor& tensor = file_.tensor(name);
  if (tensor.rows != rows || tensor.columns != columns)
    throw Error("gguf: tensor '" + name + "' is " + std::to_string(tensor.rows) + " x " +
                std::to_string(tensor.columns) + ", the metadata say " + std::to_string(rows) +
                " x " + std::to_string(columns));
  Weights out;
  out.type = tensor.type;
  out.rows = rows;
  out.columns = columns;
  out.row_bytes = tensor.row_bytes;
  out.data = tensor.data;
  return out;
}

std::vector<float> Model::vector(const std::string& name, Index length) const {
  const Weights row = matrix(name, 1, length);
  std::vector<float> out(static_cast<std::size_t>(length));
  dequantize(row.type, row.data, out.data(), length);
  return out;
}

}  // namespace engine
