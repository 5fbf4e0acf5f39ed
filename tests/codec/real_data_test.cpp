// SPDX-License-Identifier: MIT
// What every code does to keys, values and attention of a real model, as bands with both sides, beside
// ggml's formats of the same bytes and the rate-distortion bound. bench/codec_bench.cpp prints the same
// figures.
#include <gtest/gtest.h>

#include <cmath>
#include <lesskv/any.hpp>

#include "oracle/ggml_blocks.hpp"
#include "oracle/rate_distortion.hpp"
#include "support/real_layers.hpp"

namespace real_data_test {

using support::CodeError;
using support::RealHeads;
using support::RealLayer;

const RealHeads& real() {
  static const RealHeads all(LESSKV_TEST_DATA);
  return all;
}

// All rows stored as `code` says, `sinks` in front of them exact.
CodeError error_of(const std::string& code, int sinks = 0) {
  lesskv::PolicySpec spec = lesskv::parse_spec(code);
  spec.keep.sinks = sinks;
  spec.keep.recent = 0;
  lesskv::AnyCache cache = real().fill(lesskv::make_cache(spec, RealHeads::shape()));
  return real().error_of(cache);
}
using Format = std::vector<float> (*)(std::span<const float>);
CodeError error_of(Format format) {
  return real().error_of(format,
                         [](const std::vector<float>& q) { return oracle::through_q8_0(q); });
}
double bound(bool keys, double bits) {
  return real().mean(keys,
                     [&](auto rows) { return oracle::gaussian_bound(rows, RealLayer::dim, bits); });
}

TEST(RealData, BlockFormatsAreThoseOfGgufPy) {
  for (const bool keys : {true, false}) {
    const std::string side = keys ? "k" : "v", folder = LESSKV_TEST_DATA;
    std::vector<float> x = support::load_npy<float>(folder + "/inputs/" + side + "_l15.npy").data;
    x.resize(64 * 64);  // of head 0
    EXPECT_EQ(oracle::through_q8_0(x),
              support::load_npy<float>(folder + "/quant/q8_0_" + side + "_head0.npy").data);
    EXPECT_EQ(oracle::through_q4_0(x),
              support::load_npy<float>(folder + "/quant/q4_0_" + side + "_head0.npy").data);
  }
}

// Variances 16 and 1, 1 bit a number: the water level is 1, both get it, .5 log2 16 = 2 bits of 2. At
// half a bit a number it is 4, and the second one gets nothing.
TEST(RealData, BoundFillsFromTheLargestVariance) {
  const std::vector<float> rows = {4, 1, 4, -1, -4, 1, -4, -1};
  EXPECT_NEAR(oracle::gaussian_bound(rows, 2, 1), 1 / 8.5, 1e-9);
  EXPECT_NEAR(oracle::gaussian_bound(rows, 2, 0.5), (4 + 1) / 2.0 / 8.5, 1e-9);
  EXPECT_NEAR(oracle::gaussian_bound(rows, 2, 3), 1 / 16.0 / 8.5, 1e-9);
}

struct Band {
  const char* code;
  double bits;
  CodeError middle;
};

// Where the errors lie on this data, within a tenth: a code that gets better is a finding too. Sinks are
// coded here.
TEST(RealData, ErrorsLieInTheirBands) {
  const Band bands[] = {
      {"store(dtype=f16)+exact", 16, {4.31e-08, 4.4e-08, 0.00191, 0.00235, 0.000809, 0.000247}},
      {"store(dtype=bf16)+exact", 16, {2.78e-06, 2.92e-06, 0.0152, 0.0194, 0.00642, 0.00194}},
      {"int(bits=8,group=32)", 8.5, {6.24e-05, 5.35e-05, 0.0254, 0.0298, 0.0216, 0.0111}},
      {"int(bits=8)", 8.25, {0.000102, 8.22e-05, 0.0257, 0.0301, 0.0328, 0.0153}},
      {"int(bits=4,group=32)", 4.5, {0.015, 0.0125, 0.467, 0.492, 0.33, 0.14}},
      {"int(bits=4)", 4.25, {0.0241, 0.0189, 0.623, 0.596, 0.493, 0.196}},
      {"lm(bits=6)", 6.5, {0.000204, 0.000445, 0.0799, 0.129, 0.0412, 0.0274}},
      {"lm(bits=5)", 5.5, {0.000743, 0.00162, 0.15, 0.248, 0.0789, 0.0523}},
      {"lm(bits=4)", 4.5, {0.0028, 0.00607, 0.306, 0.47, 0.152, 0.107}},
      {"lm(bits=3)", 3.5, {0.0103, 0.0224, 0.573, 0.914, 0.293, 0.216}},
      {"lm(bits=2)", 2.5, {0.0363, 0.0778, 1.04, 1.65, 0.548, 0.409}},
      {"lm(bits=4,mean=false)", 4.25, {0.00819, 0.0083, 0.443, 0.525, 0.282, 0.0869}},
      {"kivi(bits=8)", 9, {6.14e-06, 2.77e-05, 0.0132, 0.0219, 0.00666, 0.00397}},
      {"kivi(bits=4)", 5, {0.00175, 0.008, 0.213, 0.37, 0.112, 0.066}},
      {"kivi(bits=2)", 3, {0.0448, 0.213, 1.06, 1.81, 0.566, 0.381}},
  };
  // Without 8-bit queries (neither AVX2 nor AVX-512) the output is nearer.
  const double low = lesskv::kernels().lanes > 4 ? 0.9 : 0.6, high = 1.1;
  for (const Band& band : bands) {
    SCOPED_TRACE(band.code);
    const CodeError e = error_of(band.code), &m = band.middle;
    const auto within = [&](const char* name, double got, double middle, double from) {
      EXPECT_GE(got, from * middle) << name;
      EXPECT_LE(got, high * middle) << name;
    };
    within("NMSE of keys", e.key_nmse, m.key_nmse, 0.9);
    within("NMSE of values", e.value_nmse, m.value_nmse, 0.9);
    within("largest error of keys", e.key_max, m.key_max, 0.9);
    within("largest error of values", e.value_max, m.value_max, 0.9);
    within("logits", e.logits, m.logits, 0.9);
    within("attention output", e.output, m.output, low);
    EXPECT_GT(e.key_nmse, bound(true, band.bits));
    EXPECT_GT(e.value_nmse, bound(false, band.bits));
  }
}

// The formats that engines know, at equal bytes.
TEST(RealData, IntegersAreAsGoodAsTheFormatsOfTheSameBytes) {
  const auto expect = [](const char* code, Format format, double most) {
    const CodeError ours = error_of(code), theirs = error_of(format);
    EXPECT_LE(ours.output, most * theirs.output) << code;
    EXPECT_LE(ours.logits, most * theirs.logits) << code;
    EXPECT_LE(ours.key_nmse, 1.01 * theirs.key_nmse) << code;
    EXPECT_LE(ours.value_nmse, 1.01 * theirs.value_nmse) << code;
    EXPECT_GE(ours.output, theirs.output / most) << code;  // bytes for bytes the same kind of code
  };
  expect("int(bits=8,group=32)", oracle::through_q8_0, 1.1);
  expect("int(bits=4,group=32)", oracle::through_q4_0, 1.35);
}

TEST(RealData, F16StaysWithinAThousandth) {
  EXPECT_LE(error_of("store(dtype=f16)+exact").output, 1e-3);
  EXPECT_LE(error_of("store(dtype=f32)+exact").output, 1e-5);
}

// The first row of a text has a small value, and most queries look at it. Where the mean of its block
// is taken off, that value gets an error as large as those of its neighbours: hence the exact sinks.
TEST(RealData, ExactSinksHalveTheErrorOfCodesWithAMean) {
  for (const char* code : {"lm(bits=4)", "lm(bits=3)"})
    EXPECT_LT(error_of(code, 4).output, 0.55 * error_of(code).output) << code;
  EXPECT_LT(error_of("lm(bits=4)", 4).output, 0.7 * error_of("lm(bits=4,mean=false)", 4).output);
}

}  // namespace real_data_test
