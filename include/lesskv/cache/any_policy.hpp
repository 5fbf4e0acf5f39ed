// SPDX-License-Identifier: MIT
// AnyPolicy: a policy of any type, seen through one set of virtual functions. The cache and the
// planner hold their policies like this, so they are plain classes that are compiled once, whatever
// policies are named. A virtual call is made per head and pass, never per token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/concepts.hpp"
#include "../core/tiles.hpp"

LESSKV_BEGIN_NAMESPACE

// States of one policy, all of one type that only the policy knows; copied with their holder.
class AnyStates {
 public:
  AnyStates() = default;
  template <class S>
  static AnyStates of(std::vector<S> states) {
    AnyStates out;
    out.face_ = std::make_unique<Model<S>>(std::move(states));
    return out;
  }
  AnyStates(const AnyStates& other) : face_(other.face_ ? other.face_->clone() : nullptr) {}
  AnyStates(AnyStates&&) noexcept = default;
  AnyStates& operator=(AnyStates other) noexcept {
    face_ = std::move(other.face_);
    return *this;
  }

  bool empty() const { return !face_; }
  void clear() { face_.reset(); }
  void* at(Index i) const { return face_->at(i); }
  template <class S>
  std::vector<S>& all() const {
    return static_cast<Model<S>&>(*face_).states;
  }
  std::size_t bytes() const { return face_ ? face_->bytes() : 0; }

 private:
  struct Face {
    virtual ~Face() = default;
    virtual std::unique_ptr<Face> clone() const = 0;
    virtual void* at(Index) = 0;
    virtual std::size_t bytes() const = 0;
  };
  template <class S>
  struct Model final : Face {
    std::vector<S> states;
    explicit Model(std::vector<S> s) : states(std::move(s)) {}
    std::unique_ptr<Face> clone() const override { return std::make_unique<Model>(states); }
    void* at(Index i) override { return &states[detail::uz(i)]; }
    std::size_t bytes() const override {
      std::size_t sum = sizeof(*this) + states.capacity() * sizeof(S);
      if constexpr (!std::is_empty_v<S>)
        for (const S& state : states) sum += detail::state_bytes(state);
      return sum;
    }
  };

  std::unique_ptr<Face> face_;
};

// What a policy says about itself. It is a value that never changes, so it is asked once.
struct PolicyTraits {
  bool scorer = false, tile_scorer = false, budgeter = false, measurer = false, codec = false;
  bool observes = false;
  bool measures_once = false, measures_again = false;
  bool all_layers = false;      // a Budgeter that runs before those that are not
  bool cascades = false;        // compress(layer) is allowed
  bool changes_states = false;  // share() does
  bool codec_per_head = false;
  bool allots_bits = false;
  bool merger = false;
  bool weighs_scores = false;
  double merged_share = 0;  // of the budget
  Need needs = Need::nothing, observe_needs = Need::nothing;
  Need measure_once_needs = Need::nothing, measure_again_needs = Need::nothing;
  int columns = 0;
  detail::Reach reach;
  Index window = 0;
  Pooling pooling;
  Shared shared = Shared::head;

  Need measure_needs(bool again) const { return again ? measure_again_needs : measure_once_needs; }
};

namespace detail {

template <class P>
PolicyTraits traits_of(const P& policy) {
  PolicyTraits out;
  out.needs = needs_of(policy);
  out.observe_needs = observe_needs_of(policy);
  out.columns = columns_of(policy);
  out.window = window_of(policy);
  out.observes = lesskv::observes(policy);
  if constexpr (Scorer<P>) {
    out.scorer = true;
    out.tile_scorer = scores_tiles(policy);
    out.reach = reach_of(policy);
    out.pooling = pooling_of(policy);
    out.shared = shared_of(policy);
  }
  if constexpr (Budgeter<P>) {
    out.budgeter = true;
    out.measurer = Measurer<P>;
    out.measures_once = measures_once(policy);
    out.measures_again = measures_again(policy);
    out.measure_once_needs = measure_needs_of(policy, false);
    out.measure_again_needs = measure_needs_of(policy, true);
    out.all_layers = requires { P::all_layers; };
    out.cascades = Cascading<P>;
    out.changes_states = changes_states<P>;
  }
  if constexpr (Codec<P>) {
    out.codec = true;
    out.codec_per_head = codec_per_head(policy);
    out.allots_bits = BitBudgeter<P>;
  }
  if constexpr (Merger<P>) {
    out.merger = true;
    out.merged_share = policy.share;
    out.weighs_scores = lesskv::weighs_scores(policy);
  }
  return out;
}

// One per type, in place of type_info: there may be no RTTI.
template <class P>
inline constexpr char tag_of{};

}  // namespace detail

