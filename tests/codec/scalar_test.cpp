// SPDX-License-Identifier: MIT
// Scalar codes: what a block decodes to, how far that is from the rows, and attention on the codes
// against attention over decoded rows in double, for every instruction set of this machine.
#include <gtest/gtest.h>

#include <cmath>
#include <lesskv/codec/int_code.hpp>
#include <lesskv/codec/lloyd_max.hpp>
#include <random>
#include <string>
#include <vector>

namespace scalar_test {

using namespace lesskv;
using detail::AlignedDelete;
using detail::Floats;
using detail::scalar_kernels;
using detail::ScalarCodec;
using detail::ScalarFormat;
using detail::uz;

std::vector<float> normal(Index n, unsigned seed, float offset = 0) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> x(uz(n));
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = distribution(random) + offset * std::sin(static_cast<float>(i % 13));
  return x;
}

struct Named {
  std::string name;
  int bits, group;  // group < 0: Lloyd-Max
  bool mean;
};
std::vector<Named> all_codes() {
  std::vector<Named> out;
  for (const int bits : {2, 3, 4, 5, 6}) {
    out.push_back({"lm" + std::to_string(bits), bits, -1, true});
    out.push_back({"lm" + std::to_string(bits) + "_no_mean", bits, -1, false});
  }
  for (const int bits : {4, 8})
    for (const int group : {0, 32})
      out.push_back(
          {"int" + std::to_string(bits) + (group > 0 ? "_b32" : "_tok"), bits, group, false});
  return out;
}
ScalarFormat format_of(const Named& named, Side side, int dim) {
  const auto codec = named.group < 0
                         ? LloydMax{.bits = named.bits, .mean = named.mean}.codec(side, dim)
                         : IntCode{.bits = named.bits, .group = named.group}.codec(side, dim);
  return static_cast<const ScalarCodec&>(*codec).format();
}

// Rows of one side in blocks of 64, encoded.
struct Coded {
  ScalarCodec codec;
  int dim;
  Index rows;
  std::vector<std::unique_ptr<char, AlignedDelete>> blocks;
  std::vector<float> decoded;

  Coded(const ScalarFormat& format, const KernelTable& table, const std::vector<float>& x)
      : codec(format, scalar_kernels(table)),
        dim(format.dim),
        rows(static_cast<Index>(x.size()) / dim),
        decoded(x.size()) {
    for (Index first = 0; first < rows; first += 64) {
      const Index n = std::min<Index>(64, rows - first);
      blocks.emplace_back(static_cast<char*>(::operator new(codec.bytes(n), detail::alignment)));
      codec.encode(x.data() + first * dim, nullptr, n, blocks.back().get());
      codec.decode(blocks.back().get(), nullptr, 0, n, decoded.data() + first * dim);
    }
  }
};

double nmse(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, square = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += std::pow(double{x[i]} - double{y[i]}, 2);
    square += double{x[i]} * double{x[i]};
  }
  return error / square;
}

// Error over power of unit Gaussian rows: both sides of a band. Lloyd-Max has .1175, .03454,
// .009497, .002499, .000641 for 2 to 6 bits (Max 1960, table I); 8 bits and the fitted scale of a
// row of 128 leave a little less or more. What no code of that rate can beat is 4^-bits.
TEST(ScalarCode, ErrorOfGaussianRowsLiesInItsBand) {
  const std::vector<float> x = normal(512 * 128, 1);
  const double theory[] = {0, 0, .1175, .03454, .009497, .002499, .000641};
  for (const Side side : {Side::keys, Side::values}) {
    for (int bits = 2; bits <= 6; ++bits) {
      const Coded coded(format_of({"", bits, -1, false}, side, 128), kernels(), x);
      const double error = nmse(x, coded.decoded);
      EXPECT_LT(error, theory[bits] * 1.05) << bits;
      EXPECT_GT(error, theory[bits] * 0.9) << bits;
      EXPECT_GT(error, std::pow(4.0, -bits)) << bits;
    }
    // Uniform levels: step^2 / 12 with the step that the largest of 32 or 128 numbers asks for.
    const auto error = [&](int bits, int group) {
      return nmse(x, Coded(format_of({"", bits, group, false}, side, 128), kernels(), x).decoded);
    };
    EXPECT_NEAR(error(8, 32), 2.85e-5, 0.15e-5);
    EXPECT_NEAR(error(8, 0), 3.7e-5, 0.5e-5);
    EXPECT_NEAR(error(4, 32), 6.9e-3, 0.6e-3);
    EXPECT_NEAR(error(4, 0), 1.04e-2, 0.1e-2);
  }
}

