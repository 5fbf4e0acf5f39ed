// SPDX-License-Identifier: MIT
// BytesForecast: what a head will hold when rows have left and come. A limit in bytes is turned into
// rows with it before anything moves, so it follows by arithmetic what HeadStore::compact() and keep()
// do; tests/cache/bytes_test.cpp holds the two together.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include "block.hpp"
#include "head_layout.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// Two neighbours become one when they fit into one block and one of them is less than half full.
static bool joins(Index before, Index n) {
  return before + n <= block_rows && std::min(before, n) < block_rows / 2;
}

class BytesForecast {
 public:
  BytesForecast(const BlockFormat& format, const std::vector<Block>& blocks)
      : format_(format), blocks_(blocks) {}

  // The same for a head of `rows` rows of which the first `front` and the newest `open` are exact:
  // right after the compression of a prompt,
  LESSKV_OUT_OF_LINE std::size_t least_bytes(Index rows, Index front, Index open) const {
    const std::size_t own = format_.codec_bytes() + format_.adapted_bytes();
    if (!format_.coded()) return own + format_.exact_bytes(rows) + list_bytes(rows);
    front = std::min(front, rows);
    const Index tail = std::min(open, rows - front), rest = rows - front - tail;
    std::size_t sum =
        own + format_.exact_bytes(front) + format_.exact_bytes(tail) + list_bytes(rows);
    sum += uz(rest / block_rows) * format_.block_bytes(block_rows, true);
    if (rest % block_rows > 0)
      sum += format_.block_bytes(round_up(rest % block_rows, tile_rows), true);
    return sum;
  }
  // and while rows come one by one: closed rows wait until a block is full. `between`: rows leave
  // anywhere, not only the oldest. Coded blocks then have room that nobody uses. It is taken as 12 rows
  // each, or what they have now if that is more: priced lower, a step drops more than it must; higher,
  // rows go that could stay.
  LESSKV_OUT_OF_LINE std::size_t bytes_for(Index rows, Index front, Index open,
                                           bool between) const {
    const std::size_t own = format_.codec_bytes() + format_.adapted_bytes() + list_bytes(rows);
    if (!format_.coded()) return own + format_.exact_bytes(rows);
    front = std::min(front, rows);
    const Index tail = std::min(open + block_rows, rows - front), rest = rows - front - tail;
    // Bytes of that many coded rows.
    std::size_t bytes = format_.block_bytes(block_rows, true);
    Index count = between ? block_rows - tile_rows * 3 / 4 : block_rows;
    BlockCounts blocks = count_blocks();
    const Index held_rows = blocks.coded_rows;
    blocks.exact = {};
    const std::size_t held = counted_bytes(blocks);
    if (held_rows >= block_rows && held * uz(count) > bytes * uz(held_rows)) {
      bytes = held;
      count = held_rows;
    }
    return own + format_.exact_bytes(front) + format_.exact_bytes(tail) +
           uz(rest) * bytes / uz(count);
  }

