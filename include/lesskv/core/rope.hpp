// SPDX-License-Identifier: MIT
// Rotary position embedding (Su et al., arXiv 2104.09864), forwards and back. With a description of
// it a cache can undo the rotation of keys for codecs that need them raw, and do it again.
//
// Pair i of a key turns by position * frequency(i). Angles are exact: positions are cut into digits
// of 64, sines and cosines of digit * 64^k * frequency are tabled from double, and a rotation
// multiplies up to six of them, which costs 4e-7 at any position below 2^32. (f32 angles, as
// common implementations use, are off by 1e-4 at position 8191.)
#pragma once

#include <cmath>
#include <vector>

#include "error.hpp"
#include "types.hpp"

LESSKV_BEGIN_NAMESPACE

struct Rope {
  // half_split: channel i turns with channel i + width / 2 (Hugging Face). interleaved: 2 i with
  // 2 i + 1 (GGUF files of the llama architecture, GPT-J).
  enum class Layout { half_split, interleaved };
  // linear: positions / factor. llama3: frequencies below a wavelength stay, above another are
  // divided by factor, in between blended (Llama 3.1). dynamic and YaRN: give `frequencies`.
  enum class Scaling { none, linear, llama3 };

  Layout layout = Layout::half_split;
  double theta = 10000;
  int width = 0;  // channels that turn, from the first on; 0: all
  Scaling scaling = Scaling::none;
  double factor = 1;
  double low_frequency = 1, high_frequency = 4;  // llama3
  double trained_context = 8192;                 // llama3
  std::vector<double> frequencies = {};  // radians a position for each pair; replaces all of these
};

class Rotation {
 public:
  static constexpr std::int64_t most_position = std::int64_t{1} << 32;

  Rotation() = default;
  Rotation(const Rope& rope, int head_dim)
      : layout_(rope.layout), width_(rope.width > 0 ? rope.width : head_dim) {
    if (head_dim < 2 || width_ > head_dim || width_ % 2 != 0 || rope.width < 0)
      fail("Rope::width is ", width_, "; it must be even and at most head_dim, ", head_dim);
    const std::vector<double> speed = frequencies(rope);
    table_.resize(static_cast<std::size_t>(digits * radix * width_));
    for (int k = 0; k < digits; ++k)
      for (int digit = 0; digit < radix; ++digit)
        for (int i = 0; i < pairs(); ++i) {
          const double angle =
              std::ldexp(static_cast<double>(digit), 6 * k) * speed[static_cast<std::size_t>(i)];
          float* at = entry(k, digit);
          at[i] = static_cast<float>(std::cos(angle));
          at[pairs() + i] = static_cast<float>(std::sin(angle));
        }
  }

  bool empty() const { return table_.empty(); }
  int width() const { return width_; }
  std::size_t bytes() const { return table_.size() * sizeof(float); }
  // For kernels: [digit k of 6][its value, 64][cosines of all pairs, then sines].
  const float* table() const { return table_.data(); }
  int pairs() const { return width_ / 2; }
  bool interleaved() const { return layout_ == Rope::Layout::interleaved; }

  // Turns one key, in place.
  void apply(float* key, Position position) const { turn(key, position, 1.f); }
  // Turns it back.
  void undo(float* key, Position position) const { turn(key, position, -1.f); }

  // Turns one key by angles whose cosines and sines are at hand, [width / 2] each.
  template <class T>
  void apply(T* key, const T* cosine, const T* sine) const {
    for (int i = 0; i < pairs(); ++i) {
      T &x = key[first_of(i)], &y = key[second_of(i)];
      const T turned = x * cosine[i] - y * sine[i];
      y = y * cosine[i] + x * sine[i];
      x = turned;
    }
  }
  // The two channels of pair i.
  int first_of(int i) const { return interleaved() ? 2 * i : i; }
  int second_of(int i) const { return interleaved() ? 2 * i + 1 : i + pairs(); }

  // cos and sin of a position, [width / 2] each.
  void angles(Position position, float* cosine, float* sine) const {
    std::int64_t rest = to_int(position);
    if (rest < 0 || rest >= most_position)
      fail("Rotation::position is ", rest, "; 0 to ", most_position - 1, " are possible");
    const float* first = entry(0, static_cast<int>(rest % radix));
    for (int i = 0; i < pairs(); ++i) {
      cosine[i] = first[i];
      sine[i] = first[pairs() + i];
    }
    rest /= radix;
    for (int k = 1; rest > 0; ++k, rest /= radix) {
      const int digit = static_cast<int>(rest % radix);
      if (digit == 0) continue;
      const float* by = entry(k, digit);
      for (int i = 0; i < pairs(); ++i) {
        const float c = cosine[i], s = sine[i];
        cosine[i] = c * by[i] - s * by[pairs() + i];
        sine[i] = s * by[i] + c * by[pairs() + i];
      }
    }
  }

 private:
  static constexpr int radix = 64, digits = 6;

  float* entry(int k, int digit) {
    return table_.data() + static_cast<std::size_t>((k * radix + digit) * width_);
  }
  const float* entry(int k, int digit) const {
    return table_.data() + static_cast<std::size_t>((k * radix + digit) * width_);
  }

  void turn(float* key, Position position, float direction) const {
    static thread_local std::vector<float> angle;
    if (angle.size() < static_cast<std::size_t>(width_))
      angle.resize(static_cast<std::size_t>(width_));
    float *cosine = angle.data(), *sine = cosine + pairs();
    angles(position, cosine, sine);
    for (int i = 0; i < pairs(); ++i) sine[i] *= direction;
    apply(key, cosine, sine);
  }

  std::vector<double> frequencies(const Rope& rope) const {
    const std::size_t count = static_cast<std::size_t>(pairs());
    if (!rope.frequencies.empty()) {
      if (rope.frequencies.size() != count)
        fail("Rope::frequencies has ", rope.frequencies.size(), " entries for ", count, " pairs");
      for (const double f : rope.frequencies)
        if (!std::isfinite(f)) fail("Rope::frequencies is not finite");
      return rope.frequencies;
    }
    if (!(rope.theta > 1 && std::isfinite(rope.theta))) fail("Rope::theta must be above 1");
    if (!(rope.factor > 0 && std::isfinite(rope.factor))) fail("Rope::factor must be above 0");
    std::vector<double> out(count);
    for (std::size_t i = 0; i < count; ++i) {
      double f = std::pow(rope.theta, -2.0 * static_cast<double>(i) / width_);
      if (rope.scaling == Rope::Scaling::linear) f /= rope.factor;
      if (rope.scaling == Rope::Scaling::llama3) f = scaled_as_llama3(rope, f);
      out[i] = f;
    }
    return out;
  }

  static double scaled_as_llama3(const Rope& rope, double f) {
    if (!(rope.high_frequency > rope.low_frequency && rope.low_frequency > 0 &&
          rope.trained_context > 0))
      fail("Rope::low_frequency, high_frequency, trained_context do not fit each other");
    const double turns = rope.trained_context * f / 6.283185307179586;  // within the context
    if (turns > rope.high_frequency) return f;
    if (turns < rope.low_frequency) return f / rope.factor;
    const double blend = (turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency);
    return (1 - blend) * f / rope.factor + blend * f;
  }

  Rope::Layout layout_ = Rope::Layout::half_split;
  int width_ = 0;
  std::vector<float> table_;
};

LESSKV_END_NAMESPACE
