// SPDX-License-Identifier: MIT
// AnyScorer and AnyBudgeter: policies chosen at run time. A type-erased policy is itself a policy,
// so one KVCache type serves every choice.
#pragma once

#include <any>
#include <memory>
#include <utility>
#include <vector>

#include "../core/concepts.hpp"
#include "../core/tiles.hpp"

LESSKV_BEGIN_NAMESPACE

class AnyScorer {
 public:
  using State = std::any;

  template <class P>
  requires(!std::same_as<P, AnyScorer> && Scorer<P>) AnyScorer(P policy)
      : face_(std::make_shared<Model<P>>(std::move(policy))) {}

  Need needs() const { return face_->needs(); }
  int columns() const { return face_->columns(); }
  detail::Reach reach() const { return face_->reach(); }
  Index window_size() const { return face_->window_size(); }
  Pooling pooling() const { return face_->pooling(); }
  Shared shared() const { return face_->shared(); }
  bool skips(int layer) const { return face_->skips(layer); }
  bool observes() const { return face_->observes(); }
  void check(const Shape& shape) const { face_->check(shape); }
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
    virtual int columns() const = 0;
    virtual detail::Reach reach() const = 0;
    virtual Index window_size() const = 0;
    virtual Pooling pooling() const = 0;
    virtual Shared shared() const = 0;
    virtual bool skips(int layer) const = 0;
    virtual bool observes() const = 0;
    virtual void check(const Shape&) const = 0;
    virtual void observe(const Head&, std::any&) const = 0;
    virtual void score(const Head&, const std::any&, std::span<float>) const = 0;
    virtual bool scores_tiles() const = 0;
    virtual void score_tiles(const Head&, const Tiles&, std::span<float>) const = 0;
  };

  template <class P>
  struct Model final : Face {
    P policy;
    explicit Model(P p) : policy(std::move(p)) {}
    Need needs() const override { return needs_of(policy); }
    int columns() const override { return columns_of(policy); }
    detail::Reach reach() const override { return reach_of(policy); }
    Index window_size() const override { return window_of(policy); }
    Pooling pooling() const override { return pooling_of(policy); }
    Shared shared() const override { return shared_of(policy); }
    bool skips(int layer) const override { return skips_layer(policy, layer); }
    bool observes() const override { return lesskv::observes(policy); }
    void check(const Shape& shape) const override { check_policy(policy, shape); }
    void observe(const Head& head, std::any& state) const override {
      if constexpr (Observer<P>) {
        if (!state.has_value()) state = state_of<P>{};
        policy.observe(head, *std::any_cast<state_of<P>>(&state));
      }
    }
    void score(const Head& head, const std::any& state, std::span<float> out) const override {
      if constexpr (requires { policy.score(head, out); }) {
        policy.score(head, out);
      } else {
        const state_of<P> fresh{};
        policy.score(head, state.has_value() ? *std::any_cast<state_of<P>>(&state) : fresh, out);
      }
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
  using State = std::vector<std::any>;  // one per Budgeter
  static constexpr bool all_layers = true;

  AnyBudgeter() = default;

  template <class P>
  requires(!std::same_as<P, AnyBudgeter> && Budgeter<P>) void add(P policy) {
    auto model = std::make_shared<Model<P>>(std::move(policy));
    const bool first = model->model_wide();
    faces_.insert(first ? faces_.begin() + wide_++ : faces_.end(), std::move(model));
  }
  bool empty() const { return faces_.empty(); }

  Need needs() const {
    Need all = Need::nothing;
    for (const auto& face : faces_) all = all | face->needs();
    return all;
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
  void check(const Shape& shape) const {
    for (const auto& face : faces_) face->check(shape);
  }
  void observe(const Head& head, State& state) const {
    state.resize(faces_.size());
    for (std::size_t i = 0; i < faces_.size(); ++i) faces_[i]->observe(head, state[i]);
  }
  void measure(const Head& head, State& state) const {
    state.resize(faces_.size());
    for (std::size_t i = 0; i < faces_.size(); ++i) faces_[i]->measure(head, state[i]);
  }
  void share(const Shape& shape, std::span<const State> measured, std::span<double> quota) const {
    for (std::size_t i = 0; i < faces_.size(); ++i) faces_[i]->share(shape, measured, i, quota);
  }

 private:
  struct Face {
    virtual ~Face() = default;
    virtual Need needs() const = 0;
    virtual Index window_size() const = 0;
    virtual bool observes() const = 0;
    virtual bool model_wide() const = 0;
    virtual void check(const Shape&) const = 0;
    virtual void observe(const Head&, std::any&) const = 0;
    virtual void measure(const Head&, std::any&) const = 0;
    virtual void share(const Shape&, std::span<const State>, std::size_t index,
                       std::span<double>) const = 0;
  };

  template <class P>
  struct Model final : Face {
    P policy;
    explicit Model(P p) : policy(std::move(p)) {}
    Need needs() const override { return needs_of(policy); }
    Index window_size() const override { return window_of(policy); }
    bool observes() const override { return lesskv::observes(policy); }
    bool model_wide() const override {
      return requires { P::all_layers; };
    }
    void check(const Shape& shape) const override { check_policy(policy, shape); }
    static state_of<P>& value(std::any& state) {
      if (!state.has_value()) state = state_of<P>{};
      return *std::any_cast<state_of<P>>(&state);
    }
    void observe(const Head& head, std::any& state) const override {
      if constexpr (Observer<P>) policy.observe(head, value(state));
    }
    void measure(const Head& head, std::any& state) const override {
      if constexpr (Measurer<P>) policy.measure(head, value(state));
    }
    void share(const Shape& shape, std::span<const State> measured, std::size_t index,
               std::span<double> quota) const override {
      std::vector<state_of<P>> own(measured.size());
      for (std::size_t i = 0; i < measured.size(); ++i)
        if (index < measured[i].size() && measured[i][index].has_value())
          own[i] = *std::any_cast<state_of<P>>(&measured[i][index]);
      policy.share(shape, std::span<const state_of<P>>(own), quota);
    }
  };

  std::vector<std::shared_ptr<const Face>> faces_;
  std::ptrdiff_t wide_ = 0;
};

LESSKV_END_NAMESPACE
