// SPDX-License-Identifier: MIT
// The roles a policy can play, and what it may declare. A policy is a value with const functions;
// the cache owns all state. The concept that a type models says its role, so policies may be named
// in any order.
#pragma once

#include <concepts>
#include <memory>
#include <span>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "head.hpp"
#include "shape.hpp"
#include "side_codec.hpp"

LESSKV_BEGIN_NAMESPACE

// ---- what a policy may declare; all of it is optional

// Reach of a scorer. Chunks: a row is judged once, `size` rows at a time with `ahead` later rows in
// view, and then never again; streaming equals one-shot for any split of the input. Window: all
// rows are judged each time, except the newest `ahead`.
struct Chunks {
  Index size = 0;
  Index ahead = 0;
};
struct Window {
  Index ahead = 0;
};

// Pooling of scores over neighbouring candidates, done by the library so that equal pooled scores
// are still told apart by the un-pooled one. Zero padding at the ends, as in the published code.
enum class PoolKind { none, average, max };
struct Pooling {
  PoolKind kind = PoolKind::none;
  int width = 1;  // odd
};

struct NoState {};

namespace detail {
template <class P>
struct StateOf {
  using type = NoState;
};
template <class P>
requires requires { typename P::State; }
struct StateOf<P> {
  using type = typename P::State;
};

// Reach with its kind at run time: chunk = 0 means Window.
struct Reach {
  Index chunk = 0;
  Index ahead = 0;
};
}  // namespace detail

// One value per layer and KV head, owned by the cache: `using State = ...`.
template <class P>
using state_of = typename detail::StateOf<P>::type;

// What it needs to see: `static constexpr Need needs`, or `Need needs() const`. Says nothing: keys
// and values.
template <class P>
constexpr Need needs_of(const P& policy) {
  if constexpr (requires {
                  { policy.needs() } -> std::same_as<Need>;
                })
    return policy.needs();
  else if constexpr (requires {
                       { P::needs } -> std::convertible_to<Need>;
                     })
    return P::needs;
  else
    return Need::keys | Need::values;
}

// What observe() needs to see, if that is less than score() or measure() needs: `Need
// observe_needs() const`.
template <class P>
constexpr Need observe_needs_of(const P& policy) {
  if constexpr (requires {
                  { policy.observe_needs() } -> std::same_as<Need>;
                })
    return policy.observe_needs();
  else
    return needs_of(policy);
}

// Floats per row that follow the row: `static constexpr int columns`, or `int columns() const`.
template <class P>
constexpr int columns_of(const P& policy) {
  if constexpr (requires {
                  { policy.columns() } -> std::same_as<int>;
                })
    return policy.columns();
  else if constexpr (requires {
                       { P::columns } -> std::convertible_to<int>;
                     })
    return P::columns;
  else
    return 0;
}

// How many of the newest queries score() wants attention of: `Index window_size() const`. 0: none.
template <class P>
Index window_of(const P& policy) {
  if constexpr (requires {
                  { policy.window_size() } -> std::same_as<Index>;
                })
    return policy.window_size();
  else
    return 0;
}

template <class P>
Pooling pooling_of(const P& policy) {
  if constexpr (requires {
                  { policy.pooling() } -> std::same_as<Pooling>;
                })
    return policy.pooling();
  else
    return {};
}

// A scorer whose published form keeps one set for several heads: `Shared shared() const`.
template <class P>
Shared shared_of(const P& policy) {
  if constexpr (requires {
                  { policy.shared() } -> std::same_as<Shared>;
                })
    return policy.shared();
  else
    return Shared::head;
}

// Layers that stay whole: `bool skips(int layer) const`.
template <class P>
bool skips_layer(const P& policy, int layer) {
  if constexpr (requires {
                  { policy.skips(layer) } -> std::same_as<bool>;
                })
    return policy.skips(layer);
  else
    return false;
}

