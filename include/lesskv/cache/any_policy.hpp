// SPDX-License-Identifier: MIT
// AnyScorer and AnyBudgeter: policies chosen at run time. A type-erased policy is itself a policy,
// so one KVCache type serves every choice.
#pragma once

#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/concepts.hpp"
#include "../core/tiles.hpp"
#include "../core/water_fill.hpp"
#include "../score/part.hpp"

LESSKV_BEGIN_NAMESPACE

// A state of any type, copied with its holder. Only the policy that made it reads it.
class AnyState {
 public:
  AnyState() = default;
  template <class T>
  static AnyState of(T value) {
    AnyState out;
    out.face_ = std::make_unique<Model<T>>(std::move(value));
    return out;
  }
  AnyState(const AnyState& other) : face_(other.face_ ? other.face_->clone() : nullptr) {}
  AnyState(AnyState&&) noexcept = default;
  AnyState& operator=(AnyState other) noexcept {
    face_ = std::move(other.face_);
    return *this;
  }

  template <class T>
  T& get() {
    return static_cast<Model<T>&>(*face_).value;
  }
  template <class T>
  const T& get() const {
    return static_cast<const Model<T>&>(*face_).value;
  }
  std::size_t bytes() const { return face_ ? face_->bytes() : 0; }

 private:
  struct Face {
    virtual ~Face() = default;
    virtual std::unique_ptr<Face> clone() const = 0;
    virtual std::size_t bytes() const = 0;
  };
  template <class T>
  struct Model final : Face {
    T value;
    explicit Model(T v) : value(std::move(v)) {}
    std::unique_ptr<Face> clone() const override { return std::make_unique<Model>(value); }
    std::size_t bytes() const override { return sizeof(*this) + detail::state_bytes(value); }
  };

  std::unique_ptr<Face> face_;
};

class AnyScorer {
 public:
  using State = AnyState;

  template <class P>
  requires(!std::same_as<P, AnyScorer> && Scorer<P>) AnyScorer(P policy)
      : face_(std::make_shared<Model<P>>(std::move(policy))) {}

  Need needs() const { return face_->needs(); }
  Need observe_needs() const { return face_->observe_needs(); }
  int columns() const { return face_->columns(); }
  detail::Reach reach() const { return face_->reach(); }
  Index window_size() const { return face_->window_size(); }
  Pooling pooling() const { return face_->pooling(); }
  Shared shared() const { return face_->shared(); }
  bool skips(int layer) const { return face_->skips(layer); }
  bool observes() const { return face_->observes(); }
  void check(const Shape& shape) const { face_->check(shape); }
  State make_state() const { return face_->make_state(); }
  void observe(const Head& head, State& state) const { face_->observe(head, state); }
  void score(const Head& head, const State& state, std::span<float> out) const {
    face_->score(head, state, out);
  }
  bool scores_tiles() const { return face_->scores_tiles(); }
  void score_tiles(const Head& head, const Tiles& rows, std::span<float> out) const {
    face_->score_tiles(head, rows, out);
  }

 private:
  struct Face {
    virtual ~Face() = default;
    virtual Need needs() const = 0;
    virtual Need observe_needs() const = 0;
    virtual int columns() const = 0;
    virtual detail::Reach reach() const = 0;
    virtual Index window_size() const = 0;
    virtual Pooling pooling() const = 0;
    virtual Shared shared() const = 0;
    virtual bool skips(int layer) const = 0;
    virtual bool observes() const = 0;
    virtual void check(const Shape&) const = 0;
    virtual AnyState make_state() const = 0;
    virtual void observe(const Head&, AnyState&) const = 0;
    virtual void score(const Head&, const AnyState&, std::span<float>) const = 0;
    virtual bool scores_tiles() const = 0;
    virtual void score_tiles(const Head&, const Tiles&, std::span<float>) const = 0;
  };

