// SPDX-License-Identifier: MIT
// IntCode: keys and values as 4- or 8-bit integers with an f16 scale per row, or per 32 channels of
// a row. The formats that engines know: with group = 32 the bytes of ggml's q8_0 and q4_0.
//
// Source:   ggml, ggml-quants.c, q8_0 and q4_0 (formats, not code).
// Formula:  8 bits: scale = max |x| / 127, code = round(x / scale). 4 bits: levels -8 ... 7, the
//           number of the largest magnitude at -8 (as q4_0), the scale then fitted by least squares.
// Needs:    keys and values.
// Cost:     bits + 16 / group bits a number.
// Defaults: 8 bits, one scale a row; 4 exact sinks in the text form, as LloydMax has.
// Differs:  the scale of 4 bits is fitted after the codes are chosen; codes lie as the attention
//           kernels read them (scalar_code.hpp), not row by row.
#pragma once

#include <string_view>

#include "../core/shape.hpp"
#include "scalar_codec.hpp"

LESSKV_BEGIN_NAMESPACE

struct IntCode {
  int bits = 8;        // 4 or 8
  int value_bits = 0;  // of values, if they are to have others than keys
  int group = 0;       // channels that share a scale: 32, or 0 for all of a row

  static constexpr std::string_view name = "int";
  static constexpr std::string_view summary = "integers with a scale per row or per 32 channels";
  static constexpr Keep published{.sinks = 4};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("bits", self.bits, "4 or 8");
    visit("value_bits", self.value_bits, "bits of values, if others than of keys");
    visit("group", self.group, "channels that share a scale: 32, or 0 for all of a row");
  }

  void check() const {
    if (bits != 4 && bits != 8) fail("IntCode::bits is ", bits, "; it must be 4 or 8");
    if (value_bits != 0 && value_bits != 4 && value_bits != 8)
      fail("IntCode::value_bits is ", value_bits, "; it must be 4 or 8, or 0");
    if (group != 0 && group != 32) fail("IntCode::group is ", group, "; it must be 0 or 32");
  }
  std::shared_ptr<const SideCodec> codec(Side side, int dim) const {
    detail::ScalarFormat format;
    format.side = side;
    format.dim = dim;
    format.bits = side == Side::values && value_bits > 0 ? value_bits : bits;
    format.group = group < dim ? group : 0;
    format.fit = format.bits == 4;
    if (format.bits == 4) format.set_units(4, -128, [](int code) { return code; });
    return std::make_shared<detail::ScalarCodec>(format);
  }
};

LESSKV_END_NAMESPACE
