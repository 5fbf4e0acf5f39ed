// SPDX-License-Identifier: MIT
// Prefill that goes through the layers one by one and drops hidden states between groups of them.
#include <cmath>
#include <engine/run.hpp>
#include <lesskv/lesskv.hpp>
#include <numeric>

#include "support.hpp"

namespace prefill_test {

using engine::DropHidden;
using engine::every_token;
using engine::Index;
using engine_test::model;
using Cache = lesskv::KVCache<>;

constexpr Index tokens_fed = 700;  // two passes, the second one partly filled

lesskv::Shape f32_shape() { return engine::cache_shape(model(), lesskv::DType::f32); }

std::vector<std::int64_t> positions(const Cache& cache, int layer, int head) {
  std::vector<std::int64_t> out;
  for (const lesskv::Position p : cache.positions(layer, head)) out.push_back(lesskv::to_int(p));
  return out;
}

class PrefillTest : public engine_test::ModelTest {
 protected:
  static std::vector<std::int32_t> tokens(Index count = tokens_fed) {
    auto ids = engine_test::reference<std::int32_t>("token_ids").data;
    ids.resize(static_cast<std::size_t>(count));
    return ids;
  }
};

TEST_F(PrefillTest, NothingDroppedIsTheExactForwardPassBitForBit) {
  const auto ids = tokens();
  engine::Run run(model());
  Cache exact(f32_shape()), layer_major(f32_shape());
  const auto first = run.forward(exact, ids, 0, {.logits = 3});
  const std::vector<float> wanted(first.begin(), first.end());
  DropHidden drop;
  drop.last_share = 1;
  drop.on_kept = [](const engine::KeptTokens&) { FAIL() << "nothing was to go"; };
  const auto got = run.prefill(layer_major, ids, 0, drop, {.logits = 3});
  EXPECT_EQ(std::vector<float>(got.begin(), got.end()), wanted);
  for (int l = 0; l < 30; ++l)
    for (int h = 0; h < 3; ++h) {
      EXPECT_EQ(layer_major.positions(l, h), exact.positions(l, h));
      EXPECT_EQ(layer_major.keys(l, h), exact.keys(l, h)) << "layer " << l;
      EXPECT_EQ(layer_major.values(l, h), exact.values(l, h)) << "layer " << l;
    }
}

TEST_F(PrefillTest, EveryGroupHoldsItsTokensAtTheirOriginalPositions) {
  const auto ids = tokens();
  engine::Run run(model());
  Cache exact(f32_shape()), cache(f32_shape());
  constexpr std::int64_t start = 1000;
  run.forward(exact, ids, start);
  DropHidden drop;
  std::vector<std::vector<std::int32_t>> chosen;
  drop.on_kept = [&](const engine::KeptTokens& kept) {
    chosen.emplace_back(kept.rows.begin(), kept.rows.end());
  };
  // What the last layer saw of every row: the state behind the final norm.
  std::vector<std::int64_t> last_positions;
  Index last_rows = 0;
  engine::ForwardOptions options;
  options.on_hidden = [&](const engine::HiddenState& state) {
    if (state.entry != 30) return;
    EXPECT_EQ(state.first_token, last_rows);
    last_rows += state.tokens;
    last_positions.insert(last_positions.end(), state.positions.begin(), state.positions.end());
  };
  run.prefill(cache, ids, start, drop, options);

  const auto budgets = lesskv::stage_budgets(tokens_fed, 7);
  ASSERT_EQ(chosen.size(), 6u);
  std::vector<std::int64_t> held(static_cast<std::size_t>(tokens_fed));
  std::iota(held.begin(), held.end(), start);
  int layer = 0;
  for (std::size_t g = 0; g < 7; ++g) {
    if (g > 0) {
      std::vector<std::int64_t> next;
      for (const std::int32_t row : chosen[g - 1]) next.push_back(held[std::size_t(row)]);
      held = next;
    }
    ASSERT_EQ(static_cast<Index>(held.size()), budgets[g]);
    for (std::int64_t p = start + tokens_fed - 8; p < start + tokens_fed; ++p)
      EXPECT_TRUE(std::binary_search(held.begin(), held.end(), p));
    for (int left = drop.groups[g]; left > 0; --left, ++layer)
      for (int h = 0; h < 3; ++h) EXPECT_EQ(positions(cache, layer, h), held) << "layer " << layer;
  }
  EXPECT_EQ(last_positions, held);
  EXPECT_EQ(lesskv::to_int(cache.next_position(29)), start + tokens_fed);

  // Up to the first layer behind the first border a token's keys do not depend on who left: they
  // are those of the exact pass, turned by its own position.
  for (int l = 0; l <= 5; ++l)
    for (int h = 0; h < 3; ++h) {
      const auto keys = cache.keys(l, h), all = exact.keys(l, h);
      const auto at = positions(cache, l, h);
      for (std::size_t r = 0; r < at.size(); ++r)
        ASSERT_LT((keys.row(Index(r)) - all.row(at[r] - start)).cwiseAbs().maxCoeff(), 1e-4f)
            << "layer " << l << " row " << r;
    }
}

// The choice at the first border, from the exact pass, in double.
TEST_F(PrefillTest, TokensAreChosenByTheLastQueriesOfTheLayerBefore) {
  const auto ids = tokens(520);  // the last pass has 8 tokens; with 515 the window spans two
  for (const Index count : {Index{520}, Index{515}}) {
    const auto part = std::span(ids).first(static_cast<std::size_t>(count));
    engine::Run run(model());
    Cache exact(f32_shape()), cache(f32_shape());
    std::vector<float> queries(static_cast<std::size_t>(count * 576));
    run.forward(exact, part, 0, {.logits = 0, .on_tensors = [&](const engine::LayerTensors& t) {
                                   if (t.layer == 4)
                                     std::copy_n(t.queries, t.tokens * 576,
                                                 queries.data() + t.first_token * 576);
                                 }});
    std::vector<double> score(static_cast<std::size_t>(count), 0.0);
    for (int h = 0; h < 9; ++h) {
      const auto keys = exact.keys(4, h / 3);
      for (Index q = count - 8; q < count; ++q) {
        std::vector<double> weight;
        double sum = 0;
        for (Index r = 0; r <= q; ++r) {
          double logit = 0;
          for (Index c = 0; c < 64; ++c)
            logit += double{queries[std::size_t(q * 576 + h * 64 + c)]} * double{keys(r, c)};
          weight.push_back(std::exp(logit / 8));
          sum += weight.back();
        }
        for (Index r = 0; r <= q; ++r) score[std::size_t(r)] += weight[std::size_t(r)] / sum;
      }
    }
    DropHidden drop;
    drop.groups = {5, 25};
    drop.budgets = {count, 200};
    std::vector<std::int32_t> kept;
    drop.on_kept = [&](const engine::KeptTokens& tokens_kept) {
      EXPECT_EQ(tokens_kept.layer, 5);
      kept.assign(tokens_kept.rows.begin(), tokens_kept.rows.end());
    };
    run.prefill(cache, part, 0, drop);
    ASSERT_EQ(kept.size(), 200u);
    // Rounding may exchange tokens whose scores are equal to 1e-5, no others.
    std::vector<bool> stays(static_cast<std::size_t>(count), false);
    for (const std::int32_t row : kept) stays[std::size_t(row)] = true;
    double lowest = 1e9, highest_dropped = 0;
    for (Index r = 0; r < count - 8; ++r)
      if (stays[std::size_t(r)])
        lowest = std::min(lowest, score[std::size_t(r)]);
      else
        highest_dropped = std::max(highest_dropped, score[std::size_t(r)]);
    EXPECT_GE(lowest, highest_dropped * (1 - 1e-5)) << count;
  }
}

TEST_F(PrefillTest, LogitsAreThoseOfTheLastTokens) {
  const auto ids = tokens(600);
  engine::Run run(model());
  Cache one(f32_shape()), eight(f32_shape());
  DropHidden drop;
  std::vector<float> hidden;
  std::int64_t position = -1;
  engine::ForwardOptions options;
  options.on_hidden = [&](const engine::HiddenState& state) {
    if (state.entry != 30) return;
    const Index width = model().config().width;
    hidden.assign(state.hidden + (state.tokens - 1) * width, state.hidden + state.tokens * width);
    position = state.positions.back();
  };
  auto logits = run.prefill(one, ids, 0, drop, options);
  const std::vector<float> last(logits.begin(), logits.end());
  EXPECT_EQ(position, 599);
  ASSERT_EQ(last.size(), static_cast<std::size_t>(model().config().vocabulary));
  // Logits are the output matrix times the state of the last row.
  std::vector<float> product(last.size());
  engine::multiply(model().output(), hidden.data(), product.data(), false, {});
  for (std::size_t i = 0; i < last.size(); ++i) ASSERT_NEAR(product[i], last[i], 1e-3);

  options.logits = 8;
  logits = run.prefill(eight, ids, 0, drop, options);
  ASSERT_EQ(logits.size(), 8 * last.size());
  for (std::size_t i = 0; i < last.size(); ++i)
    ASSERT_NEAR(logits[7 * last.size() + i], last[i], 1e-3);
}

TEST_F(PrefillTest, FewTokensLeftOutCostLittleAndDecodingGoesOn) {
  const auto ids = tokens(400);
  engine::Run run(model());
  Cache exact(f32_shape()), cache(f32_shape());
  DropHidden drop;
  drop.groups = {28, 2};
  drop.budgets = {400, 399};  // one token, the one that matters least, in two layers
  run.forward(exact, ids, 0);
  run.prefill(cache, ids, 0, drop);
  const std::int32_t next[] = {253, 30};
  const auto row = run.forward(exact, next, 400);
  const std::vector<float> wanted(row.begin(), row.end());
  const auto got = run.forward(cache, next, 400);
  double worst = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i)
    worst = std::max(worst, double{std::abs(wanted[i] - got[i])});
  EXPECT_GT(worst, 0);
  EXPECT_LT(worst, 0.1);
  EXPECT_EQ(cache.size(0, 0), 402);
  EXPECT_EQ(cache.size(29, 0), 401);
}

