// SPDX-License-Identifier: MIT
// AnyCodec: how rows are stored, chosen at run time.
#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include "../core/concepts.hpp"

LESSKV_BEGIN_NAMESPACE

class AnyCodec {
 public:
  AnyCodec() = default;  // rows stay as Shape::dtype

  template <class P>
  requires(!std::same_as<P, AnyCodec> && Codec<P>) AnyCodec(P policy)
      : face_(std::make_shared<Model<P>>(std::move(policy))) {}

  explicit operator bool() const { return face_ != nullptr; }
  void check(const Shape& shape) const {
    if (face_) face_->check(shape);
  }
  std::shared_ptr<const SideCodec> codec(Side side, int dim, int layer = 0, int head = 0) const {
    return face_ ? face_->codec(side, dim, layer, head) : nullptr;
  }
  bool per_head() const { return face_ && face_->per_head(); }

 private:
  struct Face {
    virtual ~Face() = default;
    virtual void check(const Shape&) const = 0;
    virtual bool per_head() const = 0;
    virtual std::shared_ptr<const SideCodec> codec(Side, int dim, int layer, int head) const = 0;
  };
  template <class P>
  struct Model final : Face {
    P policy;
    explicit Model(P p) : policy(std::move(p)) {}
    void check(const Shape& shape) const override { check_policy(policy, shape); }
    bool per_head() const override { return codec_per_head(policy); }
    std::shared_ptr<const SideCodec> codec(Side side, int dim, int layer, int head) const override {
      return make_codec(policy, side, dim, layer, head);
    }
  };
  std::shared_ptr<const Face> face_;
};

LESSKV_END_NAMESPACE
