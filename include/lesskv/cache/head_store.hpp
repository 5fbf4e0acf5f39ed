// SPDX-License-Identifier: MIT
// The rows of one KV head: blocks of 64, keys with tokens in lanes, values token-major, as the
// attention kernels read them (kernels/kernels.hpp). Rows are written straight into that layout:
// the newest block is simply not full. With a codec, rows that are closed become coded blocks, which
// nobody writes to again: first the exact sinks, then coded blocks, then exact rows. Blocks are
// shared by forks and copied when one of them writes.
// Many blocks at once (a prompt, or what is left of it) are one allocation, a group: one stretch of
// memory, on huge pages if it is large. Groups hold full blocks only, and no group outlives a
// compression with a hole in it: its other blocks move together, so that memory is really given
// back.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "../core/scratch.hpp"
#include "../core/shape.hpp"
#include "../core/side_codec.hpp"
#include "../kernels/tile_kernels.hpp"
#include "head_layout.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

inline constexpr Index block_rows = 64;
inline constexpr Index tile_rows = 16;

class HeadStore {
 public:
  HeadStore(int key_dim, int value_dim, DType dtype,
            std::shared_ptr<const SideCodec> key_codec = nullptr,
            std::shared_ptr<const SideCodec> value_codec = nullptr, bool tight = false)
      : key_dim_(key_dim),
        value_dim_(value_dim),
        dtype_(dtype),
        key_codec_(std::move(key_codec)),
        value_codec_(std::move(value_codec)),
        tight_(tight) {}

  Index rows() const { return blocks_.empty() ? 0 : blocks_.back().first + blocks_.back().rows; }
  bool coded() const { return key_codec_ || value_codec_; }
  const SideCodec* key_codec() const { return key_codec_.get(); }
  const SideCodec* value_codec() const { return value_codec_.get(); }
  bool has_codes() const {
    return std::any_of(blocks_.begin(), blocks_.end(),
                       [](const Block& block) { return block.coded != 0; });
  }
  // Of a store that has no codes.
  void set_codecs(std::shared_ptr<const SideCodec> keys, std::shared_ptr<const SideCodec> values) {
    key_codec_ = std::move(keys);
    value_codec_ = std::move(values);
  }
  // Rows that fit without an allocation.
  Index capacity() const {
    const Index room = room_.coded ? 0 : room_.left * block_rows;
    return room + (blocks_.empty() || blocks_.back().coded
                       ? rows()
                       : blocks_.back().first + blocks_.back().capacity);
  }

  // Appends n rows, [n][key_dim] and [n][value_dim] f32, contiguous. All numbers must fit the
  // storage type. `spare`: more will follow, one by one.
  LESSKV_OUT_OF_LINE void append(const float* keys, const float* values, Index n,
                                 bool spare = true) {
    const KernelTable& kernel = kernels();
    while (n > 0) {
      const bool fresh =
          blocks_.empty() || blocks_.back().coded || blocks_.back().rows == block_rows;
      const Index at = fresh ? 0 : blocks_.back().rows;
      // One row at a time takes a whole block at once: the next 63 steps then allocate nothing.
      const Index take = std::min(n, block_rows - at);
      const bool room = room_.left > 0 && !room_.coded;
      const Index wanted = !room && (take >= tile_rows || !spare || tight_)
                               ? round_up(at + take, tile_rows)
                               : block_rows;
      if (fresh) {
        const Index first = rows();
        blocks_.push_back(allocate(wanted, false, take == block_rows));
        blocks_.back().first = static_cast<std::int32_t>(first);
      } else if (blocks_.back().capacity < at + take) {
        replace(blocks_.back(), wanted);
      } else {
        own(blocks_.back());
      }
      Block& block = blocks_.back();
      kernel.pack_keys(dtype_, block.keys(), key_dim_, at, keys, key_dim_, take);
      kernel.from_f32(dtype_, values, value_row(block, at), take * value_dim_);
      block.rows = static_cast<std::uint8_t>(at + take);
      keys += take * key_dim_;
      values += take * value_dim_;
      n -= take;
    }
  }

