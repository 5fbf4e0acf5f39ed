// SPDX-License-Identifier: MIT
// Which hidden states stay: against a sort, the budgets of the released code, and attention computed
// by its definition on real tensors.
#include <gtest/gtest.h>

#include <lesskv/lesskv.hpp>
#include <random>
#include <string>

#include "support/npy.hpp"

namespace select_hidden_test {

using namespace lesskv;
using Tokens = std::vector<std::int32_t>;

std::string data(const std::string& name) { return std::string(LESSKV_TEST_DATA) + "/" + name; }

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// Pinned first, then by score, then the later token.
Tokens select_by_sorting(const std::vector<float>& scores, Index keep, const HiddenPins& pins) {
  const Index n = static_cast<Index>(scores.size());
  Tokens order(scores.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  const auto pinned = [&](std::int32_t j) { return j < pins.sinks || j >= n - pins.window; };
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    if (pinned(a) != pinned(b)) return pinned(a);
    const float x = scores[std::size_t(a)], y = scores[std::size_t(b)];
    return x != y ? x > y : a > b;
  });
  order.resize(std::size_t(keep));
  std::sort(order.begin(), order.end());
  return order;
}

TEST(SelectHidden, EqualsASort) {
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    const Index n = 1 + static_cast<Index>(random() % 60);
    std::vector<float> scores(static_cast<std::size_t>(n));
    for (float& x : scores) x = static_cast<float>(random() % 12) / 8;  // many equal ones
    const HiddenPins pins{static_cast<Index>(random() % 10), static_cast<Index>(random() % 5)};
    const Index pinned = std::min(n, pins.window + pins.sinks);
    const Index low = std::max<Index>(1, pinned);
    const Index keep = low + static_cast<Index>(random() % static_cast<unsigned>(n - low + 1));
    EXPECT_EQ(select_hidden(scores, keep, pins), select_by_sorting(scores, keep, pins))
        << n << " tokens, keep " << keep << ", window " << pins.window << ", sinks " << pins.sinks;
  }
}

TEST(SelectHidden, TheLastTokensStayWhateverTheirScore) {
  std::vector<float> scores(20, 1.f);
  for (std::size_t i = 12; i < 20; ++i) scores[i] = 0;
  EXPECT_EQ(select_hidden(scores, 10), (Tokens{10, 11, 12, 13, 14, 15, 16, 17, 18, 19}));
  EXPECT_EQ(select_hidden(scores, 10, {.window = 8, .sinks = 1}),
            (Tokens{0, 11, 12, 13, 14, 15, 16, 17, 18, 19}));
  // As the released code does it: nothing is pinned.
  EXPECT_EQ(select_hidden(scores, 3, {.window = 0}), (Tokens{9, 10, 11}));
}

TEST(SelectHidden, ScoresAreColumnSumsOverHeadsAndQueries) {
  Matrix a(2, 4), b(2, 4);
  a << .5f, .5f, 0, 0, .1f, .2f, .3f, .4f;
  b << 0, 0, 1, 0, .25f, .25f, .25f, .25f;
  std::vector<float> scores(4, 0.f);
  add_column_sums(make_rows(a), scores);
  add_column_sums(make_rows(b), scores);
  const float want[] = {.85f, .95f, 1.55f, .65f};
  for (std::size_t j = 0; j < 4; ++j) EXPECT_FLOAT_EQ(scores[j], want[j]);
  const Matrix heads[] = {a, b};
  EXPECT_EQ(select_hidden(heads, 2, {.window = 0}), (Tokens{1, 2}));
  // The tokens of a pass that a cache with older rows holds: a part of the columns.
  const Matrix wide = Matrix::Random(6, 9);
  std::vector<float> part(5, 0.f);
  add_column_sums(make_rows(wide.data() + 4, 6, 5, 9), part);
  for (Index j = 0; j < 5; ++j) EXPECT_NEAR(part[std::size_t(j)], wide.col(j + 4).sum(), 1e-6);
}

