// SPDX-License-Identifier: MIT
// ExpectedAttention against kvpress 0.5.5 on the same tensors, and against its definition in double.
#include <gtest/gtest.h>

#include <lesskv/any.hpp>
#include <random>

#include "reference.hpp"
#include "support/message.hpp"

namespace expected_attention_test {

using namespace reference;

std::vector<Position> all_positions(Index n) {
  std::vector<Position> out;
  for (Index i = 0; i < n; ++i) out.push_back(Position{i});
  return out;
}

// Queries of the file go to the policy in parts of `step`.
template <class Cache>
void feed(Cache& cache, Index step) {
  const Tensor k("k_l15"), v("v_l15"), q("q_l15");
  cache.append(0, k.view(), v.view());
  const std::vector<Position> at = all_positions(1024);
  for (Index first = 0; first < 1024; first += step) {
    const Index n = std::min(step, 1024 - first);
    cache.observe(0, q.view(first, n), std::span(at).subspan(std::size_t(first), std::size_t(n)));
  }
}

struct Case {
  const char* file;
  ExpectedAttention policy;
};
const Case cases[] = {{"expected_attention", {}},
                      {"expected_attention_nocov", {.covariance = false}},
                      {"expected_attention_eps", {.epsilon = 0.02}}};

TEST(ExpectedAttention, KeptSetsEqualKvpress) {
  for (const Case& one : cases)
    for (const auto& [removed, rows] : {std::pair{"0.5", Index{512}}, {"0.8", Index{204}}}) {
      const std::string file =
          std::string("kvpress/kept_") + one.file + "_l15_r" + removed + ".npy";
      SCOPED_TRACE(file);
      const auto want = kept(file);
      for (const Index step : {1024, 7}) {
        KVCache cache(shape(), one.policy, Keep{.tokens = rows, .sinks = 4});
        feed(cache, step);
        cache.compress();
        for (int h = 0; h < 3; ++h)
          EXPECT_EQ(positions(cache.positions(0, h)), row(want, h)) << "head " << h;
      }
    }
}

TEST(ExpectedAttention, ScoresEqualKvpress) {
  for (const Case& one : {cases[0], cases[1]}) {
    SCOPED_TRACE(one.file);
    const auto want =
        support::load_npy<float>(path(std::string("kvpress/score_") + one.file + "_l15.npy"));
    KVCache cache(shape(), one.policy, Keep{.tokens = 2000, .sinks = 4});
    feed(cache, 100);
    const Rotation rotation(*shape().rope, 64);
    for (int h = 0; h < 3; ++h) {
      Seen seen(15, h);
      seen.head.first = 4;
      seen.head.rotation = &rotation;
      one.policy.score(seen.head, cache.states<ExpectedAttention>()[std::size_t(h)], seen.scores);
      expect_scores(seen.scores, want.data.data() + h * 1024, 4, 1024, 1e-5f);
    }
  }
}

TEST(ExpectedAttention, MeansEqualTheOracleOfTheReference) {
  const auto want = support::load_npy<float>(path("kvpress/ea_mu_l15.npy"));
  KVCache cache(shape(), ExpectedAttention{}, Keep{.tokens = 2000, .sinks = 4});
  feed(cache, 64);
  for (int q = 0; q < 9; ++q) {
    const QueryMoments& moments =
        cache.states<ExpectedAttention>()[std::size_t(q / 3)].moments[std::size_t(q % 3)];
    ASSERT_EQ(moments.count(), 1020);
    for (int i = 0; i < 32; ++i) {
      // The mean rotation of positions 1024 .. 1535, by its definition.
      double c = 0, s = 0;
      for (int p = 1024; p < 1536; ++p) {
        const double angle = p * std::pow(100000.0, -i / 32.0);
        c += std::cos(angle) / 512;
        s += std::sin(angle) / 512;
      }
      const double x = double{moments.mean()[std::size_t(i)]},
                   y = double{moments.mean()[std::size_t(i + 32)]};
      EXPECT_NEAR(x * c - y * s, double{want.data[std::size_t(q * 64 + i)]}, 1e-4);
      EXPECT_NEAR(y * c + x * s, double{want.data[std::size_t(q * 64 + i + 32)]}, 1e-4);
    }
  }
}

// ---- by its definition, in double

// Of one query head: log of the unnormalised expected attention of each key.
Eigen::VectorXd expected_logits(const Eigen::MatrixXd& queries, const Eigen::MatrixXd& keys,
                                const std::vector<double>& speed, bool interleaved, Index outliers,
                                Index next, Index future) {
  const Index dim = queries.cols(), pairs = static_cast<Index>(speed.size());
  const auto rotation = [&](double position) {
    Eigen::MatrixXd r = Eigen::MatrixXd::Identity(dim, dim);
    for (Index i = 0; i < pairs; ++i) {
      const Index a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + pairs;
      const double angle = position * speed[std::size_t(i)];
      r(a, a) = r(b, b) = std::cos(angle);
      r(a, b) = -std::sin(angle);
      r(b, a) = std::sin(angle);
    }
    return r;
  };
  Eigen::MatrixXd plain(queries.rows() - outliers, dim);
  for (Index t = outliers; t < queries.rows(); ++t)
    plain.row(t - outliers) =
        (rotation(double(t)).transpose() * queries.row(t).transpose()).transpose();
  const Eigen::RowVectorXd mean = plain.colwise().mean();
  const Eigen::MatrixXd centred = plain.rowwise() - mean;
  const Eigen::MatrixXd covariance = centred.transpose() * centred / double(plain.rows());
  Eigen::MatrixXd turn = Eigen::MatrixXd::Zero(dim, dim);
  for (Index p = next; p < next + future; ++p) turn += rotation(double(p)) / double(future);
  const Eigen::VectorXd m = turn * mean.transpose();
  const Eigen::MatrixXd s = turn * covariance * turn.transpose();
  Eigen::VectorXd out(keys.rows());
  for (Index r = 0; r < keys.rows(); ++r) {
    const Eigen::VectorXd k = keys.row(r).transpose();
    out[r] = k.dot(m) / std::sqrt(double(dim)) + k.dot(s * k) / (2 * double(dim));
  }
  return out;
}

Matrix normal(Index rows, Index columns, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0.3f, 1.f);
  Matrix m(rows, columns);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = distribution(random);
  return m;
}

