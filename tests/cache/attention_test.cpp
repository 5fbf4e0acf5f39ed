// SPDX-License-Identifier: MIT
// Attention weights of given queries, against their definition in double.
#include <gtest/gtest.h>

#include <lesskv/codec/int_code.hpp>

#include "support.hpp"

namespace attention_test {

using namespace support;

const Shape shape{
    .layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};

// Softmax of scale * q.k over the rows at or before the position of the query.
template <class Cache>
Matrix weights_by_definition(const Cache& cache, int layer, int head, const Matrix& queries,
                             const std::vector<Position>& at, double scale) {
  const Matrix keys = cache.keys(layer, head);
  const std::vector<Position> held = cache.positions(layer, head);
  Matrix out = Matrix::Zero(queries.rows() * shape.group(), keys.rows());
  for (Index i = 0; i < out.rows(); ++i) {
    const Index t = i / shape.group(), query_head = head * shape.group() + i % shape.group();
    std::vector<double> weight(held.size(), 0.0);
    double sum = 0;
    for (Index r = 0; r < keys.rows(); ++r) {
      if (held[std::size_t(r)] > at[std::size_t(t)]) continue;
      double logit = 0;
      for (int c = 0; c < shape.head_dim; ++c)
        logit += double{queries(t, query_head * shape.head_dim + c)} * double{keys(r, c)};
      sum += weight[std::size_t(r)] = std::exp(logit * scale);
    }
    for (Index r = 0; r < keys.rows() && sum > 0; ++r)
      out(i, r) = static_cast<float>(weight[std::size_t(r)] / sum);
  }
  return out;
}

View view(const Matrix& queries) {
  return View::packed(queries.data(), queries.rows(), shape.query_heads, shape.head_dim);
}

TEST(Attention, EqualsItsDefinition) {
  const auto in = tensors(shape, 300, 5);
  KVCache cache(shape);
  feed(cache, in, 0, 300);
  const Matrix queries = in[1].queries.bottomRows(9);
  for (int head = 0; head < 2; ++head) {
    const Matrix got = cache.attention(1, head, view(queries));
    const Matrix want = weights_by_definition(cache, 1, head, queries, range(291, 9), 0.25);
    EXPECT_LT(relative_error(got, want), 1e-6);
    EXPECT_LT((got.rowwise().sum().array() - 1).abs().maxCoeff(), 1e-5f);
  }
}

TEST(Attention, PositionsWithGapsScaleAndARaggedCache) {
  const auto in = tensors(shape, 200, 6);
  std::vector<Position> gaps;
  for (Index i = 0; i < 200; ++i) gaps.push_back(Position{i * 3 + 7});
  KVCache cache(shape, Keep{.fraction = 0.3}, SmallKeys{});
  for (int l = 0; l < 2; ++l) cache.append(l, in[0].k(0, 200), in[0].v(0, 200), gaps);
  cache.compress();
  ASSERT_LT(cache.size(0, 1), 200);
  // Before every row; between rows; on a row; behind all.
  const std::vector<Position> at = {Position{0}, Position{100}, Position{307}, Position{9999}};
  const Matrix queries = normal(4, Index{6} * 16, 3);
  for (int head = 0; head < 2; ++head) {
    const Matrix got = cache.attention(0, head, view(queries), at, 0.7f);
    EXPECT_LT(relative_error(got, weights_by_definition(cache, 0, head, queries, at, 0.7)), 1e-6);
    EXPECT_EQ(got.topRows(3).norm(), 0);
  }
}

TEST(Attention, APlannerOverBorrowedRowsGivesTheSame) {
  const auto in = tensors(shape, 130, 7);
  KVCache cache(shape);
  Planner planner(shape);
  feed(cache, in, 0, 130);
  planner.append(0, 130);
  const Source source = [&](int, int head) {
    const auto of_head = [&](View v) {
      v.data = static_cast<const float*>(v.data) + head * shape.head_dim;
      return v;
    };
    return HeadView{of_head(in[0].k(0, 130)), of_head(in[0].v(0, 130))};
  };
  const Matrix queries = in[0].queries.bottomRows(2);
  const Matrix got = planner.attention(0, 1, view(queries), source);
  EXPECT_LT(relative_error(got, cache.attention(0, 1, view(queries))), 1e-6);
}

// Writes down the attention that it is shown of layer 1.
struct Recorder {
  std::vector<std::vector<Matrix>>* of_heads;