  // Rows [first, first + count) as f32, [count][dim]; either output may be null. Codes that ask for
  // positions get those of all rows.
  LESSKV_OUT_OF_LINE void read(Index first, Index count, float* keys, float* values,
                               const std::uint32_t* positions = nullptr) const {
    const KernelTable& kernel = kernels();
    for (std::size_t b = find(first); count > 0; ++b) {
      const Block& block = blocks_[b];
      const Index at = first - block.first, take = std::min(count, block.rows - at);
      const std::uint32_t* of_block = positions ? positions + block.first : nullptr;
      if (keys) {
        if (block.coded && key_codec_)
          key_codec_->decode(block.keys(), of_block, at, take, keys);
        else
          kernel.unpack_keys(dtype_, block.keys(), key_dim_, at, take, keys, key_dim_);
        keys += take * key_dim_;
      }
      if (values) {
        if (block.coded && value_codec_)
          value_codec_->decode(values_of(block), of_block, at, take, values);
        else
          kernel.to_f32(dtype_, value_row(block, at), values, take * value_dim_);
        values += take * value_dim_;
      }
      first += take;
      count -= take;
    }
  }

  // What the kernels read.
  Index block_count() const { return static_cast<Index>(blocks_.size()); }
  Index first_row(Index b) const { return blocks_[uz(b)].first; }
  BlockRef block(Index b) const {
    const Block& block = blocks_[uz(b)];
    return {block.keys(), values_of(block), block.rows, block.coded != 0, nullptr};
  }

  // Keeps the given rows (ascending) and closes the gaps in place; a destination never lies behind
  // its source. `trim` gives back the unused part of the last block too. Without codec only.
  LESSKV_OUT_OF_LINE void keep(std::span<const std::int32_t> kept, bool trim) {
    const TileKernelTable& kernel = tile_kernels();
    const Index count = static_cast<Index>(kept.size());
    Index first = 0;  // the first row that moves
    while (first < count && kept[uz(first)] == first) ++first;
    thread_local std::vector<BlockRef> sources;
    sources.clear();
    for (Index b = 0; b < block_count(); ++b) sources.push_back(block(b));
    const Index full = count / block_rows, before = block_count();
    // Where much goes, what stays moves into memory of its own.
    std::vector<Block> moved;
    const bool move = first < count && full >= least_group && full < before - before / 4;
    if (move) {
      moved.reserve(uz(full + 1));
      first = 0;
      group(full, false);
    }
    for (Index b = first / block_rows; b * block_rows < count && first < count; ++b) {
      const Index n = std::min(block_rows, count - b * block_rows);
      const std::int32_t* rows = kept.data() + b * block_rows;
      Block& to = blocks_[uz(b)];
      // A block that a fork reads is replaced, not copied and then overwritten.
      Block fresh = move       ? allocate(trim ? n : block_rows, false, n == block_rows)
                    : mine(to) ? Block{}
                               : allocate(to.capacity);
      fresh.first = to.first;
      fresh.rows = to.rows;
      Block& target = fresh.data ? fresh : to;
      kernel.gather_keys(dtype_, sources.data(), key_dim_, rows, n, target.keys());
      kernel.gather_values(dtype_, sources.data(), value_dim_, rows, n, value_row(target, 0));
      if (move) {
        fresh.rows = static_cast<std::uint8_t>(n);
        moved.push_back(std::move(fresh));
      } else if (fresh.data) {
        put(to, std::move(fresh));
      }
    }
    if (move) blocks_ = std::move(moved);
    resize(count);
    if (trim || tight_) this->trim();
    settle(true);
  }

  // Keeps the given rows and encodes what is closed: of the rows that stay, those in [front, closed)
  // are stored by the codec; rows already coded stay so. `whole`: the last block may be short,
  // otherwise only full blocks are sealed and the rest waits. positions: of the rows before.
  LESSKV_OUT_OF_LINE void compact(std::span<const std::int32_t> kept, Index front, Index closed,
                                  bool whole, const std::uint32_t* positions) {
    if ((key_codec_ && key_codec_->adapts()) || (value_codec_ && value_codec_->adapts()))
      adapt(kept.subspan(uz(std::min(front, static_cast<Index>(kept.size())))), closed - front,
            positions);
    const auto key_encoder = key_codec_ ? key_codec_->encoder() : nullptr,
               value_encoder = value_codec_ ? value_codec_->encoder() : nullptr;
    group(rows_to_seal(kept, front, closed) / block_rows, true);
    std::vector<Block> old = std::move(blocks_);
    blocks_.clear();
    blocks_.reserve(old.size() + 2);
    Staging staging(key_dim_, value_dim_);
    std::size_t next = 0;  // of kept
    for (Block& block : old) {
      const Index end = block.first + block.rows;
      const std::size_t first = next;
      while (next < kept.size() && kept[next] < end) ++next;
      const Index stay = static_cast<Index>(next - first);
      if (stay == 0) {
        block.data.reset();
        continue;
      }
      const std::span<const std::int32_t> part = kept.subspan(first, uz(stay));
      if (block.coded) {
        flush(staging, whole, false);  // sinks: nothing else lies before a coded block
        push_coded(block, kept, part, positions);
      } else {
        for (std::size_t i = 0; i < part.size(); ++i) {
          const Index row = part[i], to = static_cast<Index>(first + i);
          if (to == front || to == closed) flush(staging, whole, to == closed && to > front);
          staging.add(*this, block, row - block.first, positions[row]);
          if (staging.count == block_rows) {
            if (to >= front && to < closed)
              seal(staging);
            else
              flush(staging, whole, false);
          }
        }
      }
      block.data.reset();
    }
    const Index total = static_cast<Index>(kept.size());
    flush(staging, whole, total > front && total <= closed);
    old.clear();
    if (whole) trim();
    settle(true);
  }