TEST(ExpectedAttention, IsItsDefinitionForEveryLayoutAndPartialRotations) {
  constexpr int dim = 12, group = 2;
  constexpr Index n = 90, sinks = 3;
  for (const auto& [layout, width] : {std::pair{Rope::Layout::half_split, 0},
                                      {Rope::Layout::interleaved, 0},
                                      {Rope::Layout::half_split, 8},
                                      {Rope::Layout::interleaved, 4}}) {
    const Shape one{.query_heads = group,
                    .kv_heads = 1,
                    .head_dim = dim,
                    .dtype = DType::f32,
                    .rope = Rope{.layout = layout, .theta = 500, .width = width}};
    const ExpectedAttention policy{.future = 20, .epsilon = 0.1, .outliers = 2};
    KVCache cache(one, policy, Keep{.tokens = 40, .sinks = sinks});
    const Matrix keys = normal(n, dim, 1), values = normal(n, dim, 2),
                 queries = normal(n, group * dim, 3);
    for (const auto& [first, count] : {std::pair<Index, Index>{0, 1}, {1, 70}, {71, 19}}) {
      cache.append(0, View::packed(keys.row(first).data(), count, 1, dim),
                   View::packed(values.row(first).data(), count, 1, dim));
      cache.observe(0, View::packed(queries.row(first).data(), count, group, dim));
    }
    const int wide = width > 0 ? width : dim;
    std::vector<double> speed;
    for (int i = 0; i < wide / 2; ++i) speed.push_back(std::pow(500.0, -2.0 * i / wide));
    Eigen::VectorXd score = Eigen::VectorXd::Zero(n - sinks);
    for (int g = 0; g < group; ++g) {
      Eigen::VectorXd e = expected_logits(queries.middleCols(g * dim, dim).cast<double>(),
                                          keys.bottomRows(n - sinks).cast<double>(), speed,
                                          layout == Rope::Layout::interleaved, 2, n, 20);
      e = (e.array() - e.maxCoeff()).exp();
      score += e / e.sum() / group;
    }
    const Rotation rotation(*one.rope, dim);
    Head head;
    head.group = group;
    head.step = n;
    const std::vector<Position> at = all_positions(n);
    head.positions = at;
    head.first = sinks;
    head.last = n;
    head.rotation = &rotation;
    detail::point(head.keys, keys.data(), n, dim, dim);
    detail::point(head.values, values.data(), n, dim, dim);
    std::vector<float> got(std::size_t(n), 0.f);
    policy.score(head, cache.states<ExpectedAttention>()[0], got);
    for (Index r = sinks; r < n; ++r) {
      const double want = (score[r - sinks] + 0.1) * double{values.row(r).norm()};
      EXPECT_NEAR(double{got[std::size_t(r)]}, want, 2e-5 * want) << "row " << r;
    }
  }
}