TEST(SelectHidden, RealTensorsGiveTheTokensOfTheDefinition) {
  constexpr Index n = 1024, dim = 64, heads = 9, window = 8, keep = 384;
  const auto keys = support::load_npy<float>(data("inputs/k_l15.npy")).data;
  const auto queries = support::load_npy<float>(data("inputs/q_l15.npy")).data;
  std::vector<double> score(n, 0.0);
  for (Index h = 0; h < heads; ++h)
    for (Index t = n - window; t < n; ++t) {
      std::vector<double> weight(static_cast<std::size_t>(t + 1));
      double sum = 0;
      for (Index r = 0; r <= t; ++r) {
        double logit = 0;
        for (Index c = 0; c < dim; ++c)
          logit += double{queries[std::size_t((h * n + t) * dim + c)]} *
                   double{keys[std::size_t((h / 3 * n + r) * dim + c)]};
        sum += weight[std::size_t(r)] = std::exp(logit / 8);
      }
      for (Index r = 0; r <= t; ++r) score[std::size_t(r)] += weight[std::size_t(r)] / sum;
    }
  const Shape shape{
      .layers = 1, .query_heads = heads, .kv_heads = 3, .head_dim = dim, .dtype = DType::f16};
  KVCache cache(shape);
  cache.append(0, View::by_head(keys.data(), DType::f32, n, dim),
               View::by_head(keys.data(), DType::f32, n, dim));
  const View all = View::by_head(queries.data(), DType::f32, n, dim);
  const View last = all.tokens_from(n - window, window);
  std::vector<Matrix> attention;
  for (int h = 0; h < 3; ++h) attention.push_back(cache.attention(0, h, last));
  const Tokens kept = select_hidden(attention, keep);
  const std::vector<float> rounded(score.begin(), score.end());
  EXPECT_EQ(kept, select_by_sorting(rounded, keep, {}));
  EXPECT_EQ(kept.front(), 0);  // the sink of the model needs no pin
}

TEST(StageBudgets, AreThoseOfTheReleasedCodeUpToItsRounding) {
  const auto file = support::load_npy<std::int32_t>(data("uncomp/stage_budgets.npy"));
  int exact = 0;
  for (std::size_t row = 0; row < file.shape[0]; ++row) {
    const std::int32_t* theirs = &file.data[row * file.shape[1]];
    const Index tokens = theirs[0], stages = theirs[1];
    if (tokens < 1536) continue;  // the code keeps all of these; the share is ours
    const auto ours = stage_budgets(tokens, stages, 1536.0 / static_cast<double>(tokens));
    ASSERT_EQ(ours.size(), std::size_t(stages));
    EXPECT_EQ(ours.front(), tokens);
    EXPECT_EQ(ours.back(), 1536);
    for (Index s = 0; s < stages; ++s) {
      const Index difference = ours[std::size_t(s)] - theirs[2 + s];
      if ((tokens - 1536) % (stages - 1) == 0) {
        EXPECT_EQ(difference, 0) << tokens << " stage " << s;
        ++exact;
      } else {
        EXPECT_TRUE(difference >= 0 && difference < stages) << tokens << " stage " << s;
      }
    }
  }
  EXPECT_GT(exact, 0);
}

TEST(StageBudgets, DefaultFloorAndEnds) {
  EXPECT_EQ(stage_budgets(4096, 5), (std::vector<Index>{4096, 3456, 2816, 2176, 1536}));
  EXPECT_EQ(stage_budgets(1000, 3), (std::vector<Index>{1000, 687, 375}));
  EXPECT_EQ(stage_budgets(1000, 1), (std::vector<Index>{1000}));
  EXPECT_EQ(stage_budgets(1000, 2, 1), (std::vector<Index>{1000, 1000}));
  EXPECT_EQ(stage_budgets(1000, 3, .375, 640), (std::vector<Index>{1000, 820, 640}));
  EXPECT_EQ(stage_budgets(10, 3, .375, 640), (std::vector<Index>{10, 10, 10}));
  EXPECT_EQ(stage_budgets(1, 4), (std::vector<Index>{1, 1, 1, 1}));
  for (const Index n : {1, 2, 7, 100, 4099}) {
    const auto budgets = stage_budgets(n, 7, .1);
    EXPECT_NO_THROW(check_stages(std::vector<int>{5, 9, 2, 3, 7, 2, 2}, budgets, 30, n));
  }
}