  template <class P>
  struct Model final : Face {
    P policy;
    explicit Model(P p) : policy(std::move(p)) {}
    Need needs() const override { return needs_of(policy); }
    Need observe_needs() const override { return observe_needs_of(policy); }
    int columns() const override { return columns_of(policy); }
    detail::Reach reach() const override { return reach_of(policy); }
    Index window_size() const override { return window_of(policy); }
    Pooling pooling() const override { return pooling_of(policy); }
    Shared shared() const override { return shared_of(policy); }
    bool skips(int layer) const override { return skips_layer(policy, layer); }
    bool observes() const override { return lesskv::observes(policy); }
    void check(const Shape& shape) const override { check_policy(policy, shape); }
    AnyState make_state() const override {
      if constexpr (std::is_empty_v<state_of<P>>)
        return {};
      else
        return AnyState::of(detail::make_state(policy));
    }
    void observe(const Head& head, AnyState& state) const override {
      if constexpr (Observer<P>) {
        if constexpr (std::is_empty_v<state_of<P>>) {
          state_of<P> none;
          policy.observe(head, none);
        } else {
          policy.observe(head, state.get<state_of<P>>());
        }
      }
    }
    void score(const Head& head, const AnyState& state, std::span<float> out) const override {
      if constexpr (requires { policy.score(head, out); })
        policy.score(head, out);
      else if constexpr (std::is_empty_v<state_of<P>>)
        policy.score(head, state_of<P>{}, out);
      else
        policy.score(head, state.get<state_of<P>>(), out);
    }
    bool scores_tiles() const override { return lesskv::scores_tiles(policy); }
    void score_tiles([[maybe_unused]] const Head& head, [[maybe_unused]] const Tiles& rows,
                     [[maybe_unused]] std::span<float> out) const override {
      if constexpr (TileScorer<P>) policy.score_tiles(head, rows, out);
    }
  };

  std::shared_ptr<const Face> face_;
};

// Any number of Budgeters in a row; none leaves the quotas as they are. Model-wide ones run first.
class AnyBudgeter {
 public:
  struct State {  // one per Budgeter
    std::vector<AnyState> parts;
    std::size_t bytes() const {
      std::size_t sum = parts.capacity() * sizeof(AnyState);
      for (const AnyState& part : parts) sum += part.bytes();
      return sum;
    }
  };
  static constexpr bool all_layers = true;

  AnyBudgeter() = default;

  template <class P>
  requires(!std::same_as<P, AnyBudgeter> && Budgeter<P>) void add(P policy) {
    auto model = std::make_shared<Model<P>>(std::move(policy));
    const bool first = model->model_wide();
    faces_.insert(first ? faces_.begin() + wide_++ : faces_.end(), std::move(model));
  }
  bool empty() const { return faces_.empty(); }

  Need needs() const { return measure_needs(false) | measure_needs(true) | observe_needs(); }
  Need observe_needs() const {
    Need all = Need::nothing;
    for (const auto& face : faces_)
      if (face->observes()) all = all | face->observe_needs();
    return all;
  }
  Need measure_needs(bool again) const {
    Need all = Need::nothing;
    for (const auto& face : faces_) all = all | face->measure_needs(again);
    return all;
  }
  int columns() const {
    int sum = 0;
    for (const auto& face : faces_) sum += face->columns();
    return sum;
  }
  Index window_size() const {
    Index most = 0;
    for (const auto& face : faces_) most = std::max(most, face->window_size());
    return most;
  }
  bool observes() const {
    for (const auto& face : faces_)
      if (face->observes()) return true;
    return false;
  }
  bool measures() const {
    for (const auto& face : faces_)
      if (face->measures()) return true;
    return false;
  }
  bool measures_once() const {
    for (const auto& face : faces_)
      if (face->measures() && !face->measures_again()) return true;
    return false;
  }
  bool measures_again() const {
    for (const auto& face : faces_)
      if (face->measures_again()) return true;
    return false;
  }
  void check(const Shape& shape) const {
    for (const auto& face : faces_) face->check(shape);
  }
  State make_state() const {
    State out;
    out.parts.reserve(faces_.size());
    for (const auto& face : faces_) out.parts.push_back(face->make_state());
    return out;
  }
  void observe(const Head& head, State& state) const {
    each(head, [&](const Face& face, std::size_t i, const Head& own) {
      if (face.observes()) face.observe(own, state.parts[i]);
    });
  }
  void measure(const Head& head, State& state) const {
    measure(head, state, false);
    measure(head, state, true);
  }
  // Those that measure anew each time, or those that measure once.
  void measure(const Head& head, State& state, bool again) const {
    each(head, [&](const Face& face, std::size_t i, const Head& own) {
      if (face.measures() && face.measures_again() == again) face.measure(own, state.parts[i]);
    });
  }
  void share(const Shape& shape, std::span<State> measured, std::span<double> quota) const {
    const double total = std::accumulate(quota.begin(), quota.end(), 0.0);
    for (std::size_t i = 0; i < faces_.size(); ++i) {
      faces_[i]->share(shape, measured, i, quota);
      detail::scale_to(quota, total);
    }
  }