// ---- state

TEST(ExpectedAttention, ItsStateIsCountedAndCopied) {
  const auto state_bytes = [](ExpectedAttention policy) {
    KVCache cache(shape(), policy, Keep{.tokens = 2000});
    const std::size_t before = cache.bytes();
    const Tensor k("k_l15"), v("v_l15"), q("q_l15");
    KVCache<> bare(shape());
    bare.append(0, k.view(), v.view());
    cache.append(0, k.view(), v.view());
    cache.observe(0, q.view());
    return cache.bytes() - before - (bare.bytes() - KVCache<>(shape()).bytes());
  };
  // Nine query heads: a mean, and a lower triangle.
  EXPECT_GE(state_bytes({.covariance = false}), 9u * 64 * 4);
  EXPECT_LE(state_bytes({.covariance = false}), 9u * (64 * 4 + 100));
  EXPECT_GE(state_bytes({}), 9u * (64 + 64 * 65 / 2) * 4);
  EXPECT_LE(state_bytes({}), 9u * ((64 + 64 * 65 / 2) * 4 + 100));

  KVCache cache(shape(), ExpectedAttention{}, Keep{.tokens = 100, .sinks = 4});
  feed(cache, 512);
  auto fork = cache.fork();
  fork.compress();
  cache.compress();
  EXPECT_EQ(positions(cache.positions(0, 1)), positions(fork.positions(0, 1)));
}

TEST(ExpectedAttention, ByName) {
  AnyCache named = make_cache("keep(tokens=204)+expected", shape());
  AnyCache mixed =
      make_cache("keep(tokens=204,sinks=4)+maxrank(expected(covariance=false),keydiff)", shape());
  feed(named, 512);
  feed(mixed, 512);
  named.compress();
  mixed.compress();
  EXPECT_EQ(positions(named.positions(0, 0)),
            row(kept("kvpress/kept_expected_attention_l15_r0.8.npy"), 0));
  EXPECT_EQ(mixed.size(0, 0), 204);
}

TEST(ExpectedAttention, SaysWhatIsWrong) {
  Shape bare = shape();
  bare.rope.reset();
  const Keep keep{.tokens = 100};
  const auto message = [&](const Shape& s, ExpectedAttention policy) {
    return support::message_of([&] { KVCache cache(s, policy, keep); });
  };
  EXPECT_NE(message(bare, {}).find("Shape::rope"), std::string::npos);
  EXPECT_NE(message(shape(), {.future = 0}).find("ExpectedAttention::future"), std::string::npos);
  EXPECT_NE(message(shape(), {.epsilon = -1}).find("ExpectedAttention::epsilon"),
            std::string::npos);
  EXPECT_NE(message(shape(), {.outliers = -1}).find("ExpectedAttention::outliers"),
            std::string::npos);
  KVCache unseen(shape(), ExpectedAttention{}, keep);
  const Tensor k("k_l15"), v("v_l15");
  unseen.append(0, k.view(), v.view());
  EXPECT_NE(support::message_of([&] { unseen.compress(); }).find("queries"), std::string::npos);
  EXPECT_EQ(unseen.size(0, 0), 1024);
}

// Fewer tokens than outliers: nothing is known, all rows are equal, the latest stay.
TEST(ExpectedAttention, WithoutMomentsTheLatestRowsStay) {
  KVCache cache(shape(), ExpectedAttention{.outliers = 2000}, Keep{.tokens = 10, .every = 1});
  feed(cache, 1024);
  cache.compress();
  EXPECT_EQ(positions(cache.positions(0, 2)).front(), 1014);
}

}  // namespace expected_attention_test
