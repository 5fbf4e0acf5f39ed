// SPDX-License-Identifier: MIT
// Probes: what policies that ask for them see, that nobody else sees anything, and that nothing of
// them stays.
#include <gtest/gtest.h>

#include <lesskv/any.hpp>

#include "support.hpp"

namespace probes_test {

using namespace support;

const Shape shape{
    .layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};

// Feeds tokens [first, first + n) of other tensors as probes, `step` at a time, by attend() or
// observe().
template <class Cache>
void probe(Cache& cache, const std::vector<Tensors>& layers, Index first, Index n, Index step,
           bool attends) {
  std::vector<float> out(static_cast<std::size_t>(step * shape.query_heads * shape.head_dim));
  cache.begin_probes();
  for (Index t = first; t < first + n; t += step) {
    const Index count = std::min(step, first + n - t);
    for (int l = 0; l < shape.layers; ++l) {
      const Tensors& own = layers[static_cast<std::size_t>(l)];
      cache.append(l, own.k(t, count), own.v(t, count));
      if (attends)
        cache.attend(l, own.q(t, count), out.data());
      else
        cache.observe(l, own.q(t, count));
    }
  }
  cache.end_probes();
}

// The largest attention weight that any probe of [first, first + n) pays each of `rows` rows of a
// head, by definition: a softmax over those rows and the probe's own, causal.
std::vector<double> largest(const Tensors& text, Index rows, const Tensors& probes, Index first,
                            Index n, int head) {
  const int dim = shape.head_dim, group = shape.group();
  std::vector<double> out(static_cast<std::size_t>(rows), 0.0);
  for (Index t = 0; t < n; ++t)
    for (int g = 0; g < group; ++g) {
      const auto q =
          probes.queries.row(first + t).segment((head * group + g) * dim, dim).cast<double>();
      std::vector<double> e;
      double max = -INFINITY, sum = 0;
      for (Index r = 0; r < rows + t + 1; ++r) {
        const Matrix& from = r < rows ? text.keys : probes.keys;
        e.push_back(
            q.dot(
                from.row(r < rows ? r : first + r - rows).segment(head * dim, dim).cast<double>()) /
            std::sqrt(double(dim)));
        max = std::max(max, e.back());
      }
      for (double& x : e) sum += x = std::exp(x - max);
      for (std::size_t r = 0; r < out.size(); ++r) out[r] = std::max(out[r], e[r] / sum);
    }
  return out;
}

std::vector<Position> largest_rows(const std::vector<double>& score, Index sinks, Index k) {
  std::vector<std::pair<double, Index>> order;
  for (std::size_t r = static_cast<std::size_t>(sinks); r < score.size(); ++r)
    order.emplace_back(-score[r], static_cast<Index>(r));
  std::sort(order.begin(), order.end());
  std::vector<Position> out = range(0, sinks);
  for (Index i = 0; i < k - sinks; ++i)
    out.push_back(Position{order[static_cast<std::size_t>(i)].second});
  std::sort(out.begin(), out.end());
  return out;
}

TEST(Probes, KVzipIsItsDefinition) {
  const std::vector<Tensors> text = tensors(shape, 150, 1), others = tensors(shape, 60, 2);
  for (const auto& [step, attends] :
       {std::pair<Index, bool>{60, true}, {60, false}, {1, true}, {13, false}, {13, true}}) {
    KVCache cache(shape, KVzip{}, Keep{.tokens = 50, .sinks = 4});
    feed(cache, text, 0, 150);
    // Two replays: the second does not see the first.
    probe(cache, others, 0, 40, std::min<Index>(step, 40), attends);
    probe(cache, others, 40, 20, std::min<Index>(step, 20), attends);
    cache.compress();
    for (int l = 0; l < 2; ++l)
      for (int h = 0; h < 2; ++h) {
        const Tensors &own = text[std::size_t(l)], &other = others[std::size_t(l)];
        std::vector<double> score = largest(own, 150, other, 0, 40, h);
        const std::vector<double> second = largest(own, 150, other, 40, 20, h);
        for (std::size_t r = 0; r < score.size(); ++r) score[r] = std::max(score[r], second[r]);
        EXPECT_EQ(cache.positions(l, h), largest_rows(score, 4, 50)) << "step " << step;
      }
  }
}

TEST(Probes, WeightsOfTheEngineItself) {
  const std::vector<Tensors> text = tensors(shape, 100, 1), others = tensors(shape, 10, 2);
  KVCache seen(shape, KVzip{}, Keep{.tokens = 40});
  KVCache told(shape, KVzip{}, Keep{.tokens = 40});
  feed(seen, text, 0, 100);
  feed(told, text, 0, 100);
  probe(seen, others, 0, 10, 10, true);
  told.begin_probes();
  for (int l = 0; l < 2; ++l) {
    const Tensors& own = others[std::size_t(l)];
    told.append(l, own.k(0, 10), own.v(0, 10));
    for (int h = 0; h < 2; ++h) told.observe(l, h, make_rows(told.attention(l, h, own.q(0, 10))));
  }
  told.end_probes();
  seen.compress();
  told.compress();
  for (int h = 0; h < 2; ++h) EXPECT_EQ(told.positions(1, h), seen.positions(1, h));
}

TEST(Probes, AttendSeesTheRowsHeldAndTheirOwn) {
  const std::vector<Tensors> text = tensors(shape, 100, 1), others = tensors(shape, 20, 2);
  KVCache cache(shape, KVzip{}, Keep{.tokens = 40});
  feed(cache, text, 0, 100);
  cache.begin_probes();
  const Matrix got = feed(cache, others, 0, 20);
  EXPECT_LT(
      relative_error(got, attention_by_definition(cache, 1, others[1].queries, range(100, 20))),
      1e-5);
  EXPECT_EQ(cache.size(1, 1), 120);
  cache.end_probes();
  EXPECT_EQ(cache.size(1, 1), 100);
}

// Whatever the policies look at, a cache with probes goes on bit for bit as one without.
template <class... Ps>
void expect_no_trace(Ps... policies) {
  const std::vector<Tensors> text = tensors(shape, 200, 1), others = tensors(shape, 60, 2);
  Shape rotated = shape;
  rotated.rope = Rope{};
  KVCache with(rotated, policies...), without(rotated, policies...);
  Matrix a, b;
  for (const auto& [first, n] : {std::pair<Index, Index>{0, 150}, {150, 1}, {151, 49}}) {
    a = feed(with, text, first, n);
    b = feed(without, text, first, n);
    probe(with, others, 0, 60, 25, true);
    EXPECT_EQ(with.next_position(0), without.next_position(0));
    EXPECT_EQ(with.stats().seen, without.stats().seen);
    // The open block of each head may have grown to its 64 rows.
    EXPECT_LE(with.bytes(), without.bytes() + std::size_t(shape.heads() * 64 * (32 * 4 + 16)));
    with.compress();
    without.compress();
    for (int l = 0; l < 2; ++l)
      for (int h = 0; h < 2; ++h) {
        EXPECT_EQ(with.positions(l, h), without.positions(l, h)) << "behind " << first + n;
        EXPECT_EQ(with.keys(l, h), without.keys(l, h));
      }
    EXPECT_EQ(a, b);
  }
}

TEST(Probes, OthersSeeNothingOfThem) {
  const Keep keep{.tokens = 60, .sinks = 4, .every = 1};
  expect_no_trace(keep, H2O{});
  expect_no_trace(keep, SnapKV{.window = 16});
  expect_no_trace(keep, ExpectedAttention{});
  expect_no_trace(keep, H2O{}, ZigZagKV{.window = 16});
  expect_no_trace(keep, H2O{}, EntropyWeight{});
  expect_no_trace(keep, KeyDiff{}, LloydMax{.bits = 4});
  expect_no_trace(Keep{.fraction = 0.4, .sinks = 4}, LagKV{.lag = 16});
}

TEST(Probes, EachPartOfAScorerSeesItsOwn) {
  const std::vector<Tensors> text = tensors(shape, 150, 1), others = tensors(shape, 60, 2);
  const Keep keep{.tokens = 50, .sinks = 4};
  // The offset leaves no say to the second part.
  KVCache h2o(shape, H2O{}, keep);
  KVCache kvzip(shape, KVzip{}, keep);
  KVCache first(shape, MaxRank<H2O, KVzip>(H2O{}, KVzip{}, {0, -10}), keep);
  KVCache second(shape, MaxRank<H2O, KVzip>(H2O{}, KVzip{}, {-10, 0}), keep);
  const auto run = [&](auto& cache) {
    feed(cache, text, 0, 150);
    probe(cache, others, 0, 60, 60, true);
    cache.compress();
  };
  run(h2o);
  run(kvzip);
  run(first);
  run(second);
  for (int h = 0; h < 2; ++h) {
    EXPECT_EQ(first.positions(0, h), h2o.positions(0, h));
    EXPECT_EQ(second.positions(0, h), kvzip.positions(0, h));
  }
}

TEST(Probes, ByNameWithOneCutOverTheModel) {
  const std::vector<Tensors> text = tensors(shape, 150, 1), others = tensors(shape, 60, 2);
  AnyCache cache = make_cache("keep(tokens=50)+kvzip+globalcut", shape);
  AnyCache counted = make_cache("keep(tokens=50,sinks=4)+streamingllm+globalcut(by=kvzip)", shape);
  Index held = 0;
  for (AnyCache* one : {&cache, &counted}) {
    EXPECT_TRUE(one->needs_probes());
    feed(*one, text, 0, 150);
    probe(*one, others, 0, 60, 60, true);
    one->compress();
  }
  std::vector<std::tuple<double, int, Index>> all;  // of candidates: score, head, row
  for (int i = 0; i < 4; ++i) {
    const std::vector<double> score =
        largest(text[std::size_t(i / 2)], 150, others[std::size_t(i / 2)], 0, 60, i % 2);
    for (std::size_t r = 4; r < score.size(); ++r) all.emplace_back(-score[r], i, Index(r));
    held += cache.size(i / 2, i % 2);
  }
  EXPECT_EQ(held, 200);
  std::sort(all.begin(), all.end());
  std::vector<Index> want(4, 4);
  for (std::size_t k = 0; k < 200 - 16; ++k) ++want[std::size_t(std::get<1>(all[k]))];
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(cache.size(i / 2, i % 2), want[std::size_t(i)]);
    EXPECT_NEAR(double(counted.size(i / 2, i % 2)), double(want[std::size_t(i)]), 1);
  }
}

