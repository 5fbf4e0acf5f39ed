// SPDX-License-Identifier: MIT
// MaxRank, MeanRank: which rows stay, by the ranks that several scorers give them.
//
// Paper:    none; compositions of published scores measured by this project. A maximum keeps what
//           any of the scorers wants (a row that is paid much attention, or whose key is unlike all
//           others), a mean what most of them want.
// Formula:  rank = share of the candidates of the head whose score is not larger, in (0, 1]: scores
//           of any scale and sign combine. MaxRank: the largest of rank + offset. MeanRank: the mean
//           of the ranks by weight.
// Needs:    what the parts need.
// Cost:     the parts, and a sort of each part's scores.
// Defaults: offsets 0, weights 1. An offset of -.04 makes a scorer a second choice.
// Differs:  ranks are per head, or per chunk when a part judges chunk by chunk (LagKV): then all are
//           asked for one chunk at a time, once. Equal scores have equal ranks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "../core/concepts.hpp"
#include "part.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// Scorers made of scorers: what they declare is what their parts declare, joined.
template <class... Ps>
struct Parts {
  static_assert((Scorer<Ps> && ...),
                "lesskv: MaxRank, MeanRank, ValueWeighted and AgeWeighted are made of Scorers, for "
                "example MaxRank<H2O, KeyDiff>");
  static_assert(sizeof...(Ps) > 0, "lesskv: a combination of scorers names at least one");
  std::tuple<Ps...> parts = {};

  struct State {
    std::tuple<state_of<Ps>...> of;
    std::size_t bytes() const {
      return std::apply(
          [](const auto&... one) { return (std::size_t{0} + ... + state_bytes(one)); }, of);
    }
  };
  State make_state() const {
    return std::apply([](const auto&... part) { return State{{detail::make_state(part)...}}; },
                      parts);
  }
  constexpr Need needs() const {
    return std::apply([](const auto&... part) { return (Need::nothing | ... | needs_of(part)); },
                      parts);
  }
  Need observe_needs() const {
    return std::apply(
        [](const auto&... part) {
          return (Need::nothing | ... |
                  (lesskv::observes(part) ? observe_needs_of(part) : Need::nothing));
        },
        parts);
  }
  int columns() const {
    return std::apply([](const auto&... part) { return (0 + ... + columns_of(part)); }, parts);
  }
  Index window_size() const {
    return std::apply(
        [](const auto&... part) {
          return std::max({Index{0}, window_of(part)...});
        },
        parts);
  }
  Shared shared() const {
    return std::apply([](const auto&... part) { return std::max({shared_of(part)...}); }, parts);
  }
  bool skips(int layer) const {
    return std::apply([&](const auto&... part) { return (skips_layer(part, layer) || ...); },
                      parts);
  }
  bool observes() const {
    return std::apply([](const auto&... part) { return (lesskv::observes(part) || ...); }, parts);
  }
  // Judged chunk by chunk if any part is.
  Reach reach() const {
    Reach out;
    each([&](auto, const auto& part, int) {
      const Reach one = reach_of(part);
      out.chunk = std::max(out.chunk, one.chunk);
      out.ahead = std::max(out.ahead, one.ahead);
    });
    return out;
  }
  void check_parts(const Shape& shape) const {
    Index chunk = 0;
    each([&](auto, const auto& part, int) {
      check_policy(part, shape);
      const Index own = reach_of(part).chunk;
      if (own > 0 && chunk > 0 && own != chunk)
        fail("reach: scorers that judge chunks of ", chunk, " and of ", own,
             " rows do not combine; give them one length");
      if (own > 0) chunk = own;
    });
  }
  void observe(const Head& head, State& state) const {
    each([&](auto index, const auto& part, int column) {
      using P = std::decay_t<decltype(part)>;
      if constexpr (Observer<P>)
        if (lesskv::observes(part) &&
            asks(observe_needs_of(part),
                 head.probes ? Need::probes : Need::attention | Need::queries))
          part.observe(head_of_part(part, head, column),
                       std::get<decltype(index)::value>(state.of));
    });
  }
  // Scores of part number `index`.
  template <std::size_t I>
  void score_one(const Head& head, int column, const State& state, std::span<float> out) const {
    score_part(std::get<I>(parts), head, column, std::get<I>(state.of), out);
  }
  // f(integral_constant<index>, part, its first column) for every part.
  template <class F>
  void each(F&& f) const {
    int column = 0;
    const auto one = [&](auto index, const auto& part) {
      f(index, part, column);
      column += columns_of(part);
    };
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (one(std::integral_constant<std::size_t, I>{}, std::get<I>(parts)), ...);
    }
    (std::index_sequence_for<Ps...>{});
  }
};

