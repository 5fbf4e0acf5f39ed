// SPDX-License-Identifier: MIT
// GGUF files made in memory, and a complete tiny model of random weights.
#pragma once

#include <cstring>
#include <engine/gguf.hpp>
#include <engine/tokenizer.hpp>
#include <lesskv/core/types.hpp>
#include <random>
#include <string>
#include <vector>

namespace engine_test {

using engine::Index;
using engine::TensorType;
using Bytes = std::vector<std::byte>;

// Writes what the format's specification says, valid or not.
class GgufFile {
 public:
  explicit GgufFile(std::uint32_t version = 3) : version_(version) {}

  void number(const std::string& key, std::uint32_t value) {
    entry(key, 4);
    put(values_, value);
  }
  void real(const std::string& key, float value) {
    entry(key, 6);
    put(values_, value);
  }
  void string(const std::string& key, const std::string& value) {
    entry(key, 8);
    text(values_, value);
  }
  void strings(const std::string& key, const std::vector<std::string>& value) {
    entry(key, 9);
    put(values_, std::uint32_t{8});
    put(values_, std::uint64_t{value.size()});
    for (const std::string& one : value) text(values_, one);
  }
  void integers(const std::string& key, const std::vector<std::int32_t>& value) {
    entry(key, 9);
    put(values_, std::uint32_t{5});
    put(values_, std::uint64_t{value.size()});
    for (const std::int32_t one : value) put(values_, one);
  }
  // axes: the fastest first, as the format has them.
  void tensor(const std::string& name, std::uint32_t type, const std::vector<std::uint64_t>& axes,
              const Bytes& data) {
    data_.resize((data_.size() + 31) / 32 * 32);
    text(tensors_, name);
    put(tensors_, static_cast<std::uint32_t>(axes.size()));
    for (const std::uint64_t axis : axes) put(tensors_, axis);
    put(tensors_, type);
    put(tensors_, std::uint64_t{data_.size()});
    data_.insert(data_.end(), data.begin(), data.end());
    ++tensor_count_;
  }

  Bytes bytes() const {
    Bytes out = header();
    out.resize((out.size() + 31) / 32 * 32);
    out.insert(out.end(), data_.begin(), data_.end());
    return out;
  }
  // All before the data of the tensors.
  Bytes header() const {
    Bytes out;
    for (const char c : {'G', 'G', 'U', 'F'}) out.push_back(static_cast<std::byte>(c));
    put(out, version_);
    put(out, tensor_count_);
    put(out, value_count_);
    out.insert(out.end(), values_.begin(), values_.end());
    out.insert(out.end(), tensors_.begin(), tensors_.end());
    return out;
  }

 private:
  template <class T>
  static void put(Bytes& to, T value) {
    const std::size_t at = to.size();
    to.resize(at + sizeof value);
    std::memcpy(to.data() + at, &value, sizeof value);
  }
  static void text(Bytes& to, const std::string& value) {
    put(to, std::uint64_t{value.size()});
    for (const char c : value) to.push_back(static_cast<std::byte>(c));
  }
  void entry(const std::string& key, std::uint32_t type) {
    text(values_, key);
    put(values_, type);
    ++value_count_;
  }