TEST(Probes, RowsThatNoProbeSawStay) {
  const std::vector<Tensors> text = tensors(shape, 160, 1), others = tensors(shape, 60, 2);
  KVCache cache(shape, KVzip{}, Keep{.tokens = 40, .every = 1});
  feed(cache, text, 0, 150);
  probe(cache, others, 0, 60, 60, true);
  cache.compress();
  feed(cache, text, 150, 10);
  cache.compress();
  const std::vector<Position> held = cache.positions(1, 1);
  ASSERT_EQ(held.size(), 40u);
  for (Index i = 0; i < 10; ++i) EXPECT_EQ(to_int(held[static_cast<std::size_t>(30 + i)]), 150 + i);
}

TEST(Probes, SaysWhatIsWrong) {
  const std::vector<Tensors> text = tensors(shape, 80, 1), others = tensors(shape, 10, 2);
  KVCache cache(shape, KVzip{}, Keep{.tokens = 40});
  feed(cache, text, 0, 80);
  const auto expect = [&](auto&& f, const char* part) {
    EXPECT_NE(message_of(f).find(part), std::string::npos) << message_of(f);
    EXPECT_EQ(cache.size(0, 0), 80);
  };
  expect([&] { cache.compress(); }, "begin_probes()");
  expect([&] { cache.end_probes(); }, "begin_probes()");
  cache.begin_probes();
  expect([&] { cache.begin_probes(); }, "end_probes()");
  expect([&] { cache.compress(); }, "end_probes()");
  expect([&] { cache.truncate(Position{3}); }, "end_probes()");
  cache.end_probes();
  probe(cache, others, 0, 10, 10, true);
  cache.compress();
  EXPECT_EQ(cache.size(0, 0), 40);
  EXPECT_FALSE(make_cache("keep(fraction=.5)+h2o", shape).needs_probes());
}