// Parameters that cannot be: `void check() const` calls fail(). Shape-dependent ones: `void
// check(const Shape&) const`.
template <class P>
void check_policy(const P& policy, const Shape& shape) {
  if constexpr (requires { policy.check(shape); })
    policy.check(shape);
  else if constexpr (requires { policy.check(); })
    policy.check();
}

template <class P>
detail::Reach reach_of(const P& policy) {
  if constexpr (requires {
                  { policy.reach() } -> std::same_as<Chunks>;
                }) {
    const Chunks chunks = policy.reach();
    return {chunks.size, chunks.ahead};
  } else if constexpr (requires {
                         { policy.reach() } -> std::same_as<Window>;
                       }) {
    return {0, policy.reach().ahead};
  } else if constexpr (requires {
                         { policy.reach() } -> std::same_as<detail::Reach>;
                       }) {
    return policy.reach();
  } else {
    return {};
  }
}

// ---- the roles

// Which rows stay? A number per row; the library keeps the largest. Writes out[r] for r in
// [head.first, head.last).
template <class P>
concept Scorer = requires(const P p, const Head& head, std::span<float> out) {
  { p.score(head, out) } -> std::same_as<void>;
}
|| requires(const P p, const Head& head, const state_of<P>& state, std::span<float> out) {
  { p.score(head, state, out) } -> std::same_as<void>;
};

namespace detail {
template <class P>
void call_score(const P& part, const Head& head, const state_of<P>& state, std::span<float> out) {
  if constexpr (requires { part.score(head, out); })
    part.score(head, out);
  else
    part.score(head, state, out);
}
}  // namespace detail

// Where does the budget go? share() runs once and rewrites the real-valued quota of every head
// [layer * kv_heads + head]: how many of its candidates may stay, pins apart. Several Budgeters run
// one after the other, those with `static constexpr bool all_layers` first. The library rounds to
// the exact total. A share() that takes a span of states that are not const may turn what was
// measured into what has to stay.
template <class P>
concept Budgeter = requires(const P p, const Shape& shape, std::span<state_of<P>> measured,
                            std::span<double> quota) {
  { p.share(shape, measured, quota) } -> std::same_as<void>;
};

// Optional for a Budgeter: measure one head, on any thread, before share(). What needs attention,
// queries, keys or values is measured at the first compress() that can drop rows, and stays in the
// state until remeasure(). What needs scores, or nothing, is measured anew each time.
template <class P>
concept Measurer = requires(const P p, const Head& head, state_of<P>& state) {
  p.measure(head, state);
};

// Whether a Measurer really wants to be called: `bool measures() const` for a type that only knows
// at run time.
template <class P>
bool measures(const P& policy) {
  if constexpr (!Measurer<P>)
    return false;
  else if constexpr (requires {
                       { policy.measures() } -> std::same_as<bool>;
                     })
    return policy.measures();
  else
    return true;
}

namespace detail {
inline constexpr Need lasting = Need::keys | Need::values | Need::queries | Need::attention;

// Measured anew each time.
template <class P>
bool measures_again(const P& policy) {
  if (!measures(policy)) return false;
  if constexpr (requires {
                  { policy.measures_again() } -> std::same_as<bool>;
                })
    return policy.measures_again();
  else
    return asks(needs_of(policy), Need::scores) || !asks(needs_of(policy), lasting);
}

// Measures once, for good.
template <class P>
bool measures_once(const P& policy) {
  if (!measures(policy)) return false;
  if constexpr (requires {
                  { policy.measures_once() } -> std::same_as<bool>;
                })
    return policy.measures_once();
  else
    return !measures_again(policy);
}

// What measure() needs to see when it is called anew each time (`again`), or for what stays.
template <class P>
Need measure_needs_of(const P& policy, bool again) {
  if (!(again ? measures_again(policy) : measures_once(policy))) return Need::nothing;
  if constexpr (requires {
                  { policy.measure_needs(again) } -> std::same_as<Need>;
                })
    return policy.measure_needs(again);
  else
    return needs_of(policy);
}

// share() changes what was measured.
template <class P>
inline constexpr bool changes_states = !requires(
    const P p, const Shape& shape, std::span<const state_of<P>> measured, std::span<double> quota) {
  p.share(shape, measured, quota);
};

// The state of a head before anything was observed or measured.
template <class P>
state_of<P> make_state(const P& policy) {
  if constexpr (requires {
                  { policy.make_state() } -> std::same_as<state_of<P>>;
                })
    return policy.make_state();
  else
    return {};
}

// Memory that a state owns beside itself: `std::size_t bytes() const` of the state, or a vector of
// numbers.
template <class S>
std::size_t state_bytes(const S& state) {
  if constexpr (requires {
                  { state.bytes() } -> std::same_as<std::size_t>;
                })
    return state.bytes();
  else if constexpr (requires {
                       state.capacity();
                       sizeof(*state.data());
                     })
    return state.capacity() * sizeof(*state.data());
  else
    return 0;
}
}  // namespace detail