TEST(SelectHidden, BadArgumentsNameThemselves) {
  const std::vector<float> scores(20, 1.f);
  const auto with = [&](Index keep, HiddenPins pins) {
    return message_of([&] { select_hidden(scores, keep, pins); });
  };
  EXPECT_NE(with(0, {}).find("select_hidden::keep"), std::string::npos);
  EXPECT_NE(with(21, {}).find("select_hidden::keep"), std::string::npos);
  EXPECT_NE(with(7, {}).find("always stay"), std::string::npos);
  EXPECT_NE(with(9, {.window = -1}).find("HiddenPins::window"), std::string::npos);
  EXPECT_NE(with(9, {.sinks = -1}).find("HiddenPins::sinks"), std::string::npos);
  std::vector<float> broken = scores;
  broken[3] = std::nanf("");
  EXPECT_NE(message_of([&] { select_hidden(broken, 9); }).find("scores"), std::string::npos);
  EXPECT_NE(message_of([&] { select_hidden(std::span<const Matrix>{}, 9); }).find("attention"),
            std::string::npos);
  const Matrix narrow = Matrix::Zero(2, 3);
  std::vector<float> sums(4, 0.f);
  EXPECT_NE(message_of([&] { add_column_sums(make_rows(narrow), sums); }).find("attention"),
            std::string::npos);
}

TEST(StageBudgets, BadArgumentsNameThemselves) {
  const auto budgets = [](Index tokens, Index stages, double share, Index least) {
    return message_of([&] { stage_budgets(tokens, stages, share, least); });
  };
  EXPECT_NE(budgets(0, 2, .5, 1).find("tokens"), std::string::npos);
  EXPECT_NE(budgets(9, 0, .5, 1).find("stages"), std::string::npos);
  for (const double share : {0.0, -1.0, 1.5, std::nan("")})
    EXPECT_NE(budgets(9, 2, share, 1).find("last_share"), std::string::npos);
  EXPECT_NE(budgets(9, 2, .5, 0).find("least"), std::string::npos);

  using Groups = std::vector<int>;
  using Budgets = std::vector<Index>;
  const auto stages = [](const Groups& groups, const Budgets& tokens) {
    return message_of([&] { check_stages(groups, tokens, 6, 100); });
  };
  EXPECT_EQ(stages({2, 3, 1}, {100, 50, 50}), "no error");
  EXPECT_NE(stages({2, 3}, {100, 50}).find("groups: they have 5 layers, the model has 6"),
            std::string::npos);
  EXPECT_NE(stages({}, {}).find("groups"), std::string::npos);
  EXPECT_NE(stages({6, 0}, {100, 50}).find("groups"), std::string::npos);
  EXPECT_NE(stages({3, 3}, {100}).find("budgets"), std::string::npos);
  EXPECT_NE(stages({3, 3}, {100, 0}).find("group 1 has 0 tokens"), std::string::npos);
  EXPECT_NE(stages({3, 3}, {101, 50}).find("the prompt has 100"), std::string::npos);
  EXPECT_NE(stages({2, 2, 2}, {100, 50, 60}).find("cannot come back"), std::string::npos);
  EXPECT_NE(stages({3, 3}, {90, 50}).find("first group"), std::string::npos);
  EXPECT_NE(stages({3, 3}, {100, 7}).find("always stay"), std::string::npos);
}

}  // namespace select_hidden_test