class AnyScorer;

class AnyPolicy {
 public:
  template <class P>
  requires(!std::same_as<P, AnyPolicy> && !std::same_as<P, AnyScorer>) AnyPolicy(P policy)
      : face_(std::make_shared<Model<P>>(std::move(policy))) {}
  AnyPolicy(const AnyScorer& scorer);

  const PolicyTraits& traits() const { return face_->traits; }
  bool skips(int layer) const { return face_->skips(layer); }
  void check(const Shape& shape) const { face_->check(shape); }
  AnyStates make_states(Index count) const { return face_->make_states(count); }

  // Of the role that the traits name; `state` as make_states() made it.
  void observe(const Head& head, void* state) const { face_->observe(head, state); }
  void score(const Head& head, const void* state, std::span<float> out) const {
    face_->score(head, state, out);
  }
  void score_tiles(const Head& head, const Tiles& rows, std::span<float> out) const {
    face_->score_tiles(head, rows, out);
  }
  void measure(const Head& head, void* state) const { face_->measure(head, state); }
  void share(const Shape& shape, const AnyStates& measured, std::span<double> quota) const {
    face_->share(shape, measured, quota);
  }
  void most(const Shape& shape, int seen, const AnyStates& measured, std::span<const Index> cap,
            Index rows, double total, std::span<double> out) const {
    face_->most(shape, seen, measured, cap, rows, total, out);
  }
  std::shared_ptr<const SideCodec> codec(Side side, int dim, int layer, int head) const {
    return face_->codec(side, dim, layer, head);
  }

  // Of a BitBudgeter: the codecs of all heads, keys and values of each in turn.
  std::vector<std::shared_ptr<const SideCodec>> allot(const Shape& shape, const AnyStates& measured,
                                                      std::span<const Index> rows) const {
    return face_->allot(shape, measured, rows);
  }

  void merge(const Head& leaving, std::span<const float> weight, Index count,
             std::span<std::int32_t> cluster) const {
    face_->merge(leaving, weight, count, cluster);
  }

  // Equal for equal types.
  const void* tag() const { return face_->tag; }

 private:
  struct Face {
    PolicyTraits traits;
    const void* tag;
    Face(PolicyTraits t, const void* type) : traits(t), tag(type) {}
    virtual ~Face() = default;
    virtual bool skips(int layer) const = 0;
    virtual void check(const Shape&) const = 0;
    virtual AnyStates make_states(Index) const = 0;
    virtual void observe(const Head&, void*) const {}
    virtual void score(const Head&, const void*, std::span<float>) const {}
    virtual void score_tiles(const Head&, const Tiles&, std::span<float>) const {}
    virtual void measure(const Head&, void*) const {}
    virtual void share(const Shape&, const AnyStates&, std::span<double>) const {}
    virtual void most(const Shape&, int, const AnyStates&, std::span<const Index>, Index, double,
                      std::span<double>) const {}
    virtual std::shared_ptr<const SideCodec> codec(Side, int, int, int) const { return nullptr; }
    virtual std::vector<std::shared_ptr<const SideCodec>> allot(const Shape&, const AnyStates&,
                                                                std::span<const Index>) const {
      return {};
    }
    virtual void merge(const Head&, std::span<const float>, Index, std::span<std::int32_t>) const {}
  };

  template <class P>
  struct Model final : Face {
    using State = state_of<P>;
    P policy;
    explicit Model(P p) : Face(detail::traits_of(p), &detail::tag_of<P>), policy(std::move(p)) {}