// Optional for a Budgeter: `static constexpr bool cascades = true` says that it can tell, from the
// layers that have come, how many rows a head of theirs can get at most: compress(layer) then trims
// them while a prefill goes on layer by layer. most() writes out[i] for the heads of layers
// [0, seen). cap: candidates of every head; of layers to come as they are expected. rows: the rows
// of a head. total: what all heads get together.
template <class P>
concept Cascading = Budgeter<P> &&
    requires(const P p, const Shape& shape, int seen, std::span<const state_of<P>> measured,
             std::span<const Index> cap, Index rows, double total, std::span<double> out) {
  requires P::cascades;
  { p.most(shape, seen, measured, cap, rows, total, out) } -> std::same_as<void>;
};

// Optional for any policy: sees every block of new queries (with Need::queries) or their attention
// (Need::attention); with Need::probes, and Head::probes set, the attention of probes.
template <class P>
concept Observer = requires(const P p, const Head& head, state_of<P>& state) {
  p.observe(head, state);
};

// Whether an Observer really wants to be called: `bool observes() const` for a type that only knows
// at run time.
template <class P>
bool observes(const P& policy) {
  if constexpr (!Observer<P>)
    return false;
  else if constexpr (requires {
                       { policy.observes() } -> std::same_as<bool>;
                     })
    return policy.observes();
  else
    return true;
}

// How many bits does each head get? A Codec that looks at every head before the first row of a
// sequence is encoded: measure() is shown keys and values of the rows that are about to be, on any
// thread; then allot() runs once for all heads. Until then its codec(side, dim) says what rows cost.
struct SideBits {
  int keys = 0, values = 0;
};
template <class P>
concept BitBudgeter = Codec<P> &&
    requires(const P p, const Shape& shape, const Head& head, state_of<P>& state,
             std::span<const state_of<P>> measured, std::span<const Index> rows,
             std::span<SideBits> bits, Side side, int dim, int count) {
  p.measure(head, state);
  p.allot(shape, measured, rows, bits);
  { p.codec(side, dim, count) } -> std::convertible_to<std::shared_ptr<const SideCodec>>;
};

// What becomes of the rows that leave? A Merger puts them into clusters: merge() writes, for every row
// shown (keys, values and positions of those that leave, oldest first), the number of its cluster in
// [0, count). The library keeps the weighted mean of keys and values of each in the place of a row, and
// adds the log of the number of its rows to its attention logits. weight: what each row counts in the
// mean. `share`: the part of the budget that goes to such rows.
template <class P>
concept Merger = requires(const P p, const Head& leaving, std::span<const float> weight,
                          Index count, std::span<std::int32_t> cluster) {
  { p.merge(leaving, weight, count, cluster) } -> std::same_as<void>;
  { p.share } -> std::convertible_to<double>;
};

// Whether rows weigh as much as their scores, if no score is negative (those that get more attention
// then count for more): `bool weighs_scores() const` of a Merger. Otherwise all weigh the same.
template <class P>
bool weighs_scores(const P& policy) {
  if constexpr (requires {
                  { policy.weighs_scores() } -> std::same_as<bool>;
                })
    return policy.weighs_scores();
  else
    return false;
}

