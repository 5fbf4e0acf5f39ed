// SPDX-License-Identifier: MIT
// Scorers made of scorers, as types and by name, against their definition.
#include <gtest/gtest.h>

#include <lesskv/any.hpp>

#include "reference.hpp"

namespace rank_test {

using namespace reference;

Shape two_layers() {
  Shape s = shape();
  s.layers = 2;
  return s;
}

// 384 real rows a layer, with all queries.
template <class Cache>
void feed(Cache& cache, Index first = 0, Index count = 384) {
  for (int l = 0; l < 2; ++l) {
    cache.append(l, Tensor("k_l15").view(first + 64 * l, count),
                 Tensor(l == 0 ? "v_l15" : "v_l29").view(first + 64 * l, count));
    cache.observe(l, Tensor("q_l15").view(first + 64 * l, count));
  }
  cache.compress();
}

template <class Cache>
std::vector<std::vector<std::int32_t>> sets(const Cache& cache) {
  std::vector<std::vector<std::int32_t>> out;
  for (int i = 0; i < 6; ++i) out.push_back(positions(cache.positions(i / 3, i % 3)));
  return out;
}
template <class... Ps>
auto kept_by(Ps... policies) {
  KVCache cache(two_layers(), policies...);
  feed(cache);
  return sets(cache);
}
auto kept_by_text(const std::string& text) {
  auto cache = make_cache(text, two_layers());
  feed(cache);
  return sets(cache);
}

// Records the scores that the library asks a scorer for.
template <class P>
struct Recorder {
  P policy;
  std::vector<std::vector<float>>* out;
  using State = state_of<P>;
  Need needs() const { return needs_of(policy); }
  Need observe_needs() const { return observe_needs_of(policy); }
  int columns() const { return columns_of(policy); }
  Index window_size() const { return window_of(policy); }
  bool observes() const { return lesskv::observes(policy); }
  State make_state() const { return detail::make_state(policy); }
  void observe(const Head& head, State& state) const {
    if constexpr (Observer<P>) policy.observe(head, state);
  }
  void score(const Head& head, const State& state, std::span<float> to) const {
    detail::score_part(policy, head, 0, state, to);
    out->at(std::size_t(head.layer * 3 + head.head))
        .assign(to.begin() + head.first, to.begin() + head.last);
  }
};
template <class P>
std::vector<std::vector<float>> scores_of(P policy) {
  std::vector<std::vector<float>> out(6);
  KVCache cache(two_layers(), Keep{.fraction = .25, .sinks = 4, .recent = 64},
                Recorder<P>{policy, &out});
  feed(cache);
  return out;
}
std::vector<double> ranks(const std::vector<float>& score) {
  std::vector<double> out;
  for (const float x : score) {
    int not_larger = 0;
    for (const float y : score) not_larger += y <= x;
    out.push_back(double(not_larger) / double(score.size()));
  }
  return out;
}

// Rows by definition: scores recorded from the parts alone, combined, sorted.
template <class Combine>
std::vector<std::vector<std::int32_t>> kept_by_definition(const std::vector<std::vector<float>>& a,
                                                          const std::vector<std::vector<float>>& b,
                                                          Combine combine) {
  std::vector<std::vector<std::int32_t>> out;
  for (std::size_t i = 0; i < 6; ++i) {
    const auto ra = ranks(a[i]), rb = ranks(b[i]);
    std::vector<std::pair<float, std::int32_t>> order;
    for (std::size_t r = 0; r < ra.size(); ++r)
      order.emplace_back(-static_cast<float>(combine(ra[r], rb[r])),
                         -static_cast<std::int32_t>(r) - 4);
    std::sort(order.begin(), order.end());
    std::vector<std::int32_t> rows{0, 1, 2, 3};
    for (std::size_t k = 0; k < std::size_t(.25 * 316); ++k) rows.push_back(-order[k].second);
    for (int r = 320; r < 384; ++r) rows.push_back(r);
    std::sort(rows.begin(), rows.end());
    out.push_back(rows);
  }
  return out;
}

const Keep keep{.fraction = .25, .sinks = 4, .recent = 64};

TEST(Ranks, EqualTheirDefinitionAndTheirText) {
  const auto h2o = scores_of(H2O{.age_normalised = true}), keydiff = scores_of(KeyDiff{});
  const auto best = kept_by_definition(h2o, keydiff, [](double a, double b) {
    return std::max(static_cast<float>(a), static_cast<float>(b));
  });
  EXPECT_EQ(kept_by(keep, MaxRank{H2O{.age_normalised = true}, KeyDiff{}}), best);
  EXPECT_EQ(kept_by_text(
                "keep(fraction=0.25,sinks=4,recent=64)+maxrank(h2o(age_normalised=true), keydiff)"),
            best);
  const auto second = kept_by_definition(h2o, keydiff, [](double a, double b) {
    return std::max(static_cast<float>(a), static_cast<float>(b) - .3f);
  });
  EXPECT_NE(second, best);
  EXPECT_EQ(kept_by(keep, MaxRank<H2O, KeyDiff>{H2O{true}, KeyDiff{}, {0, -.3}}), second);
  EXPECT_EQ(kept_by_text("keep(fraction=0.25,sinks=4,recent=64)+"
                         "maxrank(ageweighted(h2o),keydiff,offsets=0:-0.3)"),
            second);
  // One scorer alone is itself; so is a mean with all weight on one.
  EXPECT_EQ(kept_by(keep, MaxRank<KeyDiff>{KeyDiff{}}), kept_by(keep, KeyDiff{}));
  EXPECT_EQ(kept_by(keep, MeanRank<H2O, KeyDiff>{H2O{}, KeyDiff{}, {0, 2}}),
            kept_by(keep, KeyDiff{}));
  EXPECT_EQ(
      kept_by(keep, MeanRank{H2O{true}, KeyDiff{}}),
      kept_by_text(
          "keep(fraction=0.25,sinks=4,recent=64)+meanrank(h2o(age_normalised=true),keydiff)"));
}

TEST(Ranks, PoolingAndWindowsOfThePartsAreTheirOwn) {
  // Every order of parts gives the same rows; windows and columns do not get mixed up.
  const auto want = kept_by(keep, MaxRank{SnapKV{.window = 32}, H2O{}, KeyDiff{}});
  EXPECT_EQ(kept_by(keep, MaxRank{KeyDiff{}, H2O{}, SnapKV{.window = 32}}), want);
  EXPECT_EQ(
      kept_by_text(
          "keep(fraction=0.25,sinks=4,recent=64)+maxrank(h2o,maxrank(keydiff,snapkv(window=32)))")
          .size(),
      want.size());
  // The narrow window sees its own queries only.
  EXPECT_EQ(
      kept_by(keep, MeanRank<SnapKV, SnapKV>{SnapKV{.window = 64}, SnapKV{.window = 16}, {0, 1}}),
      kept_by(keep, SnapKV{.window = 16}));
  // Two sums of attention, one by age: two columns.
  EXPECT_EQ(kept_by(keep, MeanRank<H2O, H2O>{H2O{}, H2O{true}, {0, 1}}), kept_by(keep, H2O{true}));
}

TEST(Ranks, ChunksAreJudgedOnceAndStreamingEqualsOneShot) {
  const Keep part{.fraction = .25, .sinks = 4};
  const MaxRank both{LagKV{.lag = 32}, KeyNorm{}};
  KVCache once(two_layers(), part, both);
  feed(once);
  EXPECT_EQ(once.size(0, 0), 4 + 10 * 8 + (384 - 4 - 320));
  KVCache parts(two_layers(), part, both);
  for (const auto& [first, n] : {std::pair<Index, Index>{0, 100}, {100, 1}, {101, 250}, {351, 33}})
    feed(parts, first, n);
  EXPECT_EQ(sets(parts), sets(once));
  EXPECT_EQ(kept_by(part, MaxRank<LagKV>{LagKV{.lag = 32}}), kept_by(part, LagKV{.lag = 32}));
  EXPECT_EQ(kept_by_text("keep(fraction=0.25,sinks=4)+maxrank(lagkv(lag=32),keynorm)"), sets(once));
  // The published pins of the parts.
  EXPECT_EQ(parse_spec("keep(fraction=0.25)+maxrank(lagkv,streamingllm)").keep.sinks, 16);
}

TEST(Weighted, ByValueAndByAge) {
  EXPECT_EQ(kept_by(keep, AgeWeighted<H2O>{H2O{}}), kept_by(keep, H2O{true}));
  EXPECT_EQ(kept_by(keep, AgeWeighted<H2O>{H2O{}, 0}), kept_by(keep, H2O{}));
  const auto h2o = scores_of(H2O{});
  const auto weighted = scores_of(ValueWeighted<H2O>{H2O{}, 2, .5});
  KVCache exact(two_layers());
  for (int l = 0; l < 2; ++l)
    exact.append(l, Tensor("k_l15").view(64 * l, 384),
                 Tensor(l == 0 ? "v_l15" : "v_l29").view(64 * l, 384));
  for (int i = 0; i < 6; ++i) {
    const Matrix v = exact.values(i / 3, i % 3);
    for (std::size_t r = 0; r < h2o[std::size_t(i)].size(); r += 17) {
      const double want =
          (double{h2o[std::size_t(i)][r]} + .5) * double(v.row(Index(r) + 4).norm());
      EXPECT_NEAR(double{weighted[std::size_t(i)][r]}, want, 1e-4 * want);
    }
  }
  EXPECT_EQ(
      kept_by_text("keep(fraction=0.25,sinks=4,recent=64)+valueweighted(h2o,norm=2,epsilon=0.5)"),
      kept_by(keep, ValueWeighted<H2O>{H2O{}, 2, .5}));
}

TEST(Ranks, AStateOfAPartFollowsAForkAndCountsInBytes) {
  KVCache cache(two_layers(), keep, MaxRank{H2O{}, KeyDiff{}});
  feed(cache);
  auto fork = cache.fork();
  feed(cache, 384, 100);
  feed(fork, 384, 100);
  EXPECT_EQ(sets(fork), sets(cache));
}

// ---- text

std::string message(const std::string& text) {
  try {
    parse_spec(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Text, NamesScorersInsideOthers) {
  const auto expect = [](const std::string& text, const std::string& words) {
    EXPECT_NE(message(text).find(words), std::string::npos) << text << ": " << message(text);
  };
  EXPECT_EQ(message("maxrank(h2o(age_normalised=true),maxrank(keydiff,lagkv(lag=64)))+zigzag"),
            "no error");
  EXPECT_EQ(message("h2o+globalcut(by=maxrank(keydiff,keynorm),alpha=0.1)+zigzag(count=beyond)"),
            "no error");
  expect("maxrank(h2o)", "maxrank is made of at least 2 and at most 4 scorers, not 1");
  expect("valueweighted", "valueweighted is made of 1 scorer, not 0");
  expect("maxrank(h2o,kediff)", "unknown scorer in maxrank 'kediff'; did you mean 'keydiff'?");
  expect("maxrank(h2o,zigzag)", "unknown scorer in maxrank 'zigzag'");
  expect("maxrank(h2o,keydiff,offset=1)", "did you mean 'offsets'?");
  expect("maxrank(h2o,keydiff", "')' is missing");
  expect("maxrank(h2o(age_normalised=true,keydiff)", "')' is missing");
  expect("lagkv(128)", "'=' is missing after '128'");
  expect("keep(128)+lagkv", "'=' is missing after '128'");
  expect("h2o+globalcut(by=zigzag)", "unknown scorer in globalcut 'zigzag'");
  expect("h2o+zigzag(count=all)", "zigzag(count): 'all' is none of mean, per_query, last, beyond");
  expect("h2o+maxrank(h2o,keydiff)", "two policies say which rows stay");
  expect("maxrnk(h2o,keydiff)", "did you mean 'maxrank'?");
  const PolicySpec spec =
      parse_spec("keep(fraction=0.5)+maxrank( h2o, keydiff )+globalcut(by=keydiff)");
  EXPECT_EQ(spec.to_string(), "keep(fraction=0.5)+maxrank(h2o,keydiff)+globalcut(by=keydiff)");
  EXPECT_EQ(spec.methods_named, 4);
  EXPECT_EQ(parse_spec("snapkv").methods_named, 1);
  std::string names;
  for (const MethodInfo& one : list_methods()) names += one.name + " ";
  for (const char* name : {"zigzag ", "pyramid ", "adakv ", "globalcut ", "maxrank ", "meanrank ",
                           "valueweighted ", "ageweighted "})
    EXPECT_NE(names.find(name), std::string::npos) << name;
}

TEST(Ranks, BadParametersAreNamed) {
  const auto text = [](auto policy) -> std::string {
    try {
      KVCache cache(two_layers(), Keep{.fraction = .5}, policy);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  const auto expect = [](const std::string& got, const char* words) {
    EXPECT_NE(got.find(words), std::string::npos) << got;
  };
  expect(text(MaxRank<H2O, KeyDiff>{H2O{}, KeyDiff{}, {1}}), "MaxRank::offsets: 1 numbers for 2");
  expect(text(MaxRank<H2O, KeyDiff>{H2O{}, KeyDiff{}, {1, NAN}}), "MaxRank::offsets");
  expect(text(MeanRank<H2O, KeyDiff>{H2O{}, KeyDiff{}, {0, 0}}), "MeanRank::weights");
  expect(text(MeanRank<H2O, KeyDiff>{H2O{}, KeyDiff{}, {-1, 2}}), "MeanRank::weights");
  expect(text(MaxRank{LagKV{.lag = 32}, LagKV{.lag = 64}}), "reach: scorers that judge chunks");
  expect(text(MaxRank{SnapKV{.pool = 2}, KeyDiff{}}), "SnapKV::pool");
  expect(text(ValueWeighted<H2O>{H2O{}, 3}), "ValueWeighted::norm");
  expect(text(ValueWeighted<H2O>{H2O{}, 1, -1}), "ValueWeighted::epsilon");
  expect(text(AgeWeighted<H2O>{H2O{}, double(INFINITY)}), "AgeWeighted::power");
}

}  // namespace rank_test