TEST_F(PrefillTest, RowsOfEarlierTurnsStayAndAPolicyMayFollow) {
  const auto ids = tokens(600);
  const std::span<const std::int32_t> all(ids);
  engine::Run run(model());
  lesskv::KVCache cache(f32_shape(), lesskv::Keep{.fraction = 0.5}, lesskv::SnapKV{.window = 16});
  run.forward(cache, all.first(100), 0);
  DropHidden drop;
  drop.last_share = 0.5;
  drop.pins = {.window = 32, .sinks = 2};
  run.prefill(cache, all.subspan(100), 100, drop);
  EXPECT_EQ(cache.size(0, 0), 600);
  EXPECT_EQ(cache.size(29, 2), 350);
  // The first rows of this prompt are its sinks.
  EXPECT_EQ(lesskv::to_int(cache.positions(29, 1)[100]), 100);
  EXPECT_EQ(lesskv::to_int(cache.positions(29, 1)[101]), 101);
  cache.compress();
  EXPECT_LT(cache.size(0, 0), 400);
  EXPECT_LT(cache.size(29, 0), 350);
  const std::int32_t next[] = {253};
  for (const float x : run.forward(cache, next, 600)) ASSERT_TRUE(std::isfinite(x));
}

TEST_F(PrefillTest, ShortPromptsStayWhole) {
  for (const Index count : {1, 5, 8}) {
    const auto ids = tokens(count);
    engine::Run run(model());
    Cache exact(f32_shape()), cache(f32_shape());
    const auto row = run.forward(exact, ids, 0, {.logits = every_token});
    const std::vector<float> wanted(row.begin(), row.end());
    const auto got = run.prefill(cache, ids, 0, {}, {.logits = every_token});
    EXPECT_EQ(std::vector<float>(got.begin(), got.end()), wanted);
  }
}