// rank[i] = share of the scores that are not larger than score[i], in (0, 1]. NaN is below all.
inline void rank_scores(std::span<const float> score, std::span<float> rank) {
  std::vector<std::uint32_t> sorted(score.size());
  for (std::size_t i = 0; i < score.size(); ++i) sorted[i] = order_key(score[i]);
  std::sort(sorted.begin(), sorted.end());
  const float unit = 1.f / static_cast<float>(std::max<std::size_t>(1, score.size()));
  for (std::size_t i = 0; i < score.size(); ++i)
    rank[i] = unit * static_cast<float>(
                         std::upper_bound(sorted.begin(), sorted.end(), order_key(score[i])) -
                         sorted.begin());
}

template <class... Ps>
struct RankParts : Parts<Ps...> {
  using State = typename Parts<Ps...>::State;

  // f(part number, ranks of the candidates) for every part.
  template <class F>
  void each_rank(const Head& head, const State& state, F&& f) const {
    const std::size_t n = uz(head.last - head.first);
    std::vector<float> score(head.positions.size()), rank(n);
    this->each([&](auto index, const auto&, int column) {
      constexpr std::size_t I = decltype(index)::value;
      std::fill(score.begin(), score.end(), 0.f);
      this->template score_one<I>(head, column, state, score);
      rank_scores(std::span<const float>(score).subspan(uz(head.first), n), rank);
      f(I, std::span<const float>(rank));
    });
  }
  static void check_numbers(const char* name, const std::vector<double>& numbers) {
    if (!numbers.empty() && numbers.size() != sizeof...(Ps))
      fail(name, ": ", numbers.size(), " numbers for ", sizeof...(Ps), " scorers");
    for (const double x : numbers)
      if (!std::isfinite(x)) fail(name, ": a number is not finite");
  }
};

}  // namespace detail

// MaxRank{H2O{.age_normalised = true}, KeyDiff{}}; with offsets, MaxRank<H2O, KeyDiff>{a, b, {0,
// -.04}}
template <class... Ps>
struct MaxRank : detail::RankParts<Ps...> {
  using State = typename detail::RankParts<Ps...>::State;
  std::vector<double> offsets = {};  // one per scorer, added to its ranks

  MaxRank() = default;
  explicit MaxRank(Ps... ps, std::vector<double> o = {})
      : detail::RankParts<Ps...>{{{std::move(ps)...}}}, offsets(std::move(o)) {}

  static constexpr std::string_view name = "maxrank";
  static constexpr std::string_view summary =
      "rows that any of several scorers ranks high: maxrank(h2o, keydiff)";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("offsets", self.offsets, "one per scorer, added to its ranks");
  }

  void check(const Shape& shape) const {
    this->check_parts(shape);
    this->check_numbers("MaxRank::offsets", offsets);
  }
  void score(const Head& head, const State& state, std::span<float> out) const {
    bool begun = false;
    this->each_rank(head, state, [&](std::size_t part, std::span<const float> rank) {
      const float offset = offsets.empty() ? 0.f : static_cast<float>(offsets[part]);
      for (std::size_t i = 0; i < rank.size(); ++i) {
        float& to = out[static_cast<std::size_t>(head.first) + i];
        to = begun ? std::max(to, rank[i] + offset) : rank[i] + offset;
      }
      begun = true;
    });
  }
};

template <class... Ps>
requires(Scorer<Ps>&&...) MaxRank(Ps...)
->MaxRank<Ps...>;

template <class... Ps>
struct MeanRank : detail::RankParts<Ps...> {
  using State = typename detail::RankParts<Ps...>::State;
  std::vector<double> weights = {};  // one per scorer

  MeanRank() = default;
  explicit MeanRank(Ps... ps, std::vector<double> w = {})
      : detail::RankParts<Ps...>{{{std::move(ps)...}}}, weights(std::move(w)) {}

  static constexpr std::string_view name = "meanrank";
  static constexpr std::string_view summary =
      "rows that several scorers rank high on average: meanrank(snapkv, keydiff)";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("weights", self.weights, "one per scorer");
  }

  void check(const Shape& shape) const {
    this->check_parts(shape);
    this->check_numbers("MeanRank::weights", weights);
    double sum = 0;
    for (const double w : weights) {
      if (w < 0) fail("MeanRank::weights: a weight is negative");
      sum += w;
    }
    if (!weights.empty() && !(sum > 0)) fail("MeanRank::weights: all of them are zero");
  }
  void score(const Head& head, const State& state, std::span<float> out) const {
    double sum = weights.empty() ? double(sizeof...(Ps)) : 0;
    for (const double w : weights) sum += w;
    const auto first = out.begin() + head.first, last = out.begin() + head.last;
    std::fill(first, last, 0.f);
    this->each_rank(head, state, [&](std::size_t part, std::span<const float> rank) {
      const auto weight = static_cast<float>((weights.empty() ? 1.0 : weights[part]) / sum);
      for (std::size_t i = 0; i < rank.size(); ++i)
        out[static_cast<std::size_t>(head.first) + i] += weight * rank[i];
    });
  }
};

template <class... Ps>
requires(Scorer<Ps>&&...) MeanRank(Ps...)
->MeanRank<Ps...>;

LESSKV_END_NAMESPACE
