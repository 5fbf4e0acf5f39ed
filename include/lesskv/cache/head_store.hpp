// SPDX-License-Identifier: MIT
// The rows of one KV head: blocks of 64, keys with tokens in lanes, values token-major, as the
// attention kernels read them (kernels/kernels.hpp). Rows are written straight into that layout:
// the newest block is simply not full. With a codec, rows that are closed become coded blocks, which
// nobody writes to again: first the exact sinks, then coded blocks, then exact rows. Where blocks lie in
// memory: block_list.hpp; what they will weigh: bytes_forecast.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "../core/scratch.hpp"
#include "../core/shape.hpp"
#include "../core/side_codec.hpp"
#include "../kernels/tile_kernels.hpp"
#include "block_list.hpp"
#include "bytes_forecast.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

class HeadStore : private BlockList {
 public:
  HeadStore(int key_dim, int value_dim, DType dtype,
            std::shared_ptr<const SideCodec> key_codec = nullptr,
            std::shared_ptr<const SideCodec> value_codec = nullptr, bool tight = false)
      : BlockList({key_dim, value_dim, dtype, std::move(key_codec), std::move(value_codec)},
                  tight) {}

  using BlockList::bytes, BlockList::capacity, BlockList::expect, BlockList::has_codes,
      BlockList::reserve, BlockList::rows;

