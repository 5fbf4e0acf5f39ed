// SPDX-License-Identifier: MIT
// The plan-only path: the engine owns the memory, the planner says which rows stay, the engine
// moves them.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "support.hpp"

namespace planner_test {

using namespace support;

const Shape shape{
    .layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};

// An engine's cache: one buffer a layer and side, [slot][head][channel], and a slot table per head.
struct EngineMemory {
  std::vector<std::vector<float>> keys, values;
  std::vector<std::vector<std::int32_t>> slots;  // [layer * kv_heads + head]
  Index next_slot = 0;

  EngineMemory() : keys(2), values(2), slots(4) {
    for (int l = 0; l < 2; ++l) {
      keys[std::size_t(l)].resize(2048 * 32);
      values[std::size_t(l)].resize(2048 * 32);
    }
  }
  // Writes a pass of one layer; every token gets the next slot, spread over the buffer as pages
  // would be.
  void write(int layer, const Tensors& t, Index first, Index n) {
    for (Index i = 0; i < n; ++i) {
      const Index slot = ((first + i) * 7) % 2048;
      std::memcpy(&keys[std::size_t(layer)][std::size_t(slot * 32)], t.keys.row(first + i).data(),
                  32 * sizeof(float));
      std::memcpy(&values[std::size_t(layer)][std::size_t(slot * 32)],
                  t.values.row(first + i).data(), 32 * sizeof(float));
      for (int h = 0; h < 2; ++h)
        slots[std::size_t(layer * 2 + h)].push_back(static_cast<std::int32_t>(slot));
    }
  }
  HeadView head(int layer, int h) const {
    const auto& table = slots[std::size_t(layer * 2 + h)];
    const auto view = [&](const std::vector<float>& buffer) {
      return View{.data = buffer.data() + h * 16,
                  .tokens = static_cast<Index>(table.size()),
                  .token_stride = 32,
                  .head_stride = 16,
                  .rows = table};
    };
    return {view(keys[std::size_t(layer)]), view(values[std::size_t(layer)])};
  }
  void carry_out(const Plan& plan) {
    for (int l = 0; l < 2; ++l)
      for (int h = 0; h < 2; ++h) {
        const HeadPlan& part = plan.heads[std::size_t(l * 2 + h)];
        if (part.all) continue;
        const HeadView view = head(l, h);
        move_rows(view.keys, 16, part.kept);
        move_rows(view.values, 16, part.kept);
        slots[std::size_t(l * 2 + h)].resize(part.kept.size());
      }
  }
};

template <class... Ps>
void expect_plan_equals_cache(Ps... policies) {
  const auto in = tensors(shape, 400, 21);
  KVCache cache(shape, policies...);
  Planner planner(shape, policies...);
  EngineMemory memory;
  const Source source = [&](int l, int h) { return memory.head(l, h); };
  Index at = 0;
  for (const Index n : {150, 1, 99, 64, 86}) {
    feed(cache, in, at, n);
    cache.compress();
    for (int l = 0; l < 2; ++l) {
      memory.write(l, in[std::size_t(l)], at, n);
      planner.append(l, n);
      planner.observe(l, in[std::size_t(l)].q(at, n), source);
    }
    const Plan plan = planner.plan(source);
    const Plan again = planner.plan(source);  // planning changes nothing
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(plan.heads[i].kept, again.heads[i].kept);
    memory.carry_out(plan);
    planner.commit(plan);
    at += n;
    for (int l = 0; l < 2; ++l)
      for (int h = 0; h < 2; ++h) {
        EXPECT_EQ(planner.positions(l, h), cache.positions(l, h))
            << "layer " << l << " head " << h << " at " << at;
        // Rows in the engine's memory are the rows of the cache, in position order.
        const HeadView view = memory.head(l, h);
        const Matrix k = cache.keys(l, h), v = cache.values(l, h);
        ASSERT_EQ(view.keys.tokens, k.rows());
        std::vector<float> row(16);
        for (Index r = 0; r < k.rows(); ++r) {
          detail::read_row(view.keys, r, 0, 16, row.data());
          EXPECT_EQ(0, std::memcmp(row.data(), k.row(r).data(), 16 * sizeof(float)));
          detail::read_row(view.values, r, 0, 16, row.data());
          EXPECT_EQ(0, std::memcmp(row.data(), v.row(r).data(), 16 * sizeof(float)));
        }
      }
  }
  EXPECT_LT(cache.stats().held, 400 * 4);
}

TEST(PlanOnly, EqualsTheCacheForEveryKindOfPolicy) {
  expect_plan_equals_cache(SmallKeys{}, Keep{.tokens = 100, .sinks = 3});
  expect_plan_equals_cache(ChunkValues{}, Keep{.fraction = 0.4, .sinks = 3});
  expect_plan_equals_cache(WindowAttention{}, Keep{.fraction = 0.4, .sinks = 3});
  expect_plan_equals_cache(SumOfAttention{}, Tilted{}, Keep{.tokens = 120, .recent = 20});
}

TEST(PlanOnly, TheEnginesOwnAttentionGivesTheSamePlan) {
  const auto in = tensors(shape, 120, 22);
  Planner from_queries(shape, SumOfAttention{}, Keep{.tokens = 50}),
      from_weights(shape, SumOfAttention{}, Keep{.tokens = 50});
  Planner window_queries(shape, WindowAttention{}, Keep{.tokens = 50}),
      window_weights(shape, WindowAttention{}, Keep{.tokens = 50});
  EngineMemory memory;
  const Source source = [&](int l, int h) { return memory.head(l, h); };
  for (int l = 0; l < 2; ++l) {
    memory.write(l, in[std::size_t(l)], 0, 120);
    from_queries.append(l, 120);
    from_weights.append(l, 120);
    window_queries.append(l, 120);
    window_weights.append(l, 120);
    from_queries.observe(l, in[std::size_t(l)].q(0, 120), source);
    window_queries.observe(l, in[std::size_t(l)].q(0, 120), source);
    for (int h = 0; h < 2; ++h) {
      // Causal softmax, query-major then query head.
      Matrix weights = Matrix::Zero(240, 120);
      for (Index t = 0; t < 120; ++t)
        for (int g = 0; g < 2; ++g) {
          const auto q = in[std::size_t(l)].queries.row(t).segment((h * 2 + g) * 16, 16);
          Eigen::RowVectorXd e(t + 1);
          for (Index r = 0; r <= t; ++r)
            e[r] = std::exp(double(q.dot(in[std::size_t(l)].keys.row(r).segment(h * 16, 16))) / 4);
          weights.row(t * 2 + g).head(t + 1) = (e / e.sum()).cast<float>();
        }
      from_weights.observe(l, h, make_rows(weights));
      window_weights.observe(l, h, make_rows(weights));
    }
  }
  const Plan a = from_queries.plan(source), b = from_weights.plan(source);
  const Plan c = window_queries.plan(source), d = window_weights.plan(source);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(a.heads[i].kept, b.heads[i].kept);
    EXPECT_EQ(c.heads[i].kept, d.heads[i].kept);
    EXPECT_EQ(a.heads[i].kept.size(), 50u);
  }
}

