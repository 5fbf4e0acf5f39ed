// SPDX-License-Identifier: MIT
// The blocks of a head and their memory. Blocks are shared by forks and copied when one of them writes.
// Many blocks at once (a prompt, or what is left of it) are few allocations, groups: stretches of
// memory of a huge page or a little more. Groups hold full blocks only, and no group outlives a
// compression with a hole in it: its other blocks move together, so that memory is really given
// back. Groups that stay whole need not move: writing memory that the system has just given takes longer
// than moving the rows.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "../core/scratch.hpp"
#include "block.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

class BlockList {
 public:
  BlockList(BlockFormat format, bool tight) : format_(std::move(format)), tight_(tight) {}

  const BlockFormat& format() const { return format_; }
  Index rows() const { return blocks_.empty() ? 0 : blocks_.back().first + blocks_.back().rows; }
  bool has_codes() const {
    return std::any_of(blocks_.begin(), blocks_.end(),
                       [](const Block& block) { return block.coded != 0; });
  }
  // Rows that fit without an allocation.
  Index capacity() const {
    const Index room = room_.coded ? 0 : room_.left * block_rows;
    return room + (blocks_.empty() || blocks_.back().coded
                       ? rows()
                       : blocks_.back().first + blocks_.back().capacity);
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

  // Bytes allocated, allocation bookkeeping included.
  LESSKV_OUT_OF_LINE std::size_t bytes() const {
    std::size_t sum = blocks_.capacity() * sizeof(Block) + groups_.capacity() * sizeof(Group) +
                      room_.later.capacity() * sizeof(room_.next) + format_.codec_bytes();
    for (const Block& block : blocks_)
      if (!block.grouped) sum += format_.block_bytes(block.capacity, block.coded != 0);
    for (const Group& group : groups_)
      if (held(group) > 0) sum += uz(group.blocks) * group.block_bytes + BlockFormat::control_bytes;
    return sum;
  }

 private:
  // Blocks of one allocation, which they and the room hold.
  struct Group {
    const std::byte* begin;
    std::size_t block_bytes;
    Index blocks, live;
    bool has(const Block& block) const {
      return block.data.get() >= begin && block.data.get() < begin + uz(blocks) * block_bytes;
    }
  };
  // The blocks of the newest groups that are not taken yet. A fork does not get them.
  struct Room {
    std::shared_ptr<std::byte> next;
    Index here = 0;                                 // in the group of `next`
    Index left = 0;                                 // in all
    std::vector<std::shared_ptr<std::byte>> later;  // groups that are not begun, the last one first
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
      std::swap(here, other.here);
      std::swap(left, other.left);
      std::swap(later, other.later);
      std::swap(coded, other.coded);
    }
  };

 protected:
  // The next full exact block lies in the room that is there.
  bool has_room() const { return room_.left > 0 && !room_.coded; }
  static constexpr Index least_group = 8;  // blocks

  // The block that holds a row.
  LESSKV_OUT_OF_LINE std::size_t find(Index row) const {
    const auto after = std::upper_bound(blocks_.begin(), blocks_.end(), row,
                                        [](Index r, const Block& b) { return r < b.first; });
    return uz(after - blocks_.begin()) - (after == blocks_.begin() ? 0 : 1);
  }

  // `whole`: the caller writes all of it.
  LESSKV_OUT_OF_LINE Block allocate(Index capacity, bool is_coded = false, bool whole = false) {
    capacity = round_up(capacity, tile_rows);
    const std::size_t n = format_.data_bytes(capacity, is_coded);
    Block block;
    block.capacity = static_cast<std::uint8_t>(capacity);
    block.coded = is_coded;
    if (room_.left > 0 && room_.coded == is_coded && capacity == block_rows) {
      block.grouped = true;
      Group& group = groups_[begun()];
      block.data = room_.next;
      ++group.live;
      --room_.left;
      if (--room_.here > 0)
        room_.next = std::shared_ptr<std::byte>(room_.next, room_.next.get() + group.block_bytes);
      else
        begin_next();
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
    room_ = {};
    if (count < least_group) return;
    std::erase_if(groups_, [](const Group& g) { return g.live == 0; });
    const std::size_t n =
        uz(round_up(static_cast<Index>(format_.data_bytes(block_rows, is_coded)), 64));
    const Index page = static_cast<Index>((huge_page + n - 1) / n);
    const Index most = std::max(least_group, page), parts = std::max<Index>(1, count / most);
    groups_.reserve(groups_.size() + uz(parts));
    room_.later.reserve(uz(parts));
    for (Index i = 0; i < parts; ++i) {
      const Index blocks = i + 1 < parts ? most : count - i * most;
      room_.later.insert(room_.later.begin(), allocate_pages(n * uz(blocks)));
      groups_.push_back({room_.later.front().get(), n, blocks, 0});
    }
    room_.left = count;
    room_.coded = is_coded;
    begin_next();
  }
  // The group that the room is in; those after it are all room.
  std::size_t begun() const { return groups_.size() - 1 - room_.later.size(); }
  void begin_next() {
    room_.next.reset();
    if (room_.later.empty()) return;
    room_.next = std::move(room_.later.back());
    room_.later.pop_back();
    room_.here = groups_[begun()].blocks;
  }
  // Blocks of a group that this head holds, the room included.
  Index held(const Group& group) const {
    const auto i = static_cast<std::size_t>(&group - groups_.data());
    return i > begun() ? group.blocks : group.live + (i == begun() ? room_.here : 0);
  }
  // Leading blocks, `most` at most, in groups on huge pages that hold nothing else and are ours.
  LESSKV_OUT_OF_LINE Index whole_groups(Index most) {
    Index n = 0;
    while (n < most) {
      const Group* group = group_of(blocks_[uz(n)]);
      if (!group || group->live < group->blocks || n + group->blocks > most ||
          uz(group->blocks) * group->block_bytes < huge_page || !mine(blocks_[uz(n)]))
        break;
      n += group->blocks;
    }
    return n;
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
                    format_.data_bytes(block.capacity, block.coded != 0));
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
  // An exact block with another capacity, or as it is.
  LESSKV_OUT_OF_LINE Block copy(const Block& from, Index capacity) {
    Block block = allocate(capacity);
    block.first = from.first;
    block.rows = from.rows;
    // Keys are whole tiles and values whole rows, so a smaller or larger block has the same
    // beginning.
    std::memcpy(block.keys(), from.keys(),
                uz(round_up(from.rows, tile_rows) * format_.key_dim * size_of(format_.dtype)));
    std::memcpy(format_.value_row(block, 0), format_.value_row(from, 0),
                format_.value_bytes(from.rows));
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
        group ? group->live + (group == &groups_[begun()] && room_.here > 0 ? 1 : 0) : 1;
    if (block.data.use_count() > own) return false;
    // Pairs with the release when the other fork let go, so that its reads lie before our writes.
    std::atomic_thread_fence(std::memory_order_acquire);
    return true;
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

  BlockFormat format_;
  bool tight_;  // blocks grow a tile of 16 rows at a time, and no row of a block is spare
  std::vector<Block> blocks_;

 private:
  std::vector<Group> groups_;
  Room room_;
};

}  // namespace detail
LESSKV_END_NAMESPACE
