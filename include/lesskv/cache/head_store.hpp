// SPDX-License-Identifier: MIT
// The rows of one KV head: blocks of 64, keys with tokens in lanes, values token-major, as the
// attention kernels read them (kernels/kernels.hpp). Rows are written straight into that layout:
// the newest block is simply not full. Blocks are shared by forks and copied when one of them
// writes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "../core/scratch.hpp"
#include "../core/shape.hpp"
#include "../kernels/tile_kernels.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

inline constexpr Index block_rows = 64;
inline constexpr Index tile_rows = 16;

class HeadStore {
 public:
  HeadStore(int key_dim, int value_dim, DType dtype)
      : key_dim_(key_dim), value_dim_(value_dim), dtype_(dtype) {}

  Index rows() const { return rows_; }
  // Rows that fit without an allocation.
  Index capacity() const {
    return blocks_.empty()
               ? 0
               : static_cast<Index>(blocks_.size() - 1) * block_rows + blocks_.back().capacity;
  }

  // Appends n rows, [n][key_dim] and [n][value_dim] f32, contiguous. All numbers must fit the
  // storage type.
  void append(const float* keys, const float* values, Index n) {
    const KernelTable& kernel = kernels();
    while (n > 0) {
      const Index at = rows_ % block_rows;
      // One row at a time takes a whole block at once: the next 63 steps then allocate nothing.
      const Index take = std::min(n, block_rows - at);
      const Index wanted = take >= tile_rows ? round_up(at + take, tile_rows) : block_rows;
      if (at == 0) {
        blocks_.push_back(allocate(wanted));
      } else if (blocks_.back().capacity < at + take) {
        blocks_.back() = copy(blocks_.back(), at, wanted);
      } else {
        own(blocks_.back());
      }
      Block& block = blocks_.back();
      kernel.pack_keys(dtype_, block.keys(), key_dim_, at, keys, key_dim_, take);
      kernel.from_f32(dtype_, values, value_row(block, at), take * value_dim_);
      rows_ += take;
      keys += take * key_dim_;
      values += take * value_dim_;
      n -= take;
    }
  }

  // Rows [first, first + count) as f32, [count][dim]; either output may be null.
  void read(Index first, Index count, float* keys, float* values) const {
    const KernelTable& kernel = kernels();
    for (Index done = 0; done < count;) {
      const Index at = (first + done) % block_rows;
      const Index take = std::min(count - done, block_rows - at);
      const Block& block = blocks_[uz((first + done) / block_rows)];
      if (keys)
        kernel.unpack_keys(dtype_, block.keys(), key_dim_, at, take, keys + done * key_dim_,
                           key_dim_);
      if (values)
        kernel.to_f32(dtype_, value_row(block, at), values + done * value_dim_, take * value_dim_);
      done += take;
    }
  }

  // What the kernels read.
  Index block_count() const { return static_cast<Index>(blocks_.size()); }
  BlockRef block(Index b) const {
    const Block& block = blocks_[uz(b)];
    return {block.keys(), value_row(block, 0), std::min(block_rows, rows_ - b * block_rows)};
  }

  // Keeps the given rows (ascending) and closes the gaps in place; a destination never lies behind
  // its source. `trim` gives back the unused part of the last block too.
  void keep(std::span<const std::int32_t> kept, bool trim) {
    const TileKernelTable& kernel = tile_kernels();
    const Index count = static_cast<Index>(kept.size());
    Index first = 0;  // the first row that moves
    while (first < count && kept[uz(first)] == first) ++first;
    thread_local std::vector<BlockRef> sources;
    sources.clear();
    for (Index b = 0; b < block_count(); ++b) sources.push_back(block(b));
    for (Index b = first / block_rows; b * block_rows < count && first < count; ++b) {
      const Index n = std::min(block_rows, count - b * block_rows);
      const std::int32_t* rows = kept.data() + b * block_rows;
      Block& to = blocks_[uz(b)];
      // A block that a fork reads is replaced, not copied and then overwritten.
      Block fresh = mine(to) ? Block{} : allocate(to.capacity);
      Block& target = fresh.data ? fresh : to;
      kernel.gather_keys(dtype_, sources.data(), key_dim_, rows, n, target.keys());
      kernel.gather_values(dtype_, sources.data(), value_dim_, rows, n, value_row(target, 0));
      if (fresh.data) to = std::move(fresh);
    }
    resize(count, trim);
  }

