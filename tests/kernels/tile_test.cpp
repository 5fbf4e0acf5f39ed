// SPDX-License-Identifier: MIT
// The kernels of compression against the same in double, on every instruction set.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <lesskv/core/scratch.hpp>
#include <lesskv/kernels/tile_kernels.hpp>
#include <numeric>

#include "fixture.hpp"

namespace tile_test {

using namespace fixture;
using lesskv::LagTask;
using lesskv::ScoreKernelTable;
using lesskv::TileKernelTable;

class Tiles : public testing::TestWithParam<const KernelTable*> {
 protected:
  const TileKernelTable& kernel() const { return lesskv::tile_kernels(*GetParam()); }
  const ScoreKernelTable& scores() const { return lesskv::score_kernels(*GetParam()); }
};

// What the kernel computes, one number at a time.
std::vector<double> deviations(const std::vector<float>& x, Index dim, Index first, Index lag,
                               Index chunks) {
  std::vector<double> out;
  for (Index p = 0; p < chunks; ++p)
    for (Index i = 0; i < lag; ++i) {
      std::vector<double> z;
      for (Index c = 0; c < dim; ++c) {
        double low = 1e300, high = -1e300;
        for (Index j = 0; j < lag; ++j) {
          const double v = double{x[uz((first + (p + 1) * lag + j) * dim + c)]};
          low = std::min(low, v);
          high = std::max(high, v);
        }
        if (high > low)
          z.push_back((double{x[uz((first + p * lag + i) * dim + c)]} - low) / (high - low));
      }
      const double n = static_cast<double>(z.size());
      const double mean = std::accumulate(z.begin(), z.end(), 0.0) / n;
      double squares = 0;
      for (const double v : z) squares += (v - mean) * (v - mean);
      out.push_back(z.size() < 2 ? 0 : std::sqrt(squares / (n - 1)));
    }
  return out;
}

std::vector<float> lag_deviations(const ScoreKernelTable& kernel, const Head& head, bool keys,
                                  Index first, Index lag, Index chunks) {
  const int dim = keys ? head.key_dim : head.value_dim;
  Floats workspace;
  LagTask task{head.blocks.data(),
               head.type,
               keys,
               dim,
               first,
               lag,
               chunks,
               workspace.reserve(lesskv::lag_workspace(dim))};
  std::fill_n(task.workspace, lesskv::lag_workspace(dim), std::nanf(""));
  std::vector<float> out(uz(lag * chunks) + 1, -77.f);
  kernel.lag_deviations(task, out.data());
  EXPECT_EQ(out.back(), -77.f);
  out.pop_back();
  return out;
}

void expect_deviations(const ScoreKernelTable& kernel, const Head& head, Index first, Index lag,
                       Index chunks, double tolerance = 3e-6) {
  for (const bool keys : {true, false}) {
    const auto want = deviations(keys ? head.keys : head.values,
                                 keys ? head.key_dim : head.value_dim, first, lag, chunks);
    const auto got = lag_deviations(kernel, head, keys, first, lag, chunks);
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(got[i], want[i], tolerance * want[i] + 1e-7)  // z itself is rounded to f32
          << name_of(head.type) << (keys ? " keys " : " values ") << head.key_dim << " first "
          << first << " lag " << lag << " row " << i;
  }
}

TEST_P(Tiles, LagDeviationsOfAnyShapeAndPlace) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    for (const int dim : {2, 3, 16, 33, 64, 80, 128})
      for (const auto& [first, lag, chunks, spare] : {std::array<Index, 4>{0, 64, 3, 0},
                                                      {16, 128, 2, 40},
                                                      {4, 32, 4, 1},
                                                      {5, 7, 6, 0},
                                                      {61, 50, 2, 3},
                                                      {0, 2, 9, 0},
                                                      {3, 130, 1, 0}}) {
        const Head head(first + lag * (chunks + 1) + spare, dim, dim + 1, type, 7);
        expect_deviations(scores(), head, first, lag, chunks);
      }
}

// Offsets many times the range, all signs alike, and channels that say nothing.
TEST_P(Tiles, LagDeviationsOfHardNumbers) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
    Head head(5 * 64, 64, 48, type, 8);
    const auto change = [&](std::vector<float>& x, Index dim) {
      for (Index r = 0; r < head.rows; ++r)
        for (Index c = 0; c < dim; ++c) {
          float& v = x[uz(r * dim + c)];
          if (c % 8 == 1) v = 0.25f;                // constant
          if (c % 8 == 2) v = std::abs(v) + 0.5f;   // positive
          if (c % 8 == 3) v = -std::abs(v) - 0.5f;  // negative
          if (c % 8 == 4) v = 30 + v;               // far from zero
          if (c % 8 == 5 && r / 64 == 2) v = 0;     // constant in one chunk
          if (c % 8 == 6) v *= 1e-4f;
          v = stored(v, type);
        }
    };
    change(head.keys, 64);
    change(head.values, 48);
    for (Index r = 0; r < head.rows; ++r) {
      auto* k = const_cast<void*>(head.blocks[uz(r / 64)].keys);
      auto* v = const_cast<void*>(head.blocks[uz(r / 64)].values);
      for (Index c = 0; c < 64; ++c)
        put(k, r % 64 / 16 * 64 * 16 + c * 16 + r % 16, head.keys[uz(r * 64 + c)], type);
      for (Index c = 0; c < 48; ++c) put(v, r % 64 * 48 + c, head.values[uz(r * 48 + c)], type);
    }
    expect_deviations(scores(), head, 0, 64, 4, 1e-5);
    expect_deviations(scores(), head, 9, 64, 3, 1e-5);
  }
}

