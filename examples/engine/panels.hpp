// SPDX-License-Identifier: MIT
// Activations of a pass, with tokens in lanes. Tokens are cut into panels of 32; panel p is a
// matrix [feature][32 tokens] in one piece of memory. Every operation of the network then runs
// along contiguous memory at full vector width, whatever the feature count, and a matrix product
// needs no packing: its output is laid out as the input of the next one. The last panel is 16 wide
// when that is enough, and a single token is a panel of width 1: a plain vector, so decoding uses
// the same code. Lanes without a token hold zeros or finite rubbish, never NaN.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <span>

#include "gguf.hpp"

namespace engine {

// Runs task(0) ... task(count - 1), in any order and on any threads, and returns when all have
// returned.
using Executor = std::function<void(Index count, const std::function<void(Index)>& task)>;

// Memory aligned to a cache line that only grows; new memory is zero.
class Buffer {
 public:
  float* reserve(Index count) {
    if (count > capacity_) {
      const Index wanted = (count + 15) / 16 * 16;
      const auto bytes = static_cast<std::size_t>(wanted) * sizeof(float);
      floats_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      capacity_ = floats_ ? wanted : 0;
      if (!floats_) throw std::bad_alloc();
      std::fill_n(floats_.get(), wanted, 0.f);
    }
    return floats_.get();
  }
  float* data() const { return floats_.get(); }
  std::size_t bytes() const { return static_cast<std::size_t>(capacity_) * sizeof(float); }

 private:
  struct Free {
    void operator()(float* at) const { std::free(at); }
  };
  std::unique_ptr<float, Free> floats_;
  Index capacity_ = 0;
};

class Panels {
 public:
  static constexpr Index full_width = 32, half_width = 16;

  // Room for tokens * features; contents are undefined afterwards.
  void resize(Index features, Index tokens) {
    features_ = features;
    tokens_ = tokens;
    buffer_.reserve(features * ((tokens + full_width - 1) / full_width * full_width));
  }

  Index features() const { return features_; }
  Index tokens() const { return tokens_; }
  Index count() const { return (tokens_ + full_width - 1) / full_width; }
  Index tokens_in(Index panel) const { return std::min(full_width, tokens_ - panel * full_width); }
  Index width(Index panel) const {
    if (tokens_ == 1) return 1;
    return tokens_in(panel) > half_width ? full_width : half_width;
  }
  Index size(Index panel) const { return features_ * width(panel); }
  float* panel(Index panel) { return buffer_.data() + panel * full_width * features_; }
  const float* panel(Index panel) const { return buffer_.data() + panel * full_width * features_; }
  std::size_t bytes() const { return buffer_.bytes(); }

 private:
  Index features_ = 0, tokens_ = 0;
  Buffer buffer_;
};

// A weight matrix as it lies in the file, [rows][columns], one row per output.
struct Weights {
  TensorType type = TensorType::f32;
  Index rows = 0, columns = 0, row_bytes = 0;
  const std::byte* data = nullptr;
  // GGUF stores the query and key projections of this architecture with the two halves of every
  // head interleaved (row 2i is channel i, row 2i + 1 is channel i + head_dim / 2:
  // convert_hf_to_gguf.py, LlamaModel.permute). When this is the head_dim, rows are looked up in
  // the original half-split order, which costs nothing. 0: rows as they are.
  Index interleaved_head_dim = 0;

  const std::byte* row(Index index) const {
    if (interleaved_head_dim > 0) {
      const Index half = interleaved_head_dim / 2, channel = index % interleaved_head_dim;
      index += (channel < half ? 2 * channel : 2 * (channel - half) + 1) - channel;
    }
    return data + index * row_bytes;
  }
};

// out = weights * in, or out += weights * in. `out` is resized unless it is added to. Weights stay
// in their stored form and are dequantised to f32 inside: one token, row by row in registers; more
// tokens, a block of rows at a time into a scratch of 256 KB. Sums are f32.
void multiply(const Weights& weights, const Panels& in, Panels& out, bool add,
              const Executor& executor);

// The same for one token: in[columns], out[rows].
void multiply(const Weights& weights, const float* in, float* out, bool add,
              const Executor& executor);

// out = in / sqrt(mean(in^2) + epsilon) * gain, per token (Zhang and Sennrich 2019, RMSNorm).
void rms_norm(const Panels& in, std::span<const float> gain, float epsilon, Panels& out);

// gate = silu(gate) * up (Shazeer 2020, SwiGLU). Relative error of the exponential below 3e-7.
void swiglu(Panels& gate, const Panels& up);

// Rotary position embedding (Su et al. 2021) of half-split channels: the pair (i, i + head_dim / 2)
// of every head turns by position * frequencies[i]. Angles are computed in double.
void rotation_table(std::span<const double> frequencies, std::span<const std::int64_t> positions,
                    Panels& cosines, Panels& sines);
void rotate(Panels& heads, const Panels& cosines, const Panels& sines);

// Token-major rows [token][feature], which is what a cache takes and gives, to panels and back.
void to_rows(const Panels& in, float* rows);
void from_rows(const float* rows, Index features, Index tokens, Panels& out);
void copy_token(const Panels& in, Index token, float* row);

}  // namespace engine