// The mean of a block costs 16 / 64 bits and takes the offset of the channels out of the error.
TEST(ScalarCode, MeanOfTheBlockTakesTheOffsetOut) {
  std::vector<float> x = normal(512 * 64, 2);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += 4 * std::sin(static_cast<float>(i % 64));
  const auto absolute = [&](bool mean) {
    const Coded coded(format_of({"", 4, -1, mean}, Side::keys, 64), kernels(), x);
    double error = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
      error += std::pow(double{x[i]} - double{coded.decoded[i]}, 2) / double(x.size());
    return error;
  };
  EXPECT_LT(absolute(true), 0.0105);
  EXPECT_GT(absolute(false), 0.05);
}

TEST(ScalarCode, BytesAreWhatTheRateSays) {
  const auto bits = [](const Named& named, int dim) {
    const ScalarFormat f = format_of(named, Side::keys, dim),
                       g = format_of(named, Side::values, dim);
    EXPECT_EQ(f.bytes(64), g.bytes(64));
    return 8.0 * static_cast<double>(f.bytes(64)) / 64 / dim;
  };
  EXPECT_DOUBLE_EQ(bits({"", 4, -1, true}, 64), 4 + 16.0 / 64 + 16.0 / 64);
  EXPECT_DOUBLE_EQ(bits({"", 3, -1, false}, 128), 3 + 16.0 / 128);
  EXPECT_DOUBLE_EQ(bits({"", 8, 32, false}, 128), 8.5);  // as q8_0
  EXPECT_DOUBLE_EQ(bits({"", 4, 32, false}, 128), 4.5);  // as q4_0
}

// Zero rows, one large number, numbers near the ends of f16: finite, and the best that a code can.
TEST(ScalarCode, AwkwardRowsStayFinite) {
  for (const Named& named : all_codes())
    for (const Side side : {Side::keys, Side::values}) {
      std::vector<float> x(4 * 64, 0.f);
      x[64] = 3;
      for (int c = 0; c < 64; ++c) x[uz(128 + c)] = 65504;
      for (int c = 0; c < 64; ++c) x[uz(192 + c)] = 1e-7f;
      const Coded coded(format_of(named, side, 64), kernels(), x);
      for (const float y : coded.decoded) EXPECT_TRUE(std::isfinite(y)) << named.name;
      for (int c = 0; c < 64 && !named.mean; ++c) {
        EXPECT_EQ(coded.decoded[uz(c)], 0) << named.name;
      }
    }
}

TEST(ScalarCode, GatherMovesCodesAsTheyAre) {
  for (const Named& named : all_codes())
    for (const Side side : {Side::keys, Side::values})
      for (const int dim : {1, 20, 64}) {
        const std::vector<float> x = normal(50 * dim, 3, 1);
        const Coded coded(format_of(named, side, dim), kernels(), x);
        std::vector<std::uint8_t> rows;
        for (int r = 0; r < 50; r += 1 + r % 3) rows.push_back(static_cast<std::uint8_t>(r));
        std::vector<std::uint32_t> positions(50);
        std::unique_ptr<char, AlignedDelete> out(static_cast<char*>(
            ::operator new(coded.codec.bytes(static_cast<Index>(rows.size())), detail::alignment)));
        coded.codec.gather(coded.blocks[0].get(), positions.data(), rows, out.get());
        std::vector<float> decoded(rows.size() * uz(dim));
        coded.codec.decode(out.get(), nullptr, 0, static_cast<Index>(rows.size()), decoded.data());
        for (std::size_t i = 0; i < rows.size(); ++i)
          for (int c = 0; c < dim; ++c)
            ASSERT_EQ(decoded[i * uz(dim) + uz(c)], coded.decoded[rows[i] * uz(dim) + uz(c)])
                << named.name << " dim " << dim << " row " << i << " channel " << c;
      }
}

struct Outcome {
  std::vector<float> out, logits;
};

