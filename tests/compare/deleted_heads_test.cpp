// SPDX-License-Identifier: MIT
#include "compare/deleted_heads.hpp"

#include <gtest/gtest.h>

#include <random>

#include "compare/policy.hpp"

namespace deleted_heads_test {

using namespace compare;
using lesskv::Position;

constexpr lesskv::Shape shape{
    .layers = 2, .query_heads = 6, .kv_heads = 3, .head_dim = 16, .dtype = DType::f32};

std::vector<float> random_numbers(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

lesskv::AnyCache compressed(const lesskv::PolicySpec& spec) {
  constexpr Index tokens = 200;
  lesskv::AnyCache cache = lesskv::make_cache(spec, shape);
  for (int layer = 0; layer < shape.layers; ++layer) {
    const auto seed = static_cast<unsigned>(10 * layer);
    const std::vector<float> k = random_numbers(tokens * 3 * 16, seed),
                             v = random_numbers(tokens * 3 * 16, seed + 1),
                             q = random_numbers(tokens * 6 * 16, seed + 2);
    cache.append(layer, View::packed(k.data(), tokens, 3, 16),
                 View::packed(v.data(), tokens, 3, 16));
    cache.observe(layer, View::packed(q.data(), tokens, 6, 16));
  }
  cache.compress();
  return cache;
}

TEST(DeletedHeads, TheHeadsWithoutABudgetAnswerAsAnother) {
  const Policy policy(
      "delete_heads+keep(tokens=40,sinks=4)+snapkv(window=8)+uncomp(weights=0:1:1)");
  ASSERT_TRUE(policy.deletes_heads);
  EXPECT_EQ(std::string("composition"), policy.kind());
  lesskv::AnyCache cache = compressed(policy.spec);
  DeletedHeads with(cache, policy.spec);
  for (int layer = 0; layer < shape.layers; ++layer) {
    const std::vector<int>& answers = with.answers(layer);
    int deleted = 0;
    for (int h = 0; h < 3; ++h) {
      const bool gone = cache.size(layer, h) == 12;  // sinks and window
      EXPECT_EQ(answers[static_cast<std::size_t>(h)] != h, gone);
      deleted += gone;
    }
    EXPECT_EQ(deleted, 1);
    // A new token: outputs of the deleted head are those of its stand-in, the others as without.
    DeletedHeads stepped = with.fork();
    lesskv::AnyCache plain = cache.fork();
    const std::vector<float> x = random_numbers(6 * 16, 77);
    const std::vector<Position> at{Position{200}};
    for (const auto append : {0, 1}) {
      const View rows = View::packed(x.data(), 1, 3, 16);
      append == 0 ? plain.append(layer, rows, rows, at) : stepped.append(layer, rows, rows, at);
    }
    std::vector<float> a(6 * 16), b(a.size());
    const View queries = View::packed(x.data(), 1, 6, 16);
    plain.attend(layer, queries, a.data());
    stepped.attend(layer, queries, b.data());
    for (int h = 0; h < 3; ++h)
      for (int c = 0; c < 32; ++c)
        EXPECT_EQ(b[static_cast<std::size_t>(32 * h + c)],
                  a[static_cast<std::size_t>(32 * answers[static_cast<std::size_t>(h)] + c)]);
  }
}

TEST(DeletedHeads, NobodyIsDeletedWhoHoldsARowOfItsOwn) {
  const Policy policy(
      "delete_heads+keep(tokens=40,sinks=4)+snapkv(window=8)+uncomp(weights=1:9:9)");
  const DeletedHeads with(compressed(policy.spec), policy.spec);
  for (int layer = 0; layer < shape.layers; ++layer)
    EXPECT_EQ(with.answers(layer), (std::vector<int>{0, 1, 2}));
}

TEST(DeletedHeads, ALayerKeepsAHead) {
  const Policy policy(
      "delete_heads+keep(tokens=12,sinks=4,every=1)+snapkv(window=8)+uncomp(weights=0:1:1)");
  EXPECT_THROW(DeletedHeads(compressed(policy.spec), policy.spec), lesskv::Error);
}

}  // namespace deleted_heads_test