// ---- the checks: one sentence each
namespace detail {
template <class P>
inline constexpr bool is_keep = std::same_as<P, Keep>;

template <class P>
struct CheckPolicy {
  static constexpr bool ok = is_keep<P> || Scorer<P> || Budgeter<P> || Codec<P> || Merger<P>;
  static constexpr bool tries_score = requires { &P::score; };
  static constexpr bool tries_share = requires { &P::share; };
  static_assert(ok || !tries_score,
                "lesskv: this type has `score`, but a Scorer needs: void score(const "
                "lesskv::Head&, std::span<float> "
                "out) const");
  static_assert(
      ok || !tries_share,
      "lesskv: this type has `share`, but a Budgeter needs: void share(const lesskv::Shape&, "
      "std::span<const State> measured, std::span<double> quota) const");
  static_assert(
      ok || tries_score || tries_share,
      "lesskv: this type plays no role: a policy is Keep, a Scorer, a Budgeter, a Merger or a "
      "Codec");
};

template <class... Ps>
struct CheckPolicies {
  static constexpr bool known = (CheckPolicy<Ps>::ok && ...);
  static constexpr int scorers = (0 + ... + int{Scorer<Ps>});
  static constexpr int keeps = (0 + ... + int{is_keep<Ps>});
  static constexpr int budgeters = (0 + ... + int{Budgeter<Ps>});
  static constexpr int codecs = (0 + ... + int{Codec<Ps>});
  static constexpr int bit_budgeters = (0 + ... + int{BitBudgeter<Ps>});
  static constexpr int mergers = (0 + ... + int{Merger<Ps>});
  static_assert(!known || bit_budgeters == 0 || codecs == 1,
                "lesskv: Bits says how many bits all rows get and codes them itself; name no other "
                "codec");
  static_assert(!known || mergers <= 1,
                "lesskv: two policies say what becomes of rows that leave; name one Merger");
  static_assert(!known || scorers > 0 || mergers == 0,
                "lesskv: a Merger folds rows that leave, but nothing says which rows stay; add a "
                "Scorer, for example LagKV{}");
  static_assert(!known || scorers <= 1,
                "lesskv: two policies say which rows stay; name one Scorer");
  static_assert(!known || keeps <= 1, "lesskv: two Keep values; say once how much to keep");
  static_assert(!known || scorers > 0 || budgeters == 0,
                "lesskv: a Budgeter says where the budget goes, but nothing says which rows stay; "
                "add a Scorer, for "
                "example LagKV{}");
  static_assert(!known || scorers != 1 || keeps > 0,
                "lesskv: a Scorer says which rows stay, but nothing says how much; add "
                "Keep{.fraction = ...} or "
                "Keep{.tokens = ...}");
  static_assert(!known || scorers > 0 || keeps == 0 || budgeters > 0 || codecs > 0,
                "lesskv: Keep says how much stays, but nothing says which; add a Scorer, for "
                "example LagKV{}");
  static constexpr bool ok = known;
};

// compress(layer) is allowed.
template <class... Ps>
struct CheckCascade {
  static constexpr int scorers = (0 + ... + int{Scorer<Ps>});
  static constexpr int budgeters = (0 + ... + int{Budgeter<Ps>});
  static constexpr int cascading = (0 + ... + int{Cascading<Ps>});
  static constexpr bool merges = (false || ... || Merger<Ps>);
  static constexpr bool ok = scorers == 0 || (budgeters <= 1 && budgeters == cascading && !merges);
  static_assert(!merges,
                "lesskv: compress(layer) trims layers before the last one is known; a Merger needs "
                "all rows that leave at once");
  static_assert(ok || merges,
                "lesskv: compress(layer) trims layers before the last one is known; only a budget "
                "that shrinks as layers arrive allows it: ZigZagKV alone, or no Budgeter");
};
}  // namespace detail

LESSKV_END_NAMESPACE