// Attention of `query_rows` rows over coded keys and values.
Outcome attend(const KernelTable& table, const Coded& keys, const Coded& values,
               const std::vector<float>& queries) {
  const Index n = static_cast<Index>(queries.size()) / keys.dim;
  std::vector<BlockRef> blocks;
  for (std::size_t b = 0; b < keys.blocks.size(); ++b)
    blocks.push_back({keys.blocks[b].get(), values.blocks[b].get(),
                      std::min<Index>(64, keys.rows - Index(b) * 64), true});
  AttendTask task{};
  task.blocks = blocks.data();
  task.block_count = static_cast<Index>(blocks.size());
  task.dtype = DType::f16;
  task.key_code = &keys.codec.code();
  task.value_code = &values.codec.code();
  task.key_dim = keys.dim;
  task.value_dim = values.dim;
  task.queries = queries.data();
  task.query_rows = n;
  task.scale = 1 / std::sqrt(static_cast<float>(keys.dim));
  std::vector<float> max(uz(n), -INFINITY), den(uz(n), 0.f);
  Outcome outcome{std::vector<float>(uz(n * values.dim), 0.f),
                  std::vector<float>(uz(n * keys.rows))};
  task.max = max.data();
  task.den = den.data();
  task.num = outcome.out.data();
  Floats workspace(attend_workspace(task));
  // Rubbish, so that what is read before it is written shows.
  std::fill_n(workspace.data(), attend_workspace(task), NAN);
  task.workspace = workspace.data();
  table.attend(task);
  for (Index i = 0; i < n; ++i)
    for (int c = 0; c < values.dim; ++c) outcome.out[uz(i * values.dim + c)] /= den[uz(i)];
  std::fill_n(workspace.data(), attend_workspace(task), NAN);
  table.logits(task, outcome.logits.data(), keys.rows);
  return outcome;
}

Outcome by_definition(const Coded& keys, const Coded& values, const std::vector<float>& queries) {
  const Index n = static_cast<Index>(queries.size()) / keys.dim;
  Outcome out;
  for (Index i = 0; i < n; ++i) {
    std::vector<double> logit(uz(keys.rows));
    double max = -INFINITY, den = 0;
    for (Index r = 0; r < keys.rows; ++r) {
      double x = 0;
      for (int c = 0; c < keys.dim; ++c)
        x += double{queries[uz(i * keys.dim + c)]} * double{keys.decoded[uz(r * keys.dim + c)]};
      logit[uz(r)] = x / std::sqrt(double(keys.dim));
      out.logits.push_back(static_cast<float>(logit[uz(r)]));
      max = std::max(max, logit[uz(r)]);
    }
    for (double& x : logit) den += x = std::exp(x - max);
    for (int c = 0; c < values.dim; ++c) {
      double sum = 0;
      for (Index r = 0; r < keys.rows; ++r)
        sum += logit[uz(r)] * double{values.decoded[uz(r * values.dim + c)]};
      out.out.push_back(static_cast<float>(sum / den));
    }
  }
  return out;
}

class ScalarAttention : public testing::TestWithParam<const KernelTable*> {};

// Up to 8 query rows attention multiplies 8-bit queries with the levels: what that adds is bounded
// by half a step of the query, max |q| / 254, a channel. Above, rows are decoded: f32.
TEST_P(ScalarAttention, EqualsAttentionOverDecodedRows) {
  for (const Named& named : all_codes())
    for (const int dim : {1, 2, 33, 64, 80, 128, 256})
      for (const Index query_rows : {1, 3, 4, 7, 8, 9, 14}) {
        const Index rows = dim == 64 ? 200 : 65;
        const std::vector<float> q = normal(query_rows * dim, 5);
        const Coded keys(format_of(named, Side::keys, dim), *GetParam(),
                         normal(rows * dim, 6, 0.5f));
        const Coded values(format_of(named, Side::values, dim), *GetParam(),
                           normal(rows * dim, 7, 0.5f));
        const Outcome got = attend(*GetParam(), keys, values, q);
        const Outcome want = by_definition(keys, values, q);
        const bool few = query_rows <= 8 && GetParam()->lanes > 4;
        // Deviation of the sum over the channels of a uniform error, five of them; keys have about
        // unit numbers, and at most 2 where the mean is not removed.
        double most = 0;
        for (const float x : q) most = std::max(most, std::abs(double{x}));
        const double step = few ? most / 127 : 0, logit_bound = 5 * step * 0.29 * 1.5 + 2e-5;
        SCOPED_TRACE(named.name + " dim " + std::to_string(dim) + " rows " +
                     std::to_string(query_rows));
        for (std::size_t i = 0; i < want.logits.size(); ++i)
          ASSERT_NEAR(got.logits[i], want.logits[i], logit_bound) << i;
        for (std::size_t i = 0; i < want.out.size(); ++i)
          ASSERT_NEAR(got.out[i], want.out[i], 2 * logit_bound + (few ? 1e-4 : 1e-5)) << i;
      }
}