    bool skips(int layer) const override { return skips_layer(policy, layer); }
    void check(const Shape& shape) const override { check_policy(policy, shape); }
    AnyStates make_states(Index count) const override {
      std::vector<State> states;
      states.reserve(detail::uz(count));
      for (Index i = 0; i < count; ++i) states.push_back(detail::make_state(policy));
      return AnyStates::of(std::move(states));
    }
    void observe([[maybe_unused]] const Head& head, [[maybe_unused]] void* state) const override {
      if constexpr (Observer<P>) policy.observe(head, *static_cast<State*>(state));
    }
    void score([[maybe_unused]] const Head& head, [[maybe_unused]] const void* state,
               [[maybe_unused]] std::span<float> out) const override {
      if constexpr (Scorer<P>)
        detail::call_score(policy, head, *static_cast<const State*>(state), out);
    }
    void score_tiles([[maybe_unused]] const Head& head, [[maybe_unused]] const Tiles& rows,
                     [[maybe_unused]] std::span<float> out) const override {
      if constexpr (TileScorer<P>) policy.score_tiles(head, rows, out);
    }
    void measure([[maybe_unused]] const Head& head, [[maybe_unused]] void* state) const override {
      if constexpr (Measurer<P>) policy.measure(head, *static_cast<State*>(state));
    }
    void share([[maybe_unused]] const Shape& shape, [[maybe_unused]] const AnyStates& measured,
               [[maybe_unused]] std::span<double> quota) const override {
      if constexpr (Budgeter<P>) {
        std::vector<State>& states = measured.all<State>();
        if constexpr (detail::changes_states<P>)
          policy.share(shape, std::span<State>(states), quota);
        else
          policy.share(shape, std::span<const State>(states), quota);
      }
    }
    void most([[maybe_unused]] const Shape& shape, [[maybe_unused]] int seen,
              [[maybe_unused]] const AnyStates& measured,
              [[maybe_unused]] std::span<const Index> cap, [[maybe_unused]] Index rows,
              [[maybe_unused]] double total,
              [[maybe_unused]] std::span<double> out) const override {
      if constexpr (Cascading<P>)
        policy.most(shape, seen, std::span<const State>(measured.all<State>()), cap, rows, total,
                    out);
    }
    std::shared_ptr<const SideCodec> codec([[maybe_unused]] Side side, [[maybe_unused]] int dim,
                                           [[maybe_unused]] int layer,
                                           [[maybe_unused]] int head) const override {
      if constexpr (Codec<P>)
        return make_codec(policy, side, dim, layer, head);
      else
        return nullptr;
    }
    std::vector<std::shared_ptr<const SideCodec>> allot(
        [[maybe_unused]] const Shape& shape, [[maybe_unused]] const AnyStates& measured,
        [[maybe_unused]] std::span<const Index> rows) const override {
      std::vector<std::shared_ptr<const SideCodec>> out;
      if constexpr (BitBudgeter<P>) {
        std::vector<SideBits> bits(rows.size());
        policy.allot(shape, std::span<const State>(measured.all<State>()), rows, bits);
        // Heads of equal bits share a codec.
        std::vector<std::shared_ptr<const SideCodec>> made[2];
        const auto of = [&](Side side, int dim, int count) {
          auto& known = made[side == Side::values];
          known.resize(std::max(known.size(), detail::uz(count) + 1));
          auto& one = known[detail::uz(count)];
          if (!one) one = policy.codec(side, dim, count);
          return one;
        };
        for (const SideBits& one : bits) {
          out.push_back(of(Side::keys, shape.head_dim, one.keys));
          out.push_back(of(Side::values, shape.value_width(), one.values));
        }
      }
      return out;
    }
    void merge([[maybe_unused]] const Head& leaving, [[maybe_unused]] std::span<const float> weight,
               [[maybe_unused]] Index count,
               [[maybe_unused]] std::span<std::int32_t> cluster) const override {
      if constexpr (Merger<P>) policy.merge(leaving, weight, count, cluster);
    }
  };

  std::shared_ptr<const Face> face_;
};

// A Scorer chosen at run time, where a policy is made of others: MaxRank<AnyScorer, AnyScorer>.
class AnyScorer {
 public:
  using State = AnyStates;  // of one head

  template <class P>
  requires(!std::same_as<P, AnyScorer> && Scorer<P>) AnyScorer(P policy)
      : policy_(std::move(policy)) {}

  Need needs() const { return traits().needs; }
  Need observe_needs() const { return traits().observe_needs; }
  int columns() const { return traits().columns; }
  detail::Reach reach() const { return traits().reach; }
  Index window_size() const { return traits().window; }
  Pooling pooling() const { return traits().pooling; }
  Shared shared() const { return traits().shared; }
  bool skips(int layer) const { return policy_.skips(layer); }
  bool observes() const { return traits().observes; }
  void check(const Shape& shape) const { policy_.check(shape); }
  State make_state() const { return policy_.make_states(1); }
  void observe(const Head& head, State& state) const { policy_.observe(head, state.at(0)); }
  void score(const Head& head, const State& state, std::span<float> out) const {
    policy_.score(head, state.at(0), out);
  }
  bool scores_tiles() const { return traits().tile_scorer; }
  void score_tiles(const Head& head, const Tiles& rows, std::span<float> out) const {
    policy_.score_tiles(head, rows, out);
  }

 private:
  friend class AnyPolicy;
  const PolicyTraits& traits() const { return policy_.traits(); }
  AnyPolicy policy_;
};

inline AnyPolicy::AnyPolicy(const AnyScorer& scorer) : face_(scorer.policy_.face_) {}

LESSKV_END_NAMESPACE
