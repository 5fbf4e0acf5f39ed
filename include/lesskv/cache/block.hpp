// SPDX-License-Identifier: MIT
// A block of up to 64 rows of one head, and where what lies in it: keys with tokens in lanes, values
// token-major, as the attention kernels read them (kernels/kernels.hpp), or codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "../core/shape.hpp"
#include "../core/side_codec.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

inline constexpr Index block_rows = 64;
inline constexpr Index tile_rows = 16;

struct Block {
  std::shared_ptr<std::byte> data;
  std::int32_t first = 0;  // row of the head
  std::uint8_t rows = 0, capacity = 0, coded = 0, grouped = 0;
  std::byte* keys() const { return data.get(); }
};

// What all blocks of a head have in common.
struct BlockFormat {
  int key_dim;
  int value_dim;
  DType dtype;
  std::shared_ptr<const SideCodec> key_codec, value_codec;

  bool coded() const { return key_codec || value_codec; }

  // A shared_ptr with a deleter allocates a count of its own, 32 bytes with the usual standard
  // libraries.
  static constexpr std::size_t control_bytes = 32;
  std::size_t block_bytes(Index capacity, bool is_coded) const {
    return data_bytes(capacity, is_coded) + control_bytes;
  }
  std::size_t key_bytes(Index capacity, bool is_coded) const {
    return uz(round_up(is_coded && key_codec ? static_cast<Index>(key_codec->bytes(capacity))
                                             : capacity * key_dim * size_of(dtype),
                       64));
  }
  std::size_t value_bytes(Index rows) const { return uz(rows * value_dim * size_of(dtype)); }
  LESSKV_OUT_OF_LINE std::size_t data_bytes(Index capacity, bool is_coded) const {
    return key_bytes(capacity, is_coded) +
           (is_coded && value_codec ? value_codec->bytes(capacity) : value_bytes(capacity));
  }
  // Of exact rows in blocks of their own, the last one cut to size.
  std::size_t exact_bytes(Index rows) const {
    const Index rest = rows % block_rows;
    return uz(rows / block_rows) * block_bytes(block_rows, false) +
           (rest > 0 ? block_bytes(round_up(rest, tile_rows), false) : 0);
  }
  // Of codecs that only this head has.
  std::size_t codec_bytes() const {
    std::size_t sum = 0;
    for (const auto& codec : {key_codec, value_codec}) sum += codec ? codec->own_bytes() : 0;
    return sum;
  }
  std::size_t adapted_bytes() const {
    std::size_t sum = 0;
    for (const auto& codec : {key_codec, value_codec}) sum += codec ? codec->adapted_bytes() : 0;
    return sum;
  }

  std::byte* values_of(const Block& block) const {
    return block.data.get() + key_bytes(block.capacity, block.coded != 0);
  }
  std::byte* value_row(const Block& block, Index row) const {
    return values_of(block) + value_bytes(row);
  }

  // Of exact blocks, one key.
  template <class T>
  void move_key_as(const Block& from, Index source, const Block& to, Index target) const {
    const T* s = reinterpret_cast<const T*>(from.keys()) +
                 source / tile_rows * key_dim * tile_rows + source % tile_rows;
    T* t = reinterpret_cast<T*>(to.keys()) + target / tile_rows * key_dim * tile_rows +
           target % tile_rows;
    for (Index c = 0; c < key_dim * tile_rows; c += tile_rows) t[c] = s[c];
  }
  void move_key(const Block& from, Index source, const Block& to, Index target) const {
    if (dtype == DType::f32)
      move_key_as<std::uint32_t>(from, source, to, target);
    else
      move_key_as<std::uint16_t>(from, source, to, target);
  }
};

}  // namespace detail
LESSKV_END_NAMESPACE