std::string table_name(const testing::TestParamInfo<const KernelTable*>& table) {
  return table.param->name;
}
INSTANTIATE_TEST_SUITE_P(Tables, ScalarAttention,
                         testing::ValuesIn(kernel_tables().begin(), kernel_tables().end()),
                         table_name);

// Values alone are coded, keys say which weights the rows get: what few query rows add to the error
// of the code is one unit in 127 (32767 for more than 4 bits) of the largest weight of a block. A
// block in which one row gets much and 63 rows little each is the hardest: none of them may be lost.
TEST_P(ScalarAttention, WeightsOfValuesKeepTheirMass) {
  for (const Named& named : all_codes())
    for (const double background : {1.0, 0.5, 0.1, 0.0035, 0.0005}) {
      const int dim = 64;
      const Index rows = 64, query_rows = 4;
      // One channel of keys is 8 in the first row, else 0: a query of x there gives the weight e^x.
      std::vector<float> k(uz(rows * dim), 0.f), q(uz(query_rows * dim), 0.f);
      k[0] = 8;
      for (Index i = 0; i < query_rows; ++i)
        q[uz(i * dim)] = static_cast<float>(-std::log(background));
      std::vector<float> v = normal(rows * dim, 11);
      for (float& x : v) x += 2;
      const Coded values(format_of(named, Side::values, dim), *GetParam(), v);
      // The code of a number that is 0 or the largest of its row has no error.
      const Coded keys(format_of({"", 8, 0, false}, Side::keys, dim), *GetParam(), k);
      const Outcome got = attend(*GetParam(), keys, values, q),
                    want = by_definition(keys, values, q);
      const double mass = 1 + 63 * background;
      const double unit = named.bits <= 4 ? 1.0 / 127 : 1.0 / 32767;
      double error = 0, largest = 0, bias = 0;
      const auto n = static_cast<double>(want.out.size());
      for (std::size_t i = 0; i < want.out.size(); ++i) {
        const double difference = double{got.out[i]} - double{want.out[i]};
        error += difference * difference / n;
        bias += difference / n;
      }
      for (const float x : values.decoded) largest = std::max(largest, std::abs(double{x}));
      // Rounded up as often as the fraction f says: the deviation, sqrt(f (1 - f)), is at most half a
      // unit, of 64 rows 8 times that. Lost, the rows would take 63 * background units of the mean
      // (2 in every channel), 28 where background is .0035.
      SCOPED_TRACE(named.name + " background " + std::to_string(background));
      EXPECT_LT(std::sqrt(error), 8 * 0.5 * unit * largest / mass + 1e-5);
      EXPECT_LT(std::abs(bias), 12 * unit * 2 / mass + 1e-5);
    }
}

// Numbers, codes and sums are integers: the same blocks, whatever encodes them. Every byte is written.
TEST(ScalarCode, EveryInstructionSetWritesTheSameBlocks) {
  for (const Named& named : all_codes())
    for (const Side side : {Side::keys, Side::values})
      for (const int dim : {5, 64, 96}) {
        const ScalarFormat format = format_of(named, side, dim);
        const std::vector<float> x = normal(40 * dim, 8, 1);
        const Coded base(format, *kernel_tables().front(), x);
        for (const KernelTable* table : kernel_tables()) {
          const Coded other(format, *table, x);
          // The rotation, the mean and the deviation may differ in the last bit, and with them a number
          // that lies on the border of two levels.
          EXPECT_LT(nmse(base.decoded, other.decoded), 1e-5) << named.name << " " << table->name;
          if (format.rotated) continue;
          const auto n = uz(format.bytes(40));
          std::vector<char> blocks[2] = {std::vector<char>(n, 1), std::vector<char>(n, 2)};
          ScalarCodec(format).encode(x.data(), nullptr, 40, blocks[0].data());
          other.codec.encode(x.data(), nullptr, 40, blocks[1].data());
          EXPECT_EQ(blocks[0], blocks[1]) << named.name << " " << table->name << " dim " << dim;
        }
      }
}