// All channels shifted alike: sum and squares alone would lose every digit.
TEST_P(Tiles, LagDeviationsSurviveCancellation) {
  const int dim = 32;
  Head head(128, dim, dim, DType::f32, 9);
  for (Index r = 0; r < 64; ++r)
    for (Index c = 0; c < dim; ++c)
      for (auto* x : {&head.keys, &head.values}) (*x)[uz(r * dim + c)] += 4000.f;
  for (Index r = 0; r < 64; ++r)
    for (Index c = 0; c < dim; ++c) {
      put(const_cast<void*>(head.blocks[0].keys), r / 16 * dim * 16 + c * 16 + r % 16,
          head.keys[uz(r * dim + c)], DType::f32);
      put(const_cast<void*>(head.blocks[0].values), r * dim + c, head.values[uz(r * dim + c)],
          DType::f32);
    }
  expect_deviations(scores(), head, 0, 64, 1, 1e-5);
}

TEST_P(Tiles, NormsOfKeys) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    for (const int dim : {1, 3, 16, 64, 80, 128}) {
      const Head head(150, dim, 1, type, 12);
      for (const auto& [first, last] :
           {std::pair<Index, Index>{0, 150}, {7, 8}, {60, 70}, {16, 144}, {3, 149}}) {
        std::vector<float> out(uz(last - first) + 1, -77.f);
        scores().key_norms(type, head.blocks.data(), dim, first, last, out.data());
        EXPECT_EQ(out.back(), -77.f);
        for (Index r = first; r < last; ++r) {
          double sum = 0;
          for (Index c = 0; c < dim; ++c) sum += std::pow(double{head.keys[uz(r * dim + c)]}, 2);
          ASSERT_NEAR(out[uz(r - first)], std::sqrt(sum), 1e-6 * std::sqrt(sum));
        }
      }
    }
}

// Many rows, so that single precision alone would show; a key without length among them.
TEST_P(Tiles, DirectionsOfKeysAndProductsWithOne) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    for (const int dim : {1, 3, 16, 80, 128}) {
      Head head(6000, dim, 1, type, 14);
      const Index none = 100;
      for (Index c = 0; c < dim; ++c) {
        put(const_cast<void*>(head.blocks[none / 64].keys),
            none % 64 / 16 * dim * 16 + c * 16 + none % 16, 0, type);
        head.keys[uz(none * dim + c)] = 0;
      }
      std::vector<float> direction(uz(dim));
      for (Index c = 0; c < dim; ++c) direction[uz(c)] = std::sin(static_cast<float>(c) + 1);
      for (const auto& [first, last] :
           {std::pair<Index, Index>{0, 6000}, {7, 8}, {60, 70}, {100, 101}, {3, 149}, {16, 144}}) {
        std::vector<float> lengths(uz(last - first) + 1, -77.f), products = lengths;
        std::vector<double> sum(uz(dim), 2.0), want(uz(dim), 2.0);
        lesskv::detail::Floats workspace(16 * dim);
        scores().key_directions(type, head.blocks.data(), dim, first, last, lengths.data(),
                                sum.data(), workspace.data());
        scores().key_products(type, head.blocks.data(), dim, first, last, direction.data(),
                              products.data());
        EXPECT_EQ(lengths.back(), -77.f);
        EXPECT_EQ(products.back(), -77.f);
        for (Index r = first; r < last; ++r) {
          double squares = 0, product = 0;
          for (Index c = 0; c < dim; ++c) {
            const double x = head.keys[uz(r * dim + c)];
            squares += x * x;
            product += x * double{direction[uz(c)]};
          }
          const double length = std::sqrt(squares);
          ASSERT_NEAR(lengths[uz(r - first)], length, 1e-6 * length);
          ASSERT_NEAR(products[uz(r - first)], product, 2e-6 * length * std::sqrt(double(dim)));
          for (Index c = 0; c < dim && length > 0; ++c)
            want[uz(c)] += double{head.keys[uz(r * dim + c)]} / length;
        }
        for (Index c = 0; c < dim; ++c)
          ASSERT_NEAR(sum[uz(c)], want[uz(c)], 1e-7 * static_cast<double>(last - first) + 1e-6);
      }
    }
}

