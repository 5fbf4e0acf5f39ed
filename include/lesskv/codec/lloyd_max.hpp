// SPDX-License-Identifier: MIT
// LloydMax: keys and values as 2 to 6 bits a number, Gaussian levels after a Hadamard rotation.
//
// Papers:   Lloyd, "Least Squares Quantization in PCM", 1957/1982, and Max, "Quantizing for Minimum
//           Distortion", 1960 (the levels); Ashkboos et al., "QuaRot", arXiv 2404.00456 (Hadamard);
//           Zandieh et al., "TurboQuant", arXiv 2504.19874, Alg. 1 (rotation and Lloyd-Max levels).
// Formula:  y = H (row) - mean over the 64 rows of a block; code = nearest level of y / scale, scale
//           the least-squares one for these levels. The query is rotated once, the output once.
// Needs:    keys and values.
// Cost:     bits + 16/channels + 16/64 (the mean) bits a number; encoding one Hadamard transform a
//           row.
// Defaults: 4 bits, with the mean (ours: Cost above). 4 exact sinks in the text form: keys of
//           attention sinks are outliers; compare `lm` with `keep(sinks=0)+lm` in the main job.
// Differs:  levels are integers, of 8 bits, of 17 (2 and 3 bits) or 43 steps (4 bits), so that attention
//           stays in integers: the error of unit Gaussian rows stays within 5 % of the quantiser's
//           own (tests/codec/scalar_test.cpp).
//           mean = false is TurboQuant's MSE codec, but for its random rotation and norm (here:
//           Hadamard, fitted scale).
#pragma once

#include <string_view>

#include "../core/shape.hpp"
#include "scalar_codec.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// Levels of the Lloyd-Max quantiser of a unit Gaussian, ascending, by its fixed-point iteration.
inline std::vector<double> gaussian_levels(int bits) {
  const int n = 1 << bits;
  std::vector<double> level(uz(n));
  for (int i = 0; i < n; ++i) level[uz(i)] = 3.0 * (2 * i + 1 - n) / n;
  const auto density = [](double x) { return std::exp(-0.5 * x * x) * 0.3989422804014327; };
  const auto below = [](double x) { return 0.5 * std::erfc(-x * 0.7071067811865476); };
  for (int round = 0; round < 2000; ++round) {
    double moved = 0;
    double low_density = 0, low_below = 0;
    for (int i = 0; i < n; ++i) {
      const bool last = i + 1 == n;
      const double border = last ? 0 : 0.5 * (level[uz(i)] + level[uz(i + 1)]);
      const double high_density = last ? 0 : density(border), high_below = last ? 1 : below(border);
      const double centre = (low_density - high_density) / (high_below - low_below);
      moved = std::max(moved, std::abs(centre - level[uz(i)]));
      level[uz(i)] = centre;
      low_density = high_density;
      low_below = high_below;
    }
    if (moved < 1e-9) break;
  }
  return level;
}

}  // namespace detail

struct LloydMax {
  int bits = 4;
  int value_bits = 0;  // of values, if they are to have others than keys
  bool mean = true;    // of every block of 64 rows is removed and stored apart

  static constexpr std::string_view name = "lm";
  static constexpr std::string_view summary =
      "Hadamard, Gaussian Lloyd-Max levels, one scale a row";
  static constexpr Keep published{.sinks = 4};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("bits", self.bits, "bits a number, 2 to 6");
    visit("value_bits", self.value_bits, "bits of values, if others than of keys");
    visit("mean", self.mean, "the mean of every block of 64 rows is stored apart");
  }

  void check() const {
    if (bits < 2 || bits > 6) fail("LloydMax::bits is ", bits, "; it must lie between 2 and 6");
    if (value_bits != 0 && (value_bits < 2 || value_bits > 6))
      fail("LloydMax::value_bits is ", value_bits, "; it must lie between 2 and 6, or be 0");
  }
  std::shared_ptr<const SideCodec> codec(Side side, int dim) const {
    detail::ScalarFormat format;
    format.side = side;
    format.dim = dim;
    format.bits = side == Side::values && value_bits > 0 ? value_bits : bits;
    format.mean = mean;
    format.rotated = true;
    format.fit = true;
    const std::vector<double> levels = detail::gaussian_levels(format.bits);
    if (format.bits <= 4) {
      // Levels on a grid of `steps` + 1 numbers from -end to end. These grids add .2, 1.0 and 1.8 % to
      // the mean square error of 2, 3 and 4 bits; coarser ones, or the next ends, add more.
      const int steps = format.bits < 4 ? 16 : 42, shift = format.bits < 4 ? 3 : 2;
      const double end = format.bits == 2 ? 1.732 : format.bits == 3 ? 2.14 : 2.862;
      format.set_units(shift, -(steps / 2 << shift), [&](int code) {
        return std::lround((levels[detail::uz(code)] / end + 1) * steps / 2);
      });
      format.top = static_cast<float>(127 * end / (steps / 2 << shift));
    } else {
      format.top = static_cast<float>(levels.back());
      format.set_levels(
          [&](int code) { return std::lround(levels[detail::uz(code)] / levels.back() * 127); });
    }
    return std::make_shared<detail::ScalarCodec>(format);
  }
};

LESSKV_END_NAMESPACE