  static constexpr Need needs = Need::attention;
  void observe(const Head& head, NoState&) const {
    if (head.layer == 1) (*of_heads)[std::size_t(head.head)].emplace_back(head.attention);
  }
  void score(const Head& head, std::span<float> out) const {
    for (std::size_t r = 0; r < out.size(); ++r)
      out[r] = static_cast<float>(to_int(head.positions[r]) * 37 % 101);
  }
};

// attend() computes attention once, for its output and for the policies. What these see, over all the
// ways that it takes: prompts in pieces, chunks, steps of one and two tokens, a head in several parts,
// rows that left, rows in codes.
template <class... Ps>
void expect_attention_is_shown(Index prompt, double error, Ps... policies) {
  const auto in = tensors(shape, prompt + 200, 9);
  std::vector<std::vector<Matrix>> seen(2);
  KVCache cache(shape, Recorder{&seen}, policies...);
  Index at = 0;
  for (const Index n : {prompt, Index{1}, Index{2}, Index{40}, Index{3}, Index{1}}) {
    for (auto& of_head : seen) of_head.clear();
    feed(cache, in, at, n);
    const Matrix queries = in[1].queries.middleRows(at, n);
    for (int head = 0; head < 2; ++head) {
      const Matrix want = weights_by_definition(cache, 1, head, queries, range(at, n), 0.25);
      Index first = 0;
      for (const Matrix& part : seen[std::size_t(head)]) {
        ASSERT_LE(first + part.rows(), want.rows());
        const Matrix expected = want.middleRows(first, part.rows());
        ASSERT_LT(relative_error(part, expected.leftCols(part.cols())), error)
            << n << " queries at " << at << ", rows from " << first;
        EXPECT_EQ(expected.rightCols(want.cols() - part.cols()).norm(), 0);
        first += part.rows();
      }
      EXPECT_EQ(first, want.rows()) << "every query is shown once";
    }
    cache.compress();
    at += n;
  }
}

TEST(Attention, IsShownToPoliciesAsItIs) {
  expect_attention_is_shown(1, 1e-6, Keep{.fraction = 1});
  expect_attention_is_shown(700, 1e-6, Keep{.fraction = 0.3});
  expect_attention_is_shown(4500, 1e-6, Keep{.fraction = 1});  // two parts
  expect_attention_is_shown(700, 2e-2, Keep{.fraction = 0.5, .sinks = 4}, IntCode{.bits = 8});
}

// With a mask among new tokens, or numbers added to the logits, the engine's attention is not what
// policies look at.
TEST(Attention, IsShownWithoutWhatTheEngineAdds) {
  const auto in = tensors(shape, 60, 10);
  const std::vector<std::uint8_t> mask(100, 1);
  const std::vector<float> sinks(6, 2.f);
  AttendOptions tree, capped, gpt;
  tree.mask = mask.data();
  capped.softcap = 2;
  gpt.sink_logits = sinks;
  for (const AttendOptions& options : {tree, capped, gpt}) {
    std::vector<std::vector<Matrix>> seen(2);
    KVCache cache(shape, Recorder{&seen}, Keep{.fraction = 1});
    feed(cache, in, 0, 50);
    for (auto& of_head : seen) of_head.clear();
    Matrix out(10, Index{6} * 16);
    cache.append(1, in[1].k(50, 10), in[1].v(50, 10));
    cache.attend(1, in[1].q(50, 10), out.data(), options);
    const Matrix want =
        weights_by_definition(cache, 1, 1, in[1].queries.middleRows(50, 10), range(50, 10), 0.25);
    ASSERT_EQ(seen[1].size(), 1u);
    EXPECT_LT(relative_error(seen[1][0], want), 1e-6);
  }
}

TEST(Attention, NoQueriesOrNoRows) {
  KVCache cache(shape);
  const Matrix queries = normal(2, Index{6} * 16, 3);
  const std::vector<Position> at = range(0, 2);
  EXPECT_EQ(cache.attention(0, 0, view(queries), at).cols(), 0);
  EXPECT_EQ(cache.attention(0, 0, view(queries.topRows(0))).rows(), 0);
}

TEST(Attention, BadArgumentsAreErrors) {
  const auto in = tensors(shape, 10, 8);
  KVCache cache(shape);
  feed(cache, in, 0, 10);
  Matrix queries = in[0].queries.bottomRows(2);
  const std::vector<Position> three = range(0, 3);
  EXPECT_THROW(cache.attention(2, 0, view(queries)), Error);
  EXPECT_THROW(cache.attention(0, 2, view(queries)), Error);
  EXPECT_THROW(cache.attention(0, -1, view(queries)), Error);
  EXPECT_THROW(cache.attention(0, 0, view(queries), three), Error);
  EXPECT_THROW(cache.attention(0, 0, view(queries), {}, -1.f), Error);
  EXPECT_THROW(cache.attention(0, 0, view(normal(11, Index{6} * 16, 1))), Error);
  queries(1, 3) = NAN;
  EXPECT_THROW(cache.attention(0, 0, view(queries)), Error);
}

}  // namespace attention_test