  std::uint32_t version_;
  std::uint64_t tensor_count_ = 0, value_count_ = 0;
  Bytes values_, tensors_, data_;
};

// Random numbers that a type can hold, as it stores them. Blocks: small scales, any codes.
inline Bytes random_weights(TensorType type, Index count, std::mt19937& random) {
  const engine::TensorLayout layout = engine::layout_of(type);
  std::normal_distribution<float> normal(0, 0.3f);
  Bytes out(static_cast<std::size_t>(count / layout.block_numbers * layout.block_bytes));
  const auto put_half = [&](std::size_t at, float x) {
    const lesskv::f16 half = lesskv::to_f16(x);
    std::memcpy(&out[at], &half, 2);
  };
  for (std::size_t at = 0; at < out.size(); at += static_cast<std::size_t>(layout.block_bytes)) {
    if (type == TensorType::f32) {
      const float x = normal(random);
      std::memcpy(&out[at], &x, 4);
    } else if (type == TensorType::f16) {
      put_half(at, normal(random));
    } else if (type == TensorType::bf16) {
      const lesskv::bf16 x = lesskv::to_bf16(normal(random));
      std::memcpy(&out[at], &x, 2);
    } else {
      for (std::size_t i = 0; i < static_cast<std::size_t>(layout.block_bytes); ++i)
        out[at + i] = static_cast<std::byte>(random() & 255);
      put_half(at, normal(random) * (type == TensorType::q8_0 ? 0.015f : 0.2f));
      if (type == TensorType::q4_1) put_half(at + 2, normal(random));
    }
  }
  return out;
}

// Sizes of the tiny model. Rows of 64 and 96 numbers are whole blocks of every type.
struct Tiny {
  static constexpr Index layers = 2, width = 64, heads = 4, kv_heads = 2, feed_forward = 96;
  static constexpr Index head_dim = width / heads;
  // A token per byte, and three merges.
  static std::vector<std::string> tokens() {
    std::vector<std::string> out;
    for (unsigned byte = 0, next = 0x100; byte < 256; ++byte) {
      const bool prints =
          (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      const unsigned code = prints ? byte : next++;
      if (code < 0x80)
        out.push_back(std::string(1, static_cast<char>(code)));
      else
        out.push_back(
            {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 63))});
    }
    for (const char* merged : {"th", "the", "in", "<|end|>"}) out.push_back(merged);
    return out;
  }
};

inline GgufFile tiny_model(TensorType type, unsigned seed = 1) {
  using T = Tiny;
  const std::vector<std::string> tokens = T::tokens();
  GgufFile file;
  file.string("general.architecture", "llama");
  file.number("llama.block_count", T::layers);
  file.number("llama.embedding_length", T::width);
  file.number("llama.feed_forward_length", T::feed_forward);
  file.number("llama.attention.head_count", T::heads);
  file.number("llama.attention.head_count_kv", T::kv_heads);
  file.number("llama.context_length", 512);
  file.real("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  file.real("llama.rope.freq_base", 10000);
  file.string("tokenizer.ggml.model", "gpt2");
  file.string("tokenizer.ggml.pre", "smollm");
  file.strings("tokenizer.ggml.tokens", tokens);
  std::vector<std::int32_t> types(tokens.size(), 1);
  types.back() = 3;  // control
  file.integers("tokenizer.ggml.token_type", types);
  file.strings("tokenizer.ggml.merges", {"t h", "th e", "i n"});
  file.number("tokenizer.ggml.eos_token_id", static_cast<std::uint32_t>(tokens.size() - 1));

  std::mt19937 random(seed);
  const auto matrix = [&](const std::string& name, Index rows, Index columns) {
    file.tensor(name, static_cast<std::uint32_t>(type),
                {static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows)},
                random_weights(type, rows * columns, random));
  };
  const auto gains = [&](const std::string& name) {
    file.tensor(name, 0, {T::width}, random_weights(TensorType::f32, T::width, random));
  };
  matrix("token_embd.weight", static_cast<Index>(tokens.size()), T::width);
  gains("output_norm.weight");
  for (Index l = 0; l < T::layers; ++l) {
    const std::string block = "blk." + std::to_string(l) + ".";
    gains(block + "attn_norm.weight");
    gains(block + "ffn_norm.weight");
    matrix(block + "attn_q.weight", T::width, T::width);
    matrix(block + "attn_k.weight", T::kv_heads * T::head_dim, T::width);
    matrix(block + "attn_v.weight", T::kv_heads * T::head_dim, T::width);
    matrix(block + "attn_output.weight", T::width, T::width);
    matrix(block + "ffn_gate.weight", T::feed_forward, T::width);
    matrix(block + "ffn_up.weight", T::feed_forward, T::width);
    matrix(block + "ffn_down.weight", T::width, T::feed_forward);
  }
  return file;
}

}  // namespace engine_test