  // compress(layer) is allowed for one that cascades alone, or for none.
  static constexpr bool cascades = true;
  bool cascades_now() const {
    return empty() || (faces_.size() == 1 && faces_.front()->cascades());
  }
  void most(const Shape& shape, int seen, std::span<const State> measured,
            std::span<const Index> cap, Index rows, double total, std::span<double> out) const {
    faces_.front()->most(shape, seen, measured, cap, rows, total, out);
  }

 private:
  struct Face {
    virtual ~Face() = default;
    virtual int columns() const = 0;
    virtual Need observe_needs() const = 0;
    virtual Need measure_needs(bool again) const = 0;
    virtual Index window_size() const = 0;
    virtual bool observes() const = 0;
    virtual bool measures() const = 0;
    virtual bool measures_again() const = 0;
    virtual bool model_wide() const = 0;
    virtual void check(const Shape&) const = 0;
    virtual AnyState make_state() const = 0;
    virtual void observe(const Head&, AnyState&) const = 0;
    virtual void measure(const Head&, AnyState&) const = 0;
    virtual void share(const Shape&, std::span<State>, std::size_t index,
                       std::span<double>) const = 0;
    virtual bool cascades() const = 0;
    virtual void most(const Shape&, int seen, std::span<const State>, std::span<const Index> cap,
                      Index rows, double total, std::span<double> out) const = 0;
  };

  // f(face, index, head with its own columns) for all.
  template <class F>
  void each(Head head, F&& f) const {
    for (std::size_t i = 0; i < faces_.size(); ++i) {
      f(*faces_[i], i, head);
      if (head.column_data) head.column_data += faces_[i]->columns();
    }
  }

  template <class P>
  struct Model final : Face {
    P policy;
    explicit Model(P p) : policy(std::move(p)) {}
    int columns() const override { return columns_of(policy); }
    Need observe_needs() const override { return observe_needs_of(policy); }
    Need measure_needs(bool again) const override {
      return detail::measure_needs_of(policy, again);
    }
    Index window_size() const override { return window_of(policy); }
    bool observes() const override { return lesskv::observes(policy); }
    bool measures() const override { return lesskv::measures(policy); }
    bool measures_again() const override { return detail::measures_again(policy); }
    bool model_wide() const override {
      return requires { P::all_layers; };
    }
    void check(const Shape& shape) const override { check_policy(policy, shape); }
    AnyState make_state() const override { return AnyState::of(detail::make_state(policy)); }
    void observe(const Head& head, AnyState& state) const override {
      if constexpr (Observer<P>) policy.observe(head, state.get<state_of<P>>());
    }
    void measure(const Head& head, AnyState& state) const override {
      if constexpr (Measurer<P>)
        policy.measure(detail::head_of_part(policy, head, 0), state.get<state_of<P>>());
    }
    void share(const Shape& shape, std::span<State> measured, std::size_t index,
               std::span<double> quota) const override {
      std::vector<state_of<P>> own;
      own.reserve(measured.size());
      for (State& state : measured) own.push_back(std::move(state.parts[index].get<state_of<P>>()));
      policy.share(shape, std::span<state_of<P>>(own), quota);
      // What is measured anew each time need not stay.
      const bool again = detail::measures_again(policy);
      for (std::size_t i = 0; i < own.size(); ++i)
        measured[i].parts[index].get<state_of<P>>() =
            again ? detail::make_state(policy) : std::move(own[i]);
    }
    bool cascades() const override { return Cascading<P>; }
    void most(const Shape& shape, int seen, std::span<const State> measured,
              std::span<const Index> cap, Index rows, double total,
              std::span<double> out) const override {
      if constexpr (Cascading<P>) {
        std::vector<state_of<P>> own;
        own.reserve(measured.size());
        for (const State& state : measured)
          own.push_back(state.parts[0].template get<state_of<P>>());
        policy.most(shape, seen, std::span<const state_of<P>>(own), cap, rows, total, out);
      }
    }
  };

  std::vector<std::shared_ptr<const Face>> faces_;
  std::ptrdiff_t wide_ = 0;
};

LESSKV_END_NAMESPACE