  // Drops all rows from `rows` on.
  LESSKV_OUT_OF_LINE void truncate(Index rows) {
    resize(std::min(rows, this->rows()));
    settle(false);
  }

  // `rows` more will come in portions: all blocks that they fill lie in one stretch of memory.
  LESSKV_OUT_OF_LINE void expect(Index rows) {
    if (room_.left > 0) return;
    const bool fresh = blocks_.empty() || blocks_.back().coded;
    const Index open = fresh ? 0 : std::min(rows, block_rows - blocks_.back().rows);
    const bool grows = open > 0 && blocks_.back().capacity < block_rows;
    group((rows - open) / block_rows + (grows ? 1 : 0), false);
  }
  // The same for rows of which nobody knows when they come: their last block too.
  LESSKV_OUT_OF_LINE void reserve(Index rows) {
    rows -= capacity() - this->rows();
    if (rows <= 0) return;
    const Index count = (rows + block_rows - 1) / block_rows;
    if (room_.left == 0) group(count, false);
    blocks_.reserve(blocks_.size() + uz(count));
  }

  // Closed rows that are not coded yet, of the rows [front, closed).
  LESSKV_OUT_OF_LINE Index uncoded(Index front, Index closed) const {
    if (!coded()) return 0;
    Index sum = 0;
    for (const Block& block : blocks_)
      if (!block.coded)
        sum += std::max<Index>(0, std::min<Index>(closed, block.first + block.rows) -
                                      std::max<Index>(front, block.first));
    return sum;
  }

  // Bytes allocated, allocation bookkeeping included.
  LESSKV_OUT_OF_LINE std::size_t bytes() const {
    std::size_t sum =
        blocks_.capacity() * sizeof(Block) + groups_.capacity() * sizeof(Group) + codec_bytes();
    for (const Block& block : blocks_)
      if (!block.grouped) sum += block_bytes(block.capacity, block.coded != 0);
    for (const Group& group : groups_)
      if (held(group) > 0) sum += uz(group.blocks) * group.block_bytes + control_bytes;
    return sum;
  }
  // The same for a head of `rows` rows of which the first `front` and the newest `open` are exact:
  // right after the compression of a prompt,
  LESSKV_OUT_OF_LINE std::size_t least_bytes(Index rows, Index front, Index open) const {
    const std::size_t own = codec_bytes() + adapted_bytes();
    if (!coded()) return own + exact_bytes(rows) + list_bytes(rows);
    front = std::min(front, rows);
    const Index tail = std::min(open, rows - front), rest = rows - front - tail;
    std::size_t sum = own + exact_bytes(front) + exact_bytes(tail) + list_bytes(rows);
    sum += uz(rest / block_rows) * block_bytes(block_rows, true);
    if (rest % block_rows > 0) sum += block_bytes(round_up(rest % block_rows, tile_rows), true);
    return sum;
  }
  // and while rows come one by one: closed rows wait until a block is full. `between`: rows leave
  // anywhere, not only the oldest. Coded blocks then have room that nobody uses. It is taken as 12 rows
  // each, or what they have now if that is more: priced lower, a step drops more than it must; higher,
  // rows go that could stay.
  LESSKV_OUT_OF_LINE std::size_t bytes_for(Index rows, Index front, Index open,
                                           bool between) const {
    const std::size_t own = codec_bytes() + adapted_bytes() + list_bytes(rows);
    if (!coded()) return own + exact_bytes(rows);
    front = std::min(front, rows);
    const Index tail = std::min(open + block_rows, rows - front), rest = rows - front - tail;
    // Bytes of that many coded rows.
    std::size_t bytes = block_bytes(block_rows, true);
    Index count = between ? block_rows - tile_rows * 3 / 4 : block_rows;
    BlockCounts blocks = count_blocks();
    const Index held_rows = blocks.coded_rows;
    blocks.exact = {};
    const std::size_t held = counted_bytes(blocks);
    if (held_rows >= block_rows && held * uz(count) > bytes * uz(held_rows)) {
      bytes = held;
      count = held_rows;
    }
    return own + exact_bytes(front) + exact_bytes(tail) + uz(rest) * bytes / uz(count);
  }