TEST(PlanOnly, APlanMayBeDroppedAndAnOldOneIsRefused) {
  const auto in = tensors(shape, 100, 23);
  Planner planner(shape, SmallKeys{}, Keep{.tokens = 40});
  EngineMemory memory;
  const Source source = [&](int l, int h) { return memory.head(l, h); };
  for (int l = 0; l < 2; ++l) {
    memory.write(l, in[std::size_t(l)], 0, 100);
    planner.append(l, 100);
  }
  const Plan dropped = planner.plan(source);
  EXPECT_EQ(planner.size(0, 0), 100);
  const Plan plan = planner.plan(source);
  planner.commit(plan);
  EXPECT_EQ(planner.size(0, 0), 40);
  EXPECT_THROW(planner.commit(dropped), Error);
  EXPECT_EQ(planner.size(0, 0), 40);
}

TEST(PlanOnly, AViewThatIsTooShortIsNamed) {
  Planner planner(shape, SmallKeys{}, Keep{.tokens = 40});
  for (int l = 0; l < 2; ++l) planner.append(l, 100);
  const std::vector<float> data(50 * 16);
  const View view = View::by_head(data.data(), DType::f32, 50, 16);
  try {
    (void)planner.plan([&](int, int) { return HeadView{view, view}; });
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("source keys"), std::string::npos);
  }
  EXPECT_EQ(planner.size(1, 1), 100);
}

// ---- move_rows

TEST(MoveRows, InPlaceEqualsACopyForEveryLayout) {
  std::mt19937 random(4);
  for (int round = 0; round < 60; ++round) {
    const Index n = 1 + static_cast<Index>(random() % 90),
                width = 1 + static_cast<Index>(random() % 9);
    std::vector<std::int32_t> kept;
    for (Index r = 0; r < n; ++r)
      if (random() % 3 == 0) kept.push_back(static_cast<std::int32_t>(r));
    for (const bool transposed : {false, true})
      for (const bool table : {false, true}) {
        const Index slots = table ? 2 * n : n;
        std::vector<float> data(std::size_t(slots * width));
        std::iota(data.begin(), data.end(), 1.f);
        std::vector<std::int32_t> rows(static_cast<std::size_t>(n));
        std::iota(rows.begin(), rows.end(), 0);
        if (table)
          for (auto& r : rows) r = static_cast<std::int32_t>(slots - 1 - 2 * r);
        View view{.data = data.data(),
                  .tokens = n,
                  .token_stride = transposed ? 1 : width,
                  .channel_stride = transposed ? slots : 1};
        if (table) view.rows = rows;
        std::vector<std::vector<float>> want;
        for (const Index r : kept) {
          want.emplace_back(std::size_t(width));
          detail::read_row(view, r, 0, static_cast<int>(width), want.back().data());
        }
        move_rows(view, static_cast<int>(width), kept);
        for (std::size_t i = 0; i < kept.size(); ++i) {
          std::vector<float> got(static_cast<std::size_t>(width));
          detail::read_row(view, static_cast<Index>(i), 0, static_cast<int>(width), got.data());
          EXPECT_EQ(got, want[i]);
        }
      }
  }
}

TEST(MoveRows, WrongRowsMoveNothing) {
  std::vector<float> data{1, 2, 3, 4};
  const View view{.data = data.data(), .tokens = 4, .token_stride = 1};
  for (const std::vector<std::int32_t>& kept :
       {std::vector<std::int32_t>{1, 1}, {2, 1}, {1, 4}, {-1, 2}}) {
    EXPECT_THROW(move_rows(view, 1, kept), Error);
    EXPECT_EQ(data, (std::vector<float>{1, 2, 3, 4}));
  }
}

}  // namespace planner_test
