// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <lesskv/budget/head_deletion.hpp>
#include <lesskv/lesskv.hpp>

#include "cache/support.hpp"

namespace head_deletion_test {

using namespace lesskv;

const Shape shape{
    .layers = 1, .query_heads = 8, .kv_heads = 4, .head_dim = 16, .dtype = DType::f32};

TEST(HeadDeletion, LowestHeads) {
  const std::vector<double> entropies{2, 1, 3, 1};
  EXPECT_EQ(lowest_heads(entropies, 0), std::vector<int>{});
  EXPECT_EQ(lowest_heads(entropies, 1), std::vector<int>{1});
  EXPECT_EQ(lowest_heads(entropies, 3), (std::vector<int>{0, 1, 3}));
  EXPECT_THROW(lowest_heads(entropies, 4), Error);
  EXPECT_THROW(lowest_heads(entropies, -1), Error);
}

TEST(HeadDeletion, TheMostSimilarKeptHeadAnswers) {
  auto layers = support::tensors(shape, 60, 3);
  // The newest 8 keys of head 1 are nearly those of head 3, and those of head 2 nearly those of
  // head 1, which is deleted too; older keys of head 0 are like those of head 1.
  Matrix& keys = layers[0].keys;
  keys.block(0, 16, 52, 16) = keys.block(0, 0, 52, 16);
  keys.block(52, 48, 8, 16) = 3 * keys.block(52, 16, 8, 16) + 0.5f * keys.block(52, 48, 8, 16);
  keys.block(52, 32, 8, 16) = keys.block(52, 16, 8, 16);
  CalibrationFile table{"t", {}};
  table.data.tables.push_back({"entropy_queries", 1, 4, {3, 1, 2, 4}});
  KVCache cache(shape, Keep{.tokens = 20, .every = 1}, SnapKV{.window = 8},
                UNComp{.weights = {0, 1}, .table = table});
  support::feed(cache, layers, 0, 60);
  cache.compress();
  const std::vector<int> deleted = lowest_heads(table.data.tables[0].values, 2);
  EXPECT_EQ(deleted, (std::vector<int>{1, 2}));
  for (const int h : deleted) EXPECT_EQ(cache.size(0, h), 8);  // the window
  EXPECT_EQ(cache.size(0, 0), 32);
  const std::vector<int> answers = stand_ins(cache, 0, deleted);
  EXPECT_EQ(answers, (std::vector<int>{0, 3, 3, 3}));

  const Matrix queries = support::normal(2, 8 * 16, 4);
  std::vector<Position> at{Position{59}, Position{59}};
  Matrix out(2, 8 * 16);
  cache.attend(0, View::packed(queries.data(), 2, 8, 16), out.data(), {.positions = at});
  const Matrix before = out;
  copy_outputs(shape, answers, 2, out.data());
  for (Index h = 0; h < 4; ++h)
    EXPECT_EQ(out.middleCols(h * 32, 32),
              before.middleCols(answers[static_cast<std::size_t>(h)] * 32, 32));
  EXPECT_THROW(copy_outputs(shape, std::vector<int>{0, 1}, 2, out.data()), Error);
}

TEST(HeadDeletion, BadArguments) {
  KVCache cache(shape);
  EXPECT_THROW(stand_ins(cache, 0, std::vector<int>{1}), Error);  // no rows
  support::feed(cache, support::tensors(shape, 3, 1), 0, 3);
  EXPECT_EQ(stand_ins(cache, 0, std::vector<int>{}), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(stand_ins(cache, 0, std::vector<int>{1, 2, 3}), (std::vector<int>{0, 0, 0, 0}));
  EXPECT_THROW(stand_ins(cache, 0, std::vector<int>{0, 1, 2, 3}), Error);
  EXPECT_THROW(stand_ins(cache, 0, std::vector<int>{4}), Error);
  EXPECT_THROW(stand_ins(cache, 0, std::vector<int>{-1}), Error);
  EXPECT_THROW(stand_ins(cache, 0, std::vector<int>{1}, 0), Error);
}

}  // namespace head_deletion_test
