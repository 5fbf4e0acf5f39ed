// SPDX-License-Identifier: MIT
// KIVI: keys quantised per channel, values per token.
//
// Paper:    Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv
//           2402.02750; code jy-yuan/KIVI.
// Formula:  x ~ scale * code + low, scale = (high - low) / (2^bits - 1), code rounded to nearest.
//           Keys: low and high of one channel over `group` consecutive rows; values: of `group`
//           channels of one row. Scale and low as f16: bits + 32 / group bits a number.
// Needs:    keys (after RoPE) and values.
// Cost:     attention decodes a block at a time (decoded_codec.hpp): here for comparison, not for
//           speed.
// Defaults: 2 bits in groups of 32, as in the paper's main tables; it also reports 4. The newest 128
//           rows stay exact (the code's residual length): Keep::recent.
// Differs:  after rows left, those of a group of keys are coded again over what stays (the published
//           code drops no rows); a last group may be shorter than 32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string_view>

#include "decoded_codec.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// A block, keys: for `group` rows at a time low and scale of every channel, then the rows' codes.
// Values: row by row, low and scale of every group of channels, then the codes.
class KiviCodec final : public DecodedCodec {
 public:
  KiviCodec(Side side, int dim, int bits, int group)
      : DecodedCodec(dim),
        dim_(dim),
        bits_(bits),
        rows_(side == Side::keys ? group : 1),
        channels_(side == Side::keys ? 1 : group) {}

  std::size_t bytes(Index rows) const override {
    return uz((rows + rows_ - 1) / rows_ * scale_bytes() + rows * row_bytes());
  }

  void encode(const float* rows, const std::uint32_t*, Index n, void* block) const override {
    auto* at = static_cast<std::uint8_t*>(block);
    std::memset(at, 0, bytes(n));
    for (Index first = 0; first < n; first += rows_) {
      const Index count = std::min(rows_, n - first);
      std::uint8_t* codes = at + scale_bytes();
      for (Index c = 0; c < dim_; c += channels_) {
        const Index width = std::min(channels_, dim_ - c);
        const auto number = [&](Index i) {
          return rows[(first + i / width) * dim_ + c + i % width];
        };
        float low = number(0), high = low;
        for (Index i = 1; i < count * width; ++i) {
          low = std::min(low, number(i));
          high = std::max(high, number(i));
        }
        // The codes follow what is stored of low and scale; no f16 holds more than 65504.
        const float most = 65504.f, steps = static_cast<float>((1 << bits_) - 1);
        const f16 pair[2] = {to_f16(std::clamp(low, -most, most)),
                             to_f16(std::min((high - low) / steps, most))};
        std::memcpy(at + c / channels_ * 4, pair, 4);
        const float base = to_float(pair[0]), scale = to_float(pair[1]);
        for (Index i = 0; i < count * width; ++i) {
          const float code = scale > 0 ? std::nearbyint((number(i) - base) / scale) : 0.f;
          const Index bit = (c + i % width) * bits_;
          codes[i / width * row_bytes() + bit / 8] =
              static_cast<std::uint8_t>(codes[i / width * row_bytes() + bit / 8] |
                                        static_cast<int>(std::clamp(code, 0.f, steps)) << bit % 8);
        }
      }
      at = codes + count * row_bytes();
    }
  }

  void decode_rows(const void* block, Index first, Index count, float* out) const override {
    const Index whole = scale_bytes() + rows_ * row_bytes();
    const unsigned mask = (1u << bits_) - 1;
    for (Index r = first; r < first + count; ++r, out += dim_) {
      const auto* at = static_cast<const std::uint8_t*>(block) + r / rows_ * whole;
      const std::uint8_t* codes = at + scale_bytes() + r % rows_ * row_bytes();
      float base = 0, scale = 0;
      for (Index c = 0; c < dim_; ++c) {
        if (c % channels_ == 0) {
          f16 pair[2];
          std::memcpy(pair, at + c / channels_ * 4, 4);
          base = to_float(pair[0]);
          scale = to_float(pair[1]);
        }
        const Index bit = c * bits_;
        out[c] = base + scale * static_cast<float>(codes[bit / 8] >> bit % 8 & mask);
      }
    }
  }

 private:
  Index row_bytes() const { return (dim_ * bits_ + 7) / 8; }
  Index scale_bytes() const { return (dim_ + channels_ - 1) / channels_ * 4; }

  Index dim_, bits_, rows_, channels_;  // rows_ by channels_ numbers share low and scale
};

}  // namespace detail

struct KIVI {
  int bits = 2;
  int value_bits = 0;  // of values, if they are to have others than keys
  int group = 32;      // rows of a channel (keys), channels of a row (values) that share a scale

  static constexpr std::string_view name = "kivi";
  static constexpr std::string_view summary =
      "keys quantised per channel, values per token (arXiv 2402.02750)";
  static constexpr Keep published{.recent = 128};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("bits", self.bits, "bits a number: 2, 4 or 8");
    visit("value_bits", self.value_bits, "bits of values, if others than of keys");
    visit("group", self.group, "rows of a channel, or channels of a row, that share a scale");
  }

  void check() const {
    const auto known = [](int b) { return b == 2 || b == 4 || b == 8; };
    if (!known(bits)) fail("KIVI::bits is ", bits, "; it must be 2, 4 or 8");
    if (value_bits != 0 && !known(value_bits))
      fail("KIVI::value_bits is ", value_bits, "; it must be 2, 4 or 8, or 0");
    if (group != 16 && group != 32 && group != 64)
      fail("KIVI::group is ", group, "; it must be 16, 32 or 64");
  }
  std::shared_ptr<const SideCodec> codec(Side side, int dim) const {
    return std::make_shared<detail::KiviCodec>(
        side, dim, side == Side::values && value_bits > 0 ? value_bits : bits, group);
  }
};

LESSKV_END_NAMESPACE