// Of more than 512 channels numbers have fewer bits, so that sums stay in 32: the error of a Gaussian
// row does not show it, nor does that of the worst row, in which all numbers are as large.
TEST(ScalarCode, WideRowsHaveTheSameError) {
  const double theory[] = {0, 0, .1175, .03454, .009497, .002499, .000641};
  for (const KernelTable* table : kernel_tables())
    for (const int dim : {576, 2048}) {
      const std::vector<float> x = normal(32 * dim, 12);
      std::vector<float> flat(x.size());
      for (std::size_t i = 0; i < x.size(); ++i) flat[i] = x[i] < 0 ? -3.f : 3.f;
      for (int bits = 2; bits <= 6; ++bits) {
        ScalarFormat f = format_of({"", bits, -1, false}, Side::keys, dim);
        EXPECT_LT(nmse(x, Coded(f, *table, x).decoded), theory[bits] * 1.06) << bits << " " << dim;
        f.rotated = false;
        EXPECT_LT(nmse(flat, Coded(f, *table, flat).decoded), 1e-6) << bits << " " << dim;
      }
      const ScalarFormat f = format_of({"", 4, 0, false}, Side::values, dim);
      EXPECT_LT(nmse(x, Coded(f, *table, x).decoded), 0.02) << dim;
      EXPECT_LT(nmse(flat, Coded(f, *table, flat).decoded), 0.006) << dim;  // 7 where 8 is wanted
    }
}

// Of all levels of its row the one that a number gets is the nearest, for shapes whose rows and
// vectors do not end together.
TEST(ScalarCode, EveryNumberGetsTheNearestLevel) {
  for (const Named& named : all_codes())
    for (const Side side : {Side::keys, Side::values})
      for (const int dim : {1, 3, 7, 31, 33, 80, 130})
        for (const Index rows : {1, 15, 17, 64}) {
          ScalarFormat f = format_of(named, side, dim);
          f.rotated = f.mean = f.fit = false;
          const std::vector<float> x = normal(rows * dim, 9);
          for (const KernelTable* table : kernel_tables()) {
            const Coded coded(f, *table, x);
            for (Index r = 0; r < rows; ++r)
              for (int g = 0; g < f.groups(); ++g) {
                const int first = g * f.group_width(), end = std::min(dim, first + f.group_width());
                // The scale of the part: from the number that decodes to the largest.
                double most = 0, peak = 0;
                for (int c = first; c < end; ++c)
                  most = std::max<double>(most, std::abs(x[uz(r * dim + c)]));
                const auto* tile = reinterpret_cast<const f16*>(
                    coded.blocks[0].get() + f.mean_bytes() + r / 16 * f.tile_bytes());
                const double unit = double{to_float(tile[g * 16 + r % 16])} / 127;
                for (int c = first; c < end; ++c) {
                  const double in = x[uz(r * dim + c)], out = coded.decoded[uz(r * dim + c)];
                  double best = 1e9;
                  for (int i = 0; i < (f.bits == 8 ? 255 : 1 << f.bits); ++i)
                    best = std::min(
                        best,
                        std::abs(in - unit * (f.bits == 8 ? i - 127.0 : double{f.values[uz(i)]})));
                  peak = std::max(peak, std::abs(out));
                  ASSERT_LE(std::abs(in - out), best + 1e-3 * most)
                      << named.name << " " << table->name << " dim " << dim << " rows " << rows;
                }
                EXPECT_GT(peak, 0.1 * most);
              }
          }
        }
}

TEST(ScalarCode, BadParametersNameTheArgument) {
  const auto message = [](const auto& policy) {
    try {
      policy.check();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(message(LloydMax{.bits = 7}).find("LloydMax::bits is 7"), std::string::npos);
  EXPECT_NE(message(LloydMax{.value_bits = 1}).find("LloydMax::value_bits"), std::string::npos);
  EXPECT_NE(message(IntCode{.bits = 5}).find("IntCode::bits is 5"), std::string::npos);
  EXPECT_NE(message(IntCode{.group = 16}).find("IntCode::group is 16"), std::string::npos);
  EXPECT_EQ(message(LloydMax{.bits = 6}), "");
}

}  // namespace scalar_test