  // How rows lie now; and how they will once compact(*kept, front, closed, whole), or keep() where
  // there is no codec, was carried out. No `kept`: all stay.
  LESSKV_OUT_OF_LINE HeadLayout layout(Index front) const {
    HeadLayout out;
    out.fixed = codec_bytes() + adapted_bytes();
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
    if (out.coded_blocks == 0 && coded()) {
      out.front = std::min(front, exact);
      exact -= out.front;
    }
    out.tail = exact;
    out.listed = static_cast<Index>(blocks_.capacity());
    // Blocks may have more room than their rows need.
    const std::size_t needed = bytes_after(out, 0);
    const std::size_t held = std::max(
        all + codec_bytes() + adapted_bytes() + blocks_.capacity() * sizeof(Block), bytes());
    out.fixed += held > needed ? held - needed : 0;
    return out;
  }
  LESSKV_OUT_OF_LINE HeadLayout layout_after(const std::vector<std::int32_t>* kept, Index front,
                                             Index closed, bool whole) const {
    HeadLayout out;
    out.fixed = codec_bytes() + adapted_bytes();
    out.listed = static_cast<Index>(blocks_.size()) + 2;
    Index coded_rows = 0, exact = 0, last_rows = 0;
    std::size_t last = 0;  // bytes of the newest coded block
    const auto add = [&](Index rows, Index capacity) {
      last = block_bytes(capacity, true);
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
    if (coded()) {
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
    return out;
  }
  // Bytes when `step` more rows have come, one by one, before the last of them is closed.
  LESSKV_OUT_OF_LINE std::size_t bytes_after(const HeadLayout& of, Index step) const {
    Index sealed = 0;
    if (coded() && of.closes && step > 0)
      sealed = std::max<Index>(0, of.tail + step - 1 - of.open) / block_rows;
    const Index tail = of.tail + step - sealed * block_rows;
    const bool joined = of.coded_blocks + sealed == 0;
    const auto blocks = [](Index rows) { return (rows + block_rows - 1) / block_rows; };
    const Index count = of.coded_blocks + sealed +
                        (joined ? blocks(of.front + tail) : blocks(of.front) + blocks(tail));
    return of.fixed + uz(sealed) * block_bytes(block_rows, true) +
           (joined ? exact_bytes(of.front + tail) : exact_bytes(of.front) + exact_bytes(tail)) +
           uz(count > of.listed ? std::max(2 * of.listed, count) : of.listed) * sizeof(Block);
  }

 private:
  struct Block {
    std::shared_ptr<std::byte> data;
    std::int32_t first = 0;  // row of the head
    std::uint8_t rows = 0, capacity = 0, coded = 0, grouped = 0;
    std::byte* keys() const { return data.get(); }
  };
  // Blocks of one allocation, which they and the room hold.
  struct Group {
    const std::byte* begin;
    std::size_t block_bytes;
    Index blocks, live;
    bool has(const Block& block) const {
      return block.data.get() >= begin && block.data.get() < begin + uz(blocks) * block_bytes;
    }
  };
  // The blocks of the newest group that are not taken yet. A fork does not get them.
  struct Room {
    std::shared_ptr<std::byte> next;
    Index left = 0;
    bool coded = false;
    Room() = default;
    Room(const Room&) : Room() {}
    Room(Room&& other) noexcept : Room() { swap(other); }
    Room& operator=(Room other) noexcept {
      swap(other);
      return *this;
    }
    void swap(Room& other) noexcept {
      std::swap(next, other.next);
      std::swap(left, other.left);
      std::swap(coded, other.coded);
    }
  };
  static constexpr Index least_group = 8;  // blocks

  // Rows on their way into a block.
  struct Staging {
    Floats keys, values;
    std::array<std::uint32_t, block_rows> positions{};
    Index count = 0;
    Staging(int key_dim, int value_dim)
        : keys(block_rows * key_dim), values(block_rows * value_dim) {}
    void add(const HeadStore& store, const Block& block, Index at, std::uint32_t position) {
      const KernelTable& kernel = kernels();
      kernel.unpack_keys(store.dtype_, block.keys(), store.key_dim_, at, 1,
                         keys.data() + count * store.key_dim_, store.key_dim_);
      kernel.to_f32(store.dtype_, store.value_row(block, at),
                    values.data() + count * store.value_dim_, store.value_dim_);
      positions[uz(count++)] = position;
    }
  };

  // Shows the first `n` of the kept rows to codecs that want to learn from them.
  LESSKV_OUT_OF_LINE void adapt(std::span<const std::int32_t> kept, Index n,
                                const std::uint32_t* positions) {
    n = std::min(n, static_cast<Index>(kept.size()));
    if (n <= 0) return;
    Floats rows;
    std::vector<std::uint32_t> at(uz(n));
    for (Index i = 0; i < n; ++i) at[uz(i)] = positions[kept[uz(i)]];
    const auto learn = [&](std::shared_ptr<const SideCodec>& codec, int dim, bool keys) {
      if (!codec || !codec->adapts()) return;
      float* to = rows.reserve(n * dim);
      for (Index i = 0; i < n; ++i)
        read(kept[uz(i)], 1, keys ? to + i * dim : nullptr, keys ? nullptr : to + i * dim,
             positions);
      if (auto own = codec->adapted(to, at.data(), n)) codec = std::move(own);
    };
    learn(key_codec_, key_dim_, true);
    learn(value_codec_, value_dim_, false);
  }

  // What is staged becomes exact rows, or a coded block if it is closed and full, or may be short.
  LESSKV_OUT_OF_LINE void flush(Staging& staging, bool whole, bool closed) {
    if (staging.count == 0) return;
    if (closed && (whole || staging.count == block_rows)) return seal(staging);
    // Rows that wait for their block lie before newer ones; a block of theirs need not be full.
    append(staging.keys.data(), staging.values.data(), staging.count, closed);
    staging.count = 0;
  }
  LESSKV_OUT_OF_LINE void seal(Staging& staging) {
    Block block = allocate(staging.count, true);
    block.first = static_cast<std::int32_t>(rows());
    block.rows = static_cast<std::uint8_t>(staging.count);
    if (key_codec_)
      key_codec_->encode(staging.keys.data(), staging.positions.data(), staging.count,
                         block.keys());
    else
      kernels().pack_keys(dtype_, block.keys(), key_dim_, 0, staging.keys.data(), key_dim_,
                          staging.count);
    if (value_codec_)
      value_codec_->encode(staging.values.data(), staging.positions.data(), staging.count,
                           values_of(block));
    else
      kernels().from_f32(dtype_, staging.values.data(), values_of(block),
                         staging.count * value_dim_);
    staging.count = 0;
    blocks_.push_back(std::move(block));
  }
  // Two neighbours become one when they fit into one block and one of them is less than half full.
  static bool joins(Index before, Index n) {
    return before + n <= block_rows && std::min(before, n) < block_rows / 2;
  }
  // A coded block of which the rows `part` of all `kept` stay. Codes are moved, not made anew, where
  // the codec can. Of two that join, codes that depend on their block are made anew, a few times at
  // most.
  LESSKV_OUT_OF_LINE void push_coded(Block& block, std::span<const std::int32_t> kept,
                                     std::span<const std::int32_t> part,
                                     const std::uint32_t* positions) {
    const Index first = rows(), n = static_cast<Index>(part.size());
    if (!blocks_.empty() && blocks_.back().coded) {
      const Index before = blocks_.back().rows;
      if (joins(before, n)) return merge(block, kept, part, positions);
    }
    if (n == block.rows) {
      blocks_.push_back(std::move(block));
    } else {
      std::array<std::uint8_t, block_rows> row{};
      for (Index i = 0; i < n; ++i)
        row[uz(i)] = static_cast<std::uint8_t>(part[uz(i)] - block.first);
      const std::span<const std::uint8_t> chosen(row.data(), part.size());
      Block smaller = allocate(n, true);
      smaller.rows = static_cast<std::uint8_t>(n);
      const std::uint32_t* at = positions + block.first;
      if (key_codec_)
        key_codec_->gather(block.keys(), at, chosen, smaller.keys());
      else
        for (Index i = 0; i < n; ++i) move_key(block, chosen[uz(i)], smaller, i);
      if (value_codec_)
        value_codec_->gather(values_of(block), at, chosen, values_of(smaller));
      else
        for (Index i = 0; i < n; ++i)
          std::memcpy(value_row(smaller, i), value_row(block, chosen[uz(i)]), value_bytes(1));
      blocks_.push_back(std::move(smaller));
    }
    blocks_.back().first = static_cast<std::int32_t>(first);
  }
  // The rows `part` of a block join the newest block.
  LESSKV_OUT_OF_LINE void merge(const Block& block, std::span<const std::int32_t> kept,
                                std::span<const std::int32_t> part,
                                const std::uint32_t* positions) {
    const Block last = std::move(blocks_.back());
    blocks_.pop_back();
    const Index before = last.rows, n = before + static_cast<Index>(part.size());
    std::array<std::uint32_t, block_rows> of_last{}, of_all{};
    std::array<std::uint8_t, block_rows> first_rows{}, more_rows{};
    for (Index i = 0; i < before; ++i) {
      first_rows[uz(i)] = static_cast<std::uint8_t>(i);
      of_all[uz(i)] = of_last[uz(i)] = positions[kept[uz(last.first + i)]];
    }
    for (Index i = before; i < n; ++i) {
      const std::int32_t row = part[uz(i - before)];
      more_rows[uz(i - before)] = static_cast<std::uint8_t>(row - block.first);
      of_all[uz(i)] = positions[row];
    }
    Block both = allocate(n, true);
    both.first = last.first;
    both.rows = static_cast<std::uint8_t>(n);
    const std::span<const std::uint8_t> first(first_rows.data(), uz(before)),
        more(more_rows.data(), part.size());
    Floats plain;
    const auto join = [&](const SideCodec& codec, const void* a, const void* b, void* to) {
      if (codec.move(a, first, to, 0) && codec.move(b, more, to, before)) return;
      const Index dim = codec.code().dim;
      float* rows = plain.reserve(block_rows * dim);
      codec.decode(a, of_last.data(), 0, before, rows);
      for (Index i = before; i < n; ++i)
        codec.decode(b, positions + block.first, more[uz(i - before)], 1, rows + i * dim);
      codec.encode(rows, of_all.data(), n, to);
    };
    if (key_codec_) {
      join(*key_codec_, last.keys(), block.keys(), both.keys());
    } else {
      for (Index i = 0; i < before; ++i) move_key(last, i, both, i);
      for (Index i = before; i < n; ++i) move_key(block, more[uz(i - before)], both, i);
    }
    if (value_codec_) {
      join(*value_codec_, values_of(last), values_of(block), values_of(both));
    } else {
      std::memcpy(value_row(both, 0), value_row(last, 0), value_bytes(before));
      for (Index i = before; i < n; ++i)
        std::memcpy(value_row(both, i), value_row(block, more[uz(i - before)]), value_bytes(1));
    }
    blocks_.push_back(std::move(both));
  }

  // Of codecs that only this head has.
  std::size_t codec_bytes() const {
    std::size_t sum = 0;
    for (const auto& codec : {key_codec_, value_codec_}) sum += codec ? codec->own_bytes() : 0;
    return sum;
  }
  std::size_t adapted_bytes() const {
    std::size_t sum = 0;
    for (const auto& codec : {key_codec_, value_codec_}) sum += codec ? codec->adapted_bytes() : 0;
    return sum;
  }
  // Of exact rows in blocks of their own, the last one cut to size.
  std::size_t exact_bytes(Index rows) const {
    const Index rest = rows % block_rows;
    return uz(rows / block_rows) * block_bytes(block_rows, false) +
           (rest > 0 ? block_bytes(round_up(rest, tile_rows), false) : 0);
  }
  // Of the list of blocks: some are not full, and it has room for more.
  static std::size_t list_bytes(Index rows) { return uz(rows / 48 + 4) * sizeof(Block); }
  std::size_t key_bytes(Index capacity, bool is_coded) const {
    return uz(round_up(is_coded && key_codec_ ? static_cast<Index>(key_codec_->bytes(capacity))
                                              : capacity * key_dim_ * size_of(dtype_),
                       64));
  }
  std::size_t value_bytes(Index rows) const { return uz(rows * value_dim_ * size_of(dtype_)); }
  LESSKV_OUT_OF_LINE std::size_t data_bytes(Index capacity, bool is_coded) const {
    return key_bytes(capacity, is_coded) +
           (is_coded && value_codec_ ? value_codec_->bytes(capacity) : value_bytes(capacity));
  }
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
        sum += uz(n) * block_bytes(tiles * tile_rows, true);
      if (const Index n = counts.exact[uz(tiles)]; n > 0)
        sum += uz(n) * block_bytes(tiles * tile_rows, false);
    }
    return sum;
  }
  // A shared_ptr with a deleter allocates a count of its own, 32 bytes with the usual standard
  // libraries.
  static constexpr std::size_t control_bytes = 32;
  std::size_t block_bytes(Index capacity, bool is_coded) const {
    return data_bytes(capacity, is_coded) + control_bytes;
  }