  bool coded() const { return format_.coded(); }
  const SideCodec* key_codec() const { return format_.key_codec.get(); }
  const SideCodec* value_codec() const { return format_.value_codec.get(); }
  // Of a store that has no codes.
  void set_codecs(std::shared_ptr<const SideCodec> keys, std::shared_ptr<const SideCodec> values) {
    format_.key_codec = std::move(keys);
    format_.value_codec = std::move(values);
  }
  // What it will hold; for as long as nothing changes.
  BytesForecast forecast() const { return {format_, blocks_}; }

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
      const bool room = has_room();
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
      kernel.pack_keys(format_.dtype, block.keys(), format_.key_dim, at, keys, format_.key_dim,
                       take);
      kernel.from_f32(format_.dtype, values, format_.value_row(block, at),
                      take * format_.value_dim);
      block.rows = static_cast<std::uint8_t>(at + take);
      keys += take * format_.key_dim;
      values += take * format_.value_dim;
      n -= take;
    }
  }

  // The first row behind the last coded one.
  LESSKV_OUT_OF_LINE Index exact_from() const {
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block)
      if (block->coded) return block->first + block->rows;
    return 0;
  }
  // Writes over exact rows, ascending; [rows][key_dim] and [rows][value_dim] f32.
  LESSKV_OUT_OF_LINE void write(std::span<const std::int32_t> rows, const float* keys,
                                const float* values) {
    const KernelTable& kernel = kernels();
    for (const std::int32_t row : rows) {
      Block& block = blocks_[find(row)];
      own(block);
      kernel.pack_keys(format_.dtype, block.keys(), format_.key_dim, row - block.first, keys,
                       format_.key_dim, 1);
      kernel.from_f32(format_.dtype, values, format_.value_row(block, row - block.first),
                      format_.value_dim);
      keys += format_.key_dim;
      values += format_.value_dim;
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
        if (block.coded && format_.key_codec)
          format_.key_codec->decode(block.keys(), of_block, at, take, keys);
        else
          kernel.unpack_keys(format_.dtype, block.keys(), format_.key_dim, at, take, keys,
                             format_.key_dim);
        keys += take * format_.key_dim;
      }
      if (values) {
        if (block.coded && format_.value_codec)
          format_.value_codec->decode(format_.values_of(block), of_block, at, take, values);
        else
          kernel.to_f32(format_.dtype, format_.value_row(block, at), values,
                        take * format_.value_dim);
        values += take * format_.value_dim;
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
    return {block.keys(), format_.values_of(block), block.rows, block.coded != 0, nullptr};
  }

  // The blocks of rows [first, first + count) and how many rows lie before them in the first block.
  // False: some are coded, or a block before the last is not full.
  LESSKV_OUT_OF_LINE bool exact(Index first, Index count, std::vector<BlockRef>& out,
                                Index& skipped) const {
    if (count == 0) return true;
    std::size_t b = find(first);
    skipped = first - blocks_[b].first;
    for (;; ++b) {
      const Block& block = blocks_[b];
      if (block.coded) return false;
      out.push_back(this->block(static_cast<Index>(b)));
      if (block.first + block.rows >= first + count) return true;
      if (block.rows < block_rows) return false;
    }
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
    const auto fill = [&](Index b, const Block& to) {
      const std::int32_t* rows = kept.data() + b * block_rows;
      const Index n = std::min(block_rows, count - b * block_rows);
      kernel.gather_keys(format_.dtype, sources.data(), format_.key_dim, rows, n, to.keys());
      kernel.gather_values(format_.dtype, sources.data(), format_.value_dim, rows, n,
                           format_.value_row(to, 0));
    };
    // Where much goes, what stays moves into memory of its own, but for groups that it fills; that part
    // first, so that nothing is allocated once rows are overwritten.
    std::vector<Block> moved;
    Index in_place = before;
    if (first < count && full >= least_group && full < before - before / 4) {
      in_place = whole_groups(full);
      first = std::min(first, in_place * block_rows);
      moved.reserve(uz(full + 1 - in_place));
      group(full - in_place, false);
    }
    for (Index b = in_place; b * block_rows < count; ++b) {
      const Index n = std::min(block_rows, count - b * block_rows);
      Block fresh = allocate(trim ? n : block_rows, false, n == block_rows);
      fresh.first = static_cast<std::int32_t>(b * block_rows);
      fresh.rows = static_cast<std::uint8_t>(n);
      fill(b, fresh);
      moved.push_back(std::move(fresh));
    }
    for (Index b = first / block_rows; b < in_place && first < count && b * block_rows < count;
         ++b) {
      Block& to = blocks_[uz(b)];
      if (mine(to)) {
        fill(b, to);
        continue;
      }
      // A block that a fork reads is replaced, not copied and then overwritten.
      Block fresh = allocate(to.capacity);
      fresh.first = to.first;
      fresh.rows = to.rows;
      fill(b, fresh);
      put(to, std::move(fresh));
    }
    if (in_place < before) {
      blocks_.resize(uz(in_place));
      std::move(moved.begin(), moved.end(), std::back_inserter(blocks_));
    }
    resize(count);
    if (trim || tight_) this->trim();
    settle(true);
  }

  // Keeps the given rows and encodes what is closed: of the rows that stay, those in [front, closed)
  // are stored by the codec; rows already coded stay so. `whole`: the last block may be short,
  // otherwise only full blocks are sealed and the rest waits. positions: of the rows before.
  LESSKV_OUT_OF_LINE void compact(std::span<const std::int32_t> kept, Index front, Index closed,
                                  bool whole, const std::uint32_t* positions) {
    if ((format_.key_codec && format_.key_codec->adapts()) ||
        (format_.value_codec && format_.value_codec->adapts()))
      adapt(kept.subspan(uz(std::min(front, static_cast<Index>(kept.size())))), closed - front,
            positions);
    const auto key_encoder = format_.key_codec ? format_.key_codec->encoder() : nullptr,
               value_encoder = format_.value_codec ? format_.value_codec->encoder() : nullptr;
    group(rows_to_seal(kept, front, closed) / block_rows, true);
    std::vector<Block> old = std::move(blocks_);
    blocks_.clear();
    blocks_.reserve(old.size() + 2);
    Staging staging(format_);
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
        for (std::size_t i = 0; i < part.size();) {
          const Index to = static_cast<Index>(first + i);
          if (to == front || to == closed) flush(staging, whole, to == closed && to > front);
          Index n = std::min(static_cast<Index>(part.size() - i), block_rows - staging.count);
          for (const Index border : {front, closed})
            if (to < border) n = std::min(n, border - to);
          staging.add(block, part.subspan(i, uz(n)), positions);
          i += uz(n);
          if (staging.count < block_rows) continue;
          if (to >= front && to < closed)
            seal(staging);
          else
            flush(staging, whole, false);
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

 private:
  // Rows on their way into a block. They are read when there is a block of them, or when they come
  // from more blocks than are to be held for their sake.
  struct Staging {
    static constexpr Index most_sources = 8;
    const BlockFormat& format;
    Floats keys, values, gathered;
    std::array<std::uint32_t, block_rows> positions{};
    Index count = 0, done = 0;                    // rows, and those that are read
    std::array<std::int32_t, block_rows> rows{};  // of the sources, one after the other
    std::array<Block, most_sources> sources;
    Index source_count = 0;
    explicit Staging(const BlockFormat& of)
        : format(of),
          keys(block_rows * of.key_dim),
          values(block_rows * of.value_dim),
          gathered(block_rows * std::max(of.key_dim, of.value_dim)) {}
    // Rows of an exact block.
    void add(const Block& block, std::span<const std::int32_t> chosen,
             const std::uint32_t* all_positions) {
      if (source_count == most_sources) gather();
      const auto before = static_cast<std::int32_t>(source_count * block_rows - block.first);
      for (const std::int32_t row : chosen) {
        rows[uz(count)] = before + row;
        positions[uz(count++)] = all_positions[row];
      }
      sources[uz(source_count++)] = block;
    }
    LESSKV_OUT_OF_LINE void gather() {
      std::array<BlockRef, most_sources> from;
      for (Index s = 0; s < source_count; ++s) {
        const Block& block = sources[uz(s)];
        from[uz(s)] = {block.keys(), format.values_of(block), block.rows, false, nullptr};
      }
      const TileKernelTable& tiles = tile_kernels();
      const KernelTable& kernel = kernels();
      const Index n = count - done;
      const std::int32_t* chosen = rows.data() + done;
      tiles.gather_keys(format.dtype, from.data(), format.key_dim, chosen, n, gathered.data());
      kernel.unpack_keys(format.dtype, gathered.data(), format.key_dim, 0, n,
                         keys.data() + done * format.key_dim, format.key_dim);
      tiles.gather_values(format.dtype, from.data(), format.value_dim, chosen, n, gathered.data());
      kernel.to_f32(format.dtype, gathered.data(), values.data() + done * format.value_dim,
                    n * format.value_dim);
      for (Index s = 0; s < source_count; ++s) sources[uz(s)].data.reset();
      source_count = 0;
      done = count;
    }
    void clear() { count = done = 0; }
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
    learn(format_.key_codec, format_.key_dim, true);
    learn(format_.value_codec, format_.value_dim, false);
  }

  // What is staged becomes exact rows, or a coded block if it is closed and full, or may be short.
  LESSKV_OUT_OF_LINE void flush(Staging& staging, bool whole, bool closed) {
    if (staging.count == 0) return;
    if (closed && (whole || staging.count == block_rows)) return seal(staging);
    // Rows that wait for their block lie before newer ones; a block of theirs need not be full.
    staging.gather();
    append(staging.keys.data(), staging.values.data(), staging.count, closed);
    staging.clear();
  }
  LESSKV_OUT_OF_LINE void seal(Staging& staging) {
    staging.gather();
    Block block = allocate(staging.count, true);
    block.first = static_cast<std::int32_t>(rows());
    block.rows = static_cast<std::uint8_t>(staging.count);
    if (format_.key_codec)
      format_.key_codec->encode(staging.keys.data(), staging.positions.data(), staging.count,
                                block.keys());
    else
      kernels().pack_keys(format_.dtype, block.keys(), format_.key_dim, 0, staging.keys.data(),
                          format_.key_dim, staging.count);
    if (format_.value_codec)
      format_.value_codec->encode(staging.values.data(), staging.positions.data(), staging.count,
                                  format_.values_of(block));
    else
      kernels().from_f32(format_.dtype, staging.values.data(), format_.values_of(block),
                         staging.count * format_.value_dim);
    staging.clear();
    blocks_.push_back(std::move(block));
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
      if (format_.key_codec)
        format_.key_codec->gather(block.keys(), at, chosen, smaller.keys());
      else
        for (Index i = 0; i < n; ++i) format_.move_key(block, chosen[uz(i)], smaller, i);
      if (format_.value_codec)
        format_.value_codec->gather(format_.values_of(block), at, chosen,
                                    format_.values_of(smaller));
      else
        for (Index i = 0; i < n; ++i)
          std::memcpy(format_.value_row(smaller, i), format_.value_row(block, chosen[uz(i)]),
                      format_.value_bytes(1));
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
    if (format_.key_codec) {
      join(*format_.key_codec, last.keys(), block.keys(), both.keys());
    } else {
      for (Index i = 0; i < before; ++i) format_.move_key(last, i, both, i);
      for (Index i = before; i < n; ++i) format_.move_key(block, more[uz(i - before)], both, i);
    }
    if (format_.value_codec) {
      join(*format_.value_codec, format_.values_of(last), format_.values_of(block),
           format_.values_of(both));
    } else {
      std::memcpy(format_.value_row(both, 0), format_.value_row(last, 0),
                  format_.value_bytes(before));
      for (Index i = before; i < n; ++i)
        std::memcpy(format_.value_row(both, i), format_.value_row(block, more[uz(i - before)]),
                    format_.value_bytes(1));
    }
    blocks_.push_back(std::move(both));
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
};

}  // namespace detail
LESSKV_END_NAMESPACE