TEST_F(PrefillTest, AnExecutorChangesNothing) {
  const auto ids = tokens(300);
  engine::Run plain(model()), threaded(model());
  threaded.set_executor([](Index count, const std::function<void(Index)>& task) {
    for (Index i = count; i-- > 0;) task(i);
  });
  Cache a(f32_shape()), b(f32_shape());
  const auto wanted = plain.prefill(a, ids, 0, {});
  const auto got = threaded.prefill(b, ids, 0, {});
  EXPECT_TRUE(std::equal(got.begin(), got.end(), wanted.begin(), wanted.end()));
}

TEST_F(PrefillTest, BadArgumentsAreErrorsAndLeaveTheCacheAlone) {
  const auto ids = tokens(100);
  engine::Run run(model());
  Cache cache(f32_shape());
  const auto message = [&](DropHidden drop, Index logits = 1) -> std::string {
    try {
      run.prefill(cache, ids, 0, drop, {.logits = logits});
    } catch (const std::exception& error) {
      return error.what();
    }
    return "no error";
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(has(message({.groups = {10, 10}}), "groups: they have 20 layers, the model has 30"));
  EXPECT_TRUE(has(message({.groups = {}}), "stages"));
  EXPECT_TRUE(has(message({.groups = {30, 0}}), "groups"));
  EXPECT_TRUE(has(message({.groups = {10, 20}, .budgets = {100}}), "budgets"));
  EXPECT_TRUE(has(message({.groups = {10, 20}, .budgets = {100, 0}}), "0 tokens"));
  EXPECT_TRUE(has(message({.groups = {10, 20}, .budgets = {101, 50}}), "the prompt has 100"));
  EXPECT_TRUE(has(message({.groups = {10, 10, 10}, .budgets = {100, 50, 60}}), "come back"));
  EXPECT_TRUE(has(message({.groups = {10, 20}, .budgets = {90, 50}}), "first group"));
  EXPECT_TRUE(has(message({.groups = {10, 20}, .budgets = {100, 7}}), "always stay"));
  EXPECT_TRUE(has(message({.last_share = 0}), "last_share"));
  EXPECT_TRUE(has(message({.pins = {.window = 0}}), "window"));
  EXPECT_TRUE(has(message({.pins = {.window = -1}}), "window"));
  EXPECT_TRUE(has(message({}, 9), "window"));
  EXPECT_TRUE(has(message({}, 101), "logits"));
  EXPECT_THROW(run.prefill(cache, std::span<const std::int32_t>{}, 0, {}, {.logits = 0}),
               engine::Error);
  const std::int32_t outside[] = {1, 49152};
  EXPECT_THROW(run.prefill(cache, outside, 0, {}), engine::Error);
  for (int l = 0; l < 30; ++l) EXPECT_EQ(cache.size(l, 0), 0);
}

}  // namespace prefill_test