  // The block that holds a row.
  LESSKV_OUT_OF_LINE std::size_t find(Index row) const {
    const auto after = std::upper_bound(blocks_.begin(), blocks_.end(), row,
                                        [](Index r, const Block& b) { return r < b.first; });
    return uz(after - blocks_.begin()) - (after == blocks_.begin() ? 0 : 1);
  }

  std::byte* values_of(const Block& block) const {
    return block.data.get() + key_bytes(block.capacity, block.coded != 0);
  }
  std::byte* value_row(const Block& block, Index row) const {
    return values_of(block) + value_bytes(row);
  }

  // `whole`: the caller writes all of it.
  LESSKV_OUT_OF_LINE Block allocate(Index capacity, bool is_coded = false, bool whole = false) {
    capacity = round_up(capacity, tile_rows);
    const std::size_t n = data_bytes(capacity, is_coded);
    Block block;
    block.capacity = static_cast<std::uint8_t>(capacity);
    block.coded = is_coded;
    if (room_.left > 0 && room_.coded == is_coded && capacity == block_rows) {
      block.grouped = true;
      block.data = room_.next;
      ++groups_.back().live;
      room_.next = --room_.left > 0 ? std::shared_ptr<std::byte>(
                                          room_.next, room_.next.get() + groups_.back().block_bytes)
                                    : nullptr;
    } else {
      block.data = std::shared_ptr<std::byte>(static_cast<std::byte*>(::operator new(n, alignment)),
                                              AlignedDelete{});
    }
    // Rows that are not there must hold finite numbers.
    if (!whole) std::memset(block.data.get(), 0, n);
    return block;
  }
  // The next `count` full blocks will be one allocation.
  LESSKV_OUT_OF_LINE void group(Index count, bool is_coded) {
    if (count < least_group) return;
    room_ = {};
    std::erase_if(groups_, [](const Group& g) { return g.live == 0; });
    const std::size_t n = uz(round_up(static_cast<Index>(data_bytes(block_rows, is_coded)), 64));
    groups_.push_back({nullptr, n, count, 0});
    room_.next = allocate_pages(n * uz(count));
    room_.left = count;
    room_.coded = is_coded;
    groups_.back().begin = room_.next.get();
  }
  // Blocks of a group that this head holds, the room included: that is of the newest.
  Index held(const Group& group) const {
    return group.live + (&group == &groups_.back() ? room_.left : 0);
  }
  Group* group_of(const Block& block) {
    if (!block.grouped) return nullptr;
    return &*std::find_if(groups_.begin(), groups_.end(),
                          [&](const Group& g) { return g.has(block); });
  }
  // Blocks whose group has lost others move; `close`: the room is given back.
  LESSKV_OUT_OF_LINE void settle(bool close) {
    if (close) room_ = {};
    if (groups_.empty()) return;
    count_live();
    for (;;) {
      const auto broken = std::find_if(groups_.begin(), groups_.end(), [&](const Group& g) {
        return g.live > 0 && held(g) < g.blocks;
      });
      if (broken == groups_.end()) break;
      const Group from = *broken;
      broken->live = 0;
      const auto of_it = [&](const Block& block) { return block.grouped && from.has(block); };
      const auto first = std::find_if(blocks_.begin(), blocks_.end(), of_it);
      group(from.live, first->coded != 0);
      std::for_each(first, blocks_.end(), [&](Block& block) {
        if (!of_it(block)) return;
        Block moved = allocate(block.capacity, block.coded != 0, true);
        moved.first = block.first;
        moved.rows = block.rows;
        std::memcpy(moved.data.get(), block.data.get(),
                    data_bytes(block.capacity, block.coded != 0));
        block = std::move(moved);
      });
    }
    std::erase_if(groups_, [&](const Group& g) { return held(g) == 0; });
    groups_.shrink_to_fit();
  }
  LESSKV_OUT_OF_LINE void count_live() {
    for (Group& group : groups_) group.live = 0;
    std::size_t g = 0;  // neighbours are of one group, mostly
    for (const Block& block : blocks_) {
      if (!block.grouped) continue;
      while (!groups_[g].has(block)) g = (g + 1) % groups_.size();
      ++groups_[g].live;
    }
  }
  // Rows of exact blocks that compact() will encode.
  LESSKV_OUT_OF_LINE Index rows_to_seal(std::span<const std::int32_t> kept, Index front,
                                        Index closed) const {
    const Index end = std::min(closed, static_cast<Index>(kept.size()));
    Index sum = 0;
    for (const Block& block : blocks_) {
      if (block.coded) continue;
      const auto row = [&](Index r) {
        return static_cast<Index>(std::lower_bound(kept.begin(), kept.end(), r) - kept.begin());
      };
      sum += std::max<Index>(
          0, std::min(end, row(block.first + block.rows)) - std::max(front, row(block.first)));
    }
    return sum;
  }
  // An exact block with another capacity, or as it is.
  LESSKV_OUT_OF_LINE Block copy(const Block& from, Index capacity) {
    Block block = allocate(capacity);
    block.first = from.first;
    block.rows = from.rows;
    // Keys are whole tiles and values whole rows, so a smaller or larger block has the same
    // beginning.
    std::memcpy(block.keys(), from.keys(),
                uz(round_up(from.rows, tile_rows) * key_dim_ * size_of(dtype_)));
    std::memcpy(value_row(block, 0), value_row(from, 0), value_bytes(from.rows));
    return block;
  }
  // Makes an exact block ours before a write.
  void own(Block& block) {
    if (!mine(block)) replace(block, block.capacity);
  }
  LESSKV_OUT_OF_LINE void replace(Block& block, Index capacity) {
    put(block, copy(block, capacity));
  }
  void put(Block& block, Block fresh) {
    if (Group* group = group_of(block)) --group->live;
    block = std::move(fresh);
  }
  LESSKV_OUT_OF_LINE bool mine(const Block& block) {
    // All blocks of a group share one count, and the room has its part in it.
    const Group* group = group_of(block);
    const Index own =
        group ? group->live + (group == &groups_.back() && room_.left > 0 ? 1 : 0) : 1;
    if (block.data.use_count() > own) return false;
    // Pairs with the release when the other fork let go, so that its reads lie before our writes.
    std::atomic_thread_fence(std::memory_order_acquire);
    return true;
  }