  // How rows lie now, of which the head holds `bytes`; and how they will once compact(*kept, front, closed, whole), or keep() where
  // there is no codec, was carried out. No `kept`: all stay.
  LESSKV_OUT_OF_LINE HeadLayout layout(Index front, std::size_t bytes) const {
    HeadLayout out;
    out.fixed = format_.codec_bytes() + format_.adapted_bytes();
    Index exact = 0;
    for (const Block& block : blocks_) {
      if (!block.coded)
        exact += block.rows;
      else if (out.coded_blocks++ == 0)
        out.front = std::exchange(exact, 0);
    }
    BlockCounts blocks = count_blocks();
    const std::size_t all = counted_bytes(blocks);
    blocks.exact = {};
    out.fixed += counted_bytes(blocks);
    if (out.coded_blocks == 0 && format_.coded()) {
      out.front = std::min(front, exact);
      exact -= out.front;
    }
    out.tail = exact;
    out.listed = static_cast<Index>(blocks_.capacity());
    // Blocks may have more room than their rows need.
    const std::size_t needed = bytes_after(out, 0);
    const std::size_t held = std::max(
        all + format_.codec_bytes() + format_.adapted_bytes() + blocks_.capacity() * sizeof(Block),
        bytes);
    out.fixed += held > needed ? held - needed : 0;
    return out;
  }
  LESSKV_OUT_OF_LINE HeadLayout layout_after(const std::vector<std::int32_t>* kept, Index front,
                                             Index closed, bool whole) const {
    HeadLayout out;
    out.fixed = format_.codec_bytes() + format_.adapted_bytes();
    out.listed = static_cast<Index>(blocks_.size()) + 2;
    Index coded_rows = 0, exact = 0, last_rows = 0;
    std::size_t last = 0;  // bytes of the newest coded block
    const auto add = [&](Index rows, Index capacity) {
      last = format_.block_bytes(capacity, true);
      last_rows = rows;
      out.fixed += last;
      ++out.coded_blocks;
    };
    std::size_t next = 0;
    for (const Block& block : blocks_) {
      Index stay = block.rows;
      if (kept) {
        const std::size_t first = next;
        while (next < kept->size() && (*kept)[next] < block.first + block.rows) ++next;
        stay = static_cast<Index>(next - first);
      }
      if (stay == 0) continue;
      if (!block.coded) {
        exact += stay;
        continue;
      }
      if (out.coded_blocks == 0) out.front = std::exchange(exact, 0);
      coded_rows += stay;
      if (out.coded_blocks > 0 && joins(last_rows, stay)) {
        out.fixed -= last;
        --out.coded_blocks;
        add(last_rows + stay, round_up(last_rows + stay, tile_rows));
      } else {
        add(stay, stay == block.rows ? block.capacity : round_up(stay, tile_rows));
      }
    }
    if (format_.coded()) {
      if (out.coded_blocks == 0) {
        out.front = std::min(front, exact);
        exact -= out.front;
      }
      Index ready = std::clamp<Index>(closed - out.front - coded_rows, 0, exact);
      if (!whole) ready -= ready % block_rows;
      exact -= ready;
      for (; ready > 0; ready -= std::min(ready, block_rows))
        add(std::min(ready, block_rows), round_up(std::min(ready, block_rows), tile_rows));
    }
    out.tail = exact;
    if (whole) out.listed = block_count(out, 0, 0);  // the list is cut to what it holds
    return out;
  }
  // Bytes when `step` more rows have come, one by one, before the last of them is closed.
  LESSKV_OUT_OF_LINE std::size_t bytes_after(const HeadLayout& of, Index step) const {
    Index sealed = 0;
    if (format_.coded() && of.closes && step > 0)
      sealed = std::max<Index>(0, of.tail + step - 1 - of.open) / block_rows;
    const Index tail = of.tail + step - sealed * block_rows;
    const bool joined = of.coded_blocks + sealed == 0;
    const Index count = block_count(of, sealed, tail - of.tail);
    return of.fixed + uz(sealed) * format_.block_bytes(block_rows, true) +
           (joined ? format_.exact_bytes(of.front + tail)
                   : format_.exact_bytes(of.front) + format_.exact_bytes(tail)) +
           uz(count > of.listed ? std::max(2 * of.listed, count) : of.listed) * sizeof(Block);
  }

 private:
  // Blocks when `sealed` more are coded and the tail is `more` rows longer.
  static Index block_count(const HeadLayout& of, Index sealed, Index more) {
    const auto blocks = [](Index rows) { return (rows + block_rows - 1) / block_rows; };
    const Index coded = of.coded_blocks + sealed, tail = of.tail + more;
    return coded == 0 ? blocks(of.front + tail) : coded + blocks(of.front) + blocks(tail);
  }
  // Of the list of blocks: some are not full, and it has room for more.
  static std::size_t list_bytes(Index rows) { return uz(rows / 48 + 4) * sizeof(Block); }
  // Blocks by their tiles: there are few kinds, and asking a codec for the bytes of each block adds
  // up when every step asks.
  struct BlockCounts {
    std::array<Index, block_rows / tile_rows + 1> coded{}, exact{};
    Index coded_rows = 0;
  };
  LESSKV_OUT_OF_LINE BlockCounts count_blocks() const {
    BlockCounts out;
    for (const Block& block : blocks_) {
      ++(block.coded ? out.coded : out.exact)[uz(block.capacity / tile_rows)];
      if (block.coded) out.coded_rows += block.rows;
    }
    return out;
  }
  LESSKV_OUT_OF_LINE std::size_t counted_bytes(const BlockCounts& counts) const {
    std::size_t sum = 0;
    for (Index tiles = 1; tiles <= block_rows / tile_rows; ++tiles) {
      if (const Index n = counts.coded[uz(tiles)]; n > 0)
        sum += uz(n) * format_.block_bytes(tiles * tile_rows, true);
      if (const Index n = counts.exact[uz(tiles)]; n > 0)
        sum += uz(n) * format_.block_bytes(tiles * tile_rows, false);
    }
    return sum;
  }

  const BlockFormat& format_;
  const std::vector<Block>& blocks_;
};

}  // namespace detail
LESSKV_END_NAMESPACE