  // Drops all rows from `rows` on.
  void truncate(Index rows) { resize(std::min(rows, rows_), false); }

  // Bytes allocated, allocation bookkeeping included.
  std::size_t bytes() const {
    std::size_t sum = blocks_.capacity() * sizeof(Block);
    for (const Block& block : blocks_) sum += block_bytes(block.capacity);
    return sum;
  }
  // The same for a head of `rows` rows, its last block cut to size or whole.
  std::size_t bytes_for(Index rows, bool trimmed) const {
    const Index full = rows / block_rows, rest = rows % block_rows;
    std::size_t sum = uz(full) * (block_bytes(block_rows) + sizeof(Block));
    if (rest > 0)
      sum += block_bytes(trimmed ? round_up(rest, tile_rows) : block_rows) + sizeof(Block);
    // Between compressions the list of blocks may have doubled.
    return trimmed ? sum : sum + uz(full + 1) * sizeof(Block);
  }

 private:
  struct Block {
    std::shared_ptr<std::byte> data;
    Index capacity = 0;
    std::byte* keys() const { return data.get(); }
  };

  std::size_t key_bytes(Index capacity) const {
    return uz(round_up(capacity * key_dim_ * size_of(dtype_), 64));
  }
  std::size_t data_bytes(Index capacity) const {
    return key_bytes(capacity) + uz(capacity * value_dim_ * size_of(dtype_));
  }
  // A shared_ptr with a deleter allocates a count of its own, 32 bytes with the usual standard
  // libraries.
  std::size_t block_bytes(Index capacity) const { return data_bytes(capacity) + 32; }

  std::byte* value_row(const Block& block, Index row) const {
    return block.data.get() + key_bytes(block.capacity) + row * value_dim_ * size_of(dtype_);
  }

  Block allocate(Index capacity) const {
    const std::size_t n = data_bytes(capacity);
    Block block{std::shared_ptr<std::byte>(static_cast<std::byte*>(::operator new(n, alignment)),
                                           AlignedDelete{}),
                capacity};
    std::memset(block.data.get(), 0, n);  // rows that are not there must hold finite numbers
    return block;
  }
  Block copy(const Block& from, Index rows, Index capacity) const {
    Block block = allocate(capacity);
    // Keys are whole tiles and values whole rows, so a smaller or larger block has the same
    // beginning.
    std::memcpy(block.keys(), from.keys(),
                uz(round_up(rows, tile_rows) * key_dim_ * size_of(dtype_)));
    std::memcpy(value_row(block, 0), value_row(from, 0), uz(rows * value_dim_ * size_of(dtype_)));
    return block;
  }
  // Makes the block ours before a write.
  void own(Block& block) const {
    if (!mine(block)) block = copy(block, block.capacity, block.capacity);
  }
  static bool mine(const Block& block) {
    if (block.data.use_count() > 1) return false;
    // Pairs with the release when the other fork let go, so that its reads lie before our writes.
    std::atomic_thread_fence(std::memory_order_acquire);
    return true;
  }

  void resize(Index rows, bool trim) {
    rows_ = rows;
    blocks_.resize(uz((rows + block_rows - 1) / block_rows));
    if (!trim) return;
    if (const Index rest = rows % block_rows;
        rest > 0 && round_up(rest, tile_rows) < blocks_.back().capacity)
      blocks_.back() = copy(blocks_.back(), rest, round_up(rest, tile_rows));
    blocks_.shrink_to_fit();
  }

  int key_dim_;
  int value_dim_;
  DType dtype_;
  Index rows_ = 0;
  std::vector<Block> blocks_;
};

}  // namespace detail
LESSKV_END_NAMESPACE