  template <class T>
  void move_key_as(const Block& from, Index source, const Block& to, Index target) const {
    const T* s = reinterpret_cast<const T*>(from.keys()) +
                 source / tile_rows * key_dim_ * tile_rows + source % tile_rows;
    T* t = reinterpret_cast<T*>(to.keys()) + target / tile_rows * key_dim_ * tile_rows +
           target % tile_rows;
    for (Index c = 0; c < key_dim_ * tile_rows; c += tile_rows) t[c] = s[c];
  }
  void move_key(const Block& from, Index source, const Block& to, Index target) const {
    if (dtype_ == DType::f32)
      move_key_as<std::uint32_t>(from, source, to, target);
    else
      move_key_as<std::uint16_t>(from, source, to, target);
  }

  LESSKV_OUT_OF_LINE void resize(Index rows) {
    while (!blocks_.empty() && blocks_.back().first >= rows) blocks_.pop_back();
    if (!blocks_.empty())
      blocks_.back().rows = static_cast<std::uint8_t>(
          std::min<Index>(blocks_.back().rows, rows - blocks_.back().first));
  }
  LESSKV_OUT_OF_LINE void trim() {
    if (!blocks_.empty()) {
      Block& last = blocks_.back();
      if (!last.coded && round_up(last.rows, tile_rows) < last.capacity) replace(last, last.rows);
    }
    blocks_.shrink_to_fit();
  }

  int key_dim_;
  int value_dim_;
  DType dtype_;
  std::shared_ptr<const SideCodec> key_codec_, value_codec_;
  bool tight_;  // blocks grow a tile of 16 rows at a time, and no row of a block is spare
  std::vector<Block> blocks_;
  std::vector<Group> groups_;
  Room room_;
};

}  // namespace detail
LESSKV_END_NAMESPACE
