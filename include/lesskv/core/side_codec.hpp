// SPDX-License-Identifier: MIT
// How rows that will not change any more are stored. A Codec policy makes one SideCodec for the keys
// and one for the values of every head shape; the store hands it whole blocks.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "../kernels/kernels.hpp"
#include "shape.hpp"

LESSKV_BEGIN_NAMESPACE

enum class Side : std::uint8_t { keys, values };

// Blocks have up to 64 rows. All functions are const and may run on several threads.
class SideCodec {
 public:
  virtual ~SideCodec() = default;
  // Of a block with room for `rows` rows.
  virtual std::size_t bytes(Index rows) const = 0;
  // Rows [n][dim] f32 at `positions` into `block`, bytes(n) long, 64-byte aligned.
  virtual void encode(const float* rows, const std::uint32_t* positions, Index n,
                      void* block) const = 0;
  // Only some rows of a block (ascending) into a new one. Codes are moved if `out` can hold them as
  // they are; by default they are decoded and encoded again. positions: of the block's rows.
  virtual void gather(const void* block, const std::uint32_t* positions,
                      std::span<const std::uint8_t> rows, void* out) const {
    const Index n = static_cast<Index>(rows.size()), dim = code().dim;
    std::vector<float> plain(detail::uz(n * dim));
    std::vector<std::uint32_t> at(rows.size());
    for (Index i = 0; i < n; ++i) {
      const Index row = rows[detail::uz(i)];
      decode(block, positions, row, 1, plain.data() + i * dim);
      at[detail::uz(i)] = positions[row];
    }
    encode(plain.data(), at.data(), n, out);
  }
  // Rows of a block (ascending) behind the first `at` rows of another, codes as they are. False: the
  // code of a row depends on its block; nothing was done.
  virtual bool move(const void* block, std::span<const std::uint8_t> rows, void* out,
                    Index at) const {
    static_cast<void>(block), static_cast<void>(rows), static_cast<void>(out);
    static_cast<void>(at);
    return false;
  }
  // How attention reads it. The functions that it names are of this machine's instruction set.
  virtual const SideCode& code() const = 0;
  // Memory of a codec that one head alone has.
  virtual std::size_t own_bytes() const { return 0; }
  // What all heads with this codec share (a dictionary); `identity` tells equal ones apart.
  virtual std::size_t shared_bytes() const { return 0; }
  virtual const void* identity() const { return nullptr; }
  // What encoding needs and nobody else, made anew when nobody holds it: to be held while several
  // blocks are encoded. Its bytes are of all codecs of that identity together.
  virtual std::shared_ptr<const void> encoder() const { return nullptr; }
  virtual std::size_t encoder_bytes() const { return 0; }
  // A codec that learns from the sequence: before a head encodes its first rows, it is shown all
  // that are closed by then, [n][dim], and gives the codec that this head has from now on. Null: it
  // does not. adapted_bytes: what own_bytes() grows by at most.
  virtual bool adapts() const { return false; }
  virtual std::shared_ptr<const SideCodec> adapted(const float* rows,
                                                   const std::uint32_t* positions, Index n) const {
    static_cast<void>(rows), static_cast<void>(positions), static_cast<void>(n);
    return nullptr;
  }
  virtual std::size_t adapted_bytes() const { return 0; }

  void decode(const void* block, const std::uint32_t* positions, Index first, Index count,
              float* out) const {
    code().decode(code(), block, positions, first, count, out);
  }
};

// A policy that says how closed rows are stored: one SideCodec for all heads, or (with layer and
// head) one each. Null: this side stays exact.
template <class P>
concept Codec = requires(const P p, Side side, int dim) {
  { p.codec(side, dim) } -> std::convertible_to<std::shared_ptr<const SideCodec>>;
}
|| requires(const P p, Side side, int dim, int layer, int head) {
  { p.codec(side, dim, layer, head) } -> std::convertible_to<std::shared_ptr<const SideCodec>>;
};

// Whether heads differ: `bool per_head() const` for a type that only knows at run time.
template <Codec P>
bool codec_per_head(const P& policy) {
  if constexpr (requires {
                  { policy.per_head() } -> std::same_as<bool>;
                })
    return policy.per_head();
  else
    return !requires { policy.codec(Side::keys, 1); };
}
template <Codec P>
std::shared_ptr<const SideCodec> make_codec(const P& policy, Side side, int dim, int layer,
                                            int head) {
  if constexpr (requires { policy.codec(side, dim, layer, head); })
    return policy.codec(side, dim, layer, head);
  else
    return policy.codec(side, dim);
}

// One side coded, the other as Shape::dtype; or the two sides apart: Keys{LloydMax{.bits = 5}},
// Values{LloydMax{.bits = 4}}.
template <Codec C>
struct Keys {
  static_assert(
      !requires { &C::allot; },
      "lesskv: Bits divides bits between keys and values; it cannot have one side of them");
  C of;
  void check(const Shape& shape) const { check_policy(of, shape); }
  bool per_head() const { return codec_per_head(of); }
  std::shared_ptr<const SideCodec> codec(Side side, int dim, int layer, int head) const {
    return side == Side::keys ? make_codec(of, side, dim, layer, head) : nullptr;
  }
};
template <Codec C>
struct Values {
  static_assert(
      !requires { &C::allot; },
      "lesskv: Bits divides bits between keys and values; it cannot have one side of them");
  C of;
  void check(const Shape& shape) const { check_policy(of, shape); }
  bool per_head() const { return codec_per_head(of); }
  std::shared_ptr<const SideCodec> codec(Side side, int dim, int layer, int head) const {
    return side == Side::values ? make_codec(of, side, dim, layer, head) : nullptr;
  }
};
template <class C>
Keys(C) -> Keys<C>;
template <class C>
Values(C) -> Values<C>;

LESSKV_END_NAMESPACE