// An engine that keeps its own rows.
TEST(Probes, OfAPlanner) {
  const std::vector<Tensors> text = tensors(shape, 100, 1), others = tensors(shape, 20, 2);
  KVCache cache(shape, KVzip{}, Keep{.tokens = 40});
  feed(cache, text, 0, 100);
  probe(cache, others, 0, 20, 20, true);
  cache.compress();
  std::vector<Tensors> both;
  for (std::size_t l = 0; l < 2; ++l) {
    both.push_back(text[l]);
    both[l].keys.conservativeResize(120, Eigen::NoChange);
    both[l].values.conservativeResize(120, Eigen::NoChange);
    both[l].keys.bottomRows(20) = others[l].keys;
    both[l].values.bottomRows(20) = others[l].values;
  }
  Index rows = 100;
  const Source source = [&](int layer, int head) {
    const Tensors& own = both[std::size_t(layer)];
    const Index at = head * shape.head_dim;
    return HeadView{View::packed(own.keys.data() + at, rows, shape.kv_heads, shape.head_dim),
                    View::packed(own.values.data() + at, rows, shape.kv_heads, shape.head_dim)};
  };
  Planner planner(shape, KVzip{}, Keep{.tokens = 40});
  for (int l = 0; l < 2; ++l) planner.append(l, 100);
  planner.begin_probes();
  rows = 120;
  for (int l = 0; l < 2; ++l) {
    planner.append(l, 20);
    planner.observe(l, others[std::size_t(l)].q(0, 20), source);
  }
  planner.end_probes();
  rows = 100;
  planner.commit(planner.plan(source));
  for (int h = 0; h < 2; ++h) EXPECT_EQ(planner.positions(1, h), cache.positions(1, h));
}

}  // namespace probes_test