std::vector<std::int32_t> some_rows(Index rows, double share, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> out;
  for (Index r = 0; r < rows; ++r)
    if (static_cast<double>(random() % 1000) < 1000 * share)
      out.push_back(static_cast<std::int32_t>(r));
  return out;
}

TEST_P(Tiles, GathersRowsOfAnyTypeInPlace) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    for (const auto& [dim, width] : {std::pair{1, 1}, {3, 5}, {64, 64}, {33, 80}, {128, 96}})
      for (const double share : {0.02, 0.25, 0.6, 0.95}) {
        Head head(517, dim, width, type, 13);
        const auto rows = some_rows(head.rows, share, static_cast<unsigned>(dim));
        if (rows.empty()) continue;
        const Index count = static_cast<Index>(rows.size());
        for (Index first = 0; first < count; first += 64) {
          const Index n = std::min<Index>(64, count - first);
          auto& block = head.blocks[uz(first / 64)];
          kernel().gather_keys(type, head.blocks.data(), dim, rows.data() + first, n,
                               const_cast<void*>(block.keys));
          kernel().gather_values(type, head.blocks.data(), width, rows.data() + first, n,
                                 const_cast<void*>(block.values));
        }
        const Index size = lesskv::size_of(type);
        for (Index r = 0; r < round_up(count, 16); ++r) {
          const auto& block = head.blocks[uz(r / 64)];
          for (Index c = 0; c < dim; ++c) {
            std::uint32_t want = 0;
            const float x = r < count ? head.keys[uz(rows[uz(r)] * dim + c)] : 0;
            put(&want, 0, x, type);
            const char* at = static_cast<const char*>(block.keys) +
                             (r % 64 / 16 * dim * 16 + c * 16 + r % 16) * size;
            ASSERT_EQ(std::memcmp(at, &want, uz(size)), 0) << name_of(type) << ' ' << r << ' ' << c;
          }
          for (Index c = 0; c < width && r < count; ++c) {
            std::uint32_t want = 0;
            put(&want, 0, head.values[uz(rows[uz(r)] * width + c)], type);
            const char* at = static_cast<const char*>(block.values) + (r % 64 * width + c) * size;
            ASSERT_EQ(std::memcmp(at, &want, uz(size)), 0) << name_of(type) << ' ' << r << ' ' << c;
          }
        }
      }
}

TEST_P(Tiles, TheKthLargestIsABoundThatKKeysReach) {
  std::mt19937 random(14);
  std::normal_distribution<float> normal;
  for (const Index n : {1, 2, 7, 64, 128, 511, 513, 3000, 20000}) {
    std::vector<float> x(uz(n));
    for (float& v : x) v = normal(random);
    std::vector<std::int32_t> keys(uz(n)), scratch(uz(lesskv::select_scratch(n)));
    std::int32_t least = 0, most = 0;
    kernel().order_keys(x.data(), n, keys.data(), &least, &most);
    EXPECT_EQ(least, *std::min_element(keys.begin(), keys.end()));
    EXPECT_EQ(most, *std::max_element(keys.begin(), keys.end()));
    for (Index i = 1; i < n; ++i) ASSERT_EQ(x[uz(i)] > x[uz(i - 1)], keys[uz(i)] > keys[uz(i - 1)]);
    for (const Index k : {Index{1}, n / 3 + 1, n}) {
      Index reached = 0;
      const auto bound =
          kernel().kth_largest(keys.data(), n, k, least, most, scratch.data(), &reached);
      const auto reach = [&](std::int32_t b) {
        return std::count_if(keys.begin(), keys.end(), [&](std::int32_t key) { return key >= b; });
      };
      EXPECT_GE(reach(bound), k);
      EXPECT_EQ(reached, reach(bound));
      EXPECT_TRUE(reach(bound + 1) < k || reach(bound) == k) << n << ' ' << k;
      EXPECT_EQ(kernel().count_at_least(keys.data(), n, bound), reach(bound));
      std::vector<std::int32_t> out(uz(reach(bound)) + 1, -77), want;
      for (Index i = 0; i < n; ++i)
        if (keys[uz(i)] >= bound) want.push_back(static_cast<std::int32_t>(i + 5));
      const Index count =
          kernel().list_at_least(keys.data(), 0, n, bound, 5, out.data(), 0, reach(bound));
      EXPECT_EQ(count, reach(bound));
      EXPECT_EQ(out.back(), -77);
      out.pop_back();
      EXPECT_EQ(out, want);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Tiles,
                         testing::ValuesIn(lesskv::kernel_tables().begin(),
                                           lesskv::kernel_tables().end()),
                         table_name);

}  // namespace tile_test
