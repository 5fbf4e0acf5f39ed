// SPDX-License-Identifier: MIT
#include "../oracle/attention.hpp"

#include <gtest/gtest.h>

#include <string>

#include "fixture.hpp"

namespace attend_test {

using namespace fixture;

double bound(DType) {
  return 1e-5;
}  // against the stored numbers: f32 arithmetic is all that differs

std::vector<double> expected(const Head& head, const std::vector<float>& queries,
                             const oracle::AttentionOptions& options = {}) {
  return oracle::attend(head.keys, head.values, queries, uz(head.key_dim), uz(head.value_dim),
                        options);
}

double error(const Call& call, const std::vector<double>& right) {
  const std::vector<float> out = call.output();
  for (float x : out) EXPECT_TRUE(std::isfinite(x));
  return oracle::relative_error<float>(out, right);
}

class Attend : public testing::TestWithParam<const KernelTable*> {
 protected:
  const KernelTable& kernel() const { return *GetParam(); }
};

constexpr DType types[] = {DType::f32, DType::f16, DType::bf16};

TEST_P(Attend, EveryWidth) {
  for (const DType type : types)
    for (const int dim : {1, 3, 16, 40, 64, 80, 96, 128, 192, 256, 576})
      for (const Index group : {1, 2, 3, 4, 5, 8, 9}) {
        const Head head(150, dim, dim == 576 ? 512 : dim == 192 ? 128 : dim, type, unsigned(dim));
        const std::vector<float> queries = normal(group * dim, 7);
        Call call(head, queries);
        kernel().attend(call.task);
        EXPECT_LE(error(call, expected(head, queries)), bound(type))
            << dim << ' ' << group << ' ' << name_of(type);
      }
}

TEST_P(Attend, EveryGroup) {
  for (const DType type : types)
    for (Index group = 1; group <= 16; ++group) {
      const Head head(97, 48, 48, type, unsigned(group));
      const std::vector<float> queries = normal(group * 48, 7);
      Call call(head, queries);
      kernel().attend(call.task);
      EXPECT_LE(error(call, expected(head, queries)), bound(type)) << group << ' ' << name_of(type);
    }
}

TEST_P(Attend, EveryNumberOfRows) {
  for (const DType type : types)
    for (const Index group : {1, 3, 4, 13})
      for (const Index rows :
           {1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 127, 128, 129, 200, 513}) {
        const Head head(rows, 32, 20, type, unsigned(rows));
        const std::vector<float> queries = normal(group * 32, 7);
        Call call(head, queries);
        kernel().attend(call.task);
        EXPECT_LE(error(call, expected(head, queries)), bound(type)) << rows << ' ' << group;
      }
}

TEST_P(Attend, NothingLeavesTheStart) {
  for (const Index group : {1, 9}) {
    const Head head(0, 64, 64, DType::f16, 1);
    Call call(head, normal(group * 64, 7));
    kernel().attend(call.task);
    for (Index i = 0; i < group; ++i) {
      EXPECT_EQ(call.max[uz(i)], -std::numeric_limits<float>::infinity());
      EXPECT_EQ(call.den[uz(i)], 0);
    }
    for (float x : call.num) EXPECT_EQ(x, 0);
  }
}

TEST_P(Attend, VisibleRows) {
  for (const Index n : {3, 8, 40}) {
    const Head head(170, 64, 64, DType::f16, 3);
    const std::vector<float> queries = normal(n * 64, 7);
    Call call(head, queries);
    std::vector<Index> visible;
    for (Index i = 0; i < n; ++i)
      visible.push_back(i == 0 ? 0 : i == 1 ? 64 : i == 2 ? 1 : (i * 37) % 171);
    call.task.visible = visible.data();
    kernel().attend(call.task);
    oracle::AttentionOptions options;
    options.sees = [&](std::size_t i, std::size_t row) { return Index(row) < visible[i]; };
    EXPECT_LE(error(call, expected(head, queries, options)), 1e-5);
    EXPECT_EQ(call.max[0], -std::numeric_limits<float>::infinity());
    EXPECT_EQ(call.den[0], 0);
    for (Index c = 0; c < 64; ++c) EXPECT_EQ(call.num[uz(c)], 0);
  }
}

TEST_P(Attend, BiasAndSoftcap) {
  for (const Index n : {4, 20})
    for (const Index rows : {64, 70})
      for (const bool shared : {false, true}) {
        const Head head(rows, 64, 64, DType::f32, 3);
        const std::vector<float> queries = normal(n * 64, 7);
        std::vector<float> bias = normal(n * rows, 9);
        for (Index row = 0; row < rows; row += 5)
          bias[uz(row)] = -std::numeric_limits<float>::infinity();
        Call call(head, queries);
        call.task.bias = bias.data();
        call.task.bias_stride = shared ? 0 : rows;
        call.task.softcap = 3;
        call.task.scale = 0.5f;
        kernel().attend(call.task);
        oracle::AttentionOptions options;
        options.scale = 0.5;
        options.softcap = 3;
        options.bias = [&](std::size_t i, std::size_t row) {
          return double{bias[(shared ? 0 : i * uz(rows)) + row]};
        };
        EXPECT_LE(error(call, expected(head, queries, options)), 1e-5);
      }
}

TEST_P(Attend, AllHiddenByBias) {
  for (const Index n : {2, 20}) {
    const Head head(100, 64, 64, DType::f16, 3);
    const std::vector<float> bias(100, -std::numeric_limits<float>::infinity());
    Call call(head, normal(n * 64, 7));
    call.task.bias = bias.data();
    kernel().attend(call.task);
    for (float x : call.max) EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
    for (float x : call.den) EXPECT_EQ(x, 0);
    for (float x : call.num) EXPECT_EQ(x, 0);
  }
}

// A head seen in two calls is the head seen in one.
TEST_P(Attend, PartsAddUp) {
  for (const Index n : {3, 30}) {
    const Head head(320, 64, 64, DType::bf16, 3);
    const std::vector<float> queries = normal(n * 64, 7);
    Call call(head, queries);
    call.task.block_count = 2;
    kernel().attend(call.task);
    call.task.blocks += 2;
    call.task.block_count = 3;
    kernel().attend(call.task);
    EXPECT_LE(error(call, expected(head, queries)), 1e-5);
  }
}

// Large logits: the largest wins, nothing overflows.
TEST_P(Attend, Peaked) {
  for (const Index n : {1, 9}) {
    const Head head(300, 64, 64, DType::f32, 3);
    std::vector<float> queries = normal(n * 64, 7);
    for (float& x : queries) x *= 200;
    Call call(head, queries);
    kernel().attend(call.task);
    EXPECT_LE(error(call, expected(head, queries)), 1e-3);  // f32 logits of about 4000
  }
}

// Independent normal keys, values and queries: nearly uniform weights, so that the exact output is
// small and relative errors are large. Against the numbers before they were stored.
TEST_P(Attend, ErrorOfStorage) {
  for (const auto& [type, limit] :
       {std::pair{DType::f32, 1e-5}, {DType::f16, 1e-3}, {DType::bf16, 8e-3}}) {
    const Index rows = 4096, group = 4;
    const int dim = 128;
    const Head head(rows, dim, dim, type, 3);
    const std::vector<float> queries = normal(group * dim, 7);
    Call call(head, queries);
    kernel().attend(call.task);
    const std::vector<float> keys = normal(rows * dim, 3), values = normal(rows * dim, 4);
    const double e = error(call, oracle::attend(keys, values, queries, uz(dim), uz(dim)));
    EXPECT_LE(e, limit) << name_of(type);
    RecordProperty(name_of(type), std::to_string(e));
  }
}

TEST_P(Attend, Logits) {
  for (const DType type : types)
    for (const Index n : {1, 3, 8, 20})
      for (const Index rows : {1, 64, 150}) {
        const Head head(rows, 80, 80, type, 3);
        const std::vector<float> queries = normal(n * 80, 7);
        Call call(head, queries);
        const Index stride = rows + 3;
        std::vector<float> out(uz(n * stride), 5);
        kernel().logits(call.task, out.data(), stride);
        const std::vector<double> right = oracle::logits(head.keys, queries, 80);
        for (Index i = 0; i < n; ++i)
          for (Index row = 0; row < stride; ++row)
            if (row < rows)
              EXPECT_NEAR(out[uz(i * stride + row)], right[uz(i * rows + row)], 1e-5);
            else
              EXPECT_EQ(out[uz(i * stride + row)], 5);
      }
}

INSTANTIATE_TEST_SUITE_P(, Attend,
                         testing::ValuesIn(lesskv::kernel_tables().begin(),
                                           lesskv::kernel_tables().end()),
                         table_name);

}  // namespace attend_test
