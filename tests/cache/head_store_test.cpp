// SPDX-License-Identifier: MIT
// The rows of a head against plain vectors, through random sequences of everything that moves them:
// portions of any size, room taken in advance, selection, encoding, truncation, forks that write.
#include <gtest/gtest.h>

#include <lesskv/cache/head_store.hpp>
#include <lesskv/codec/int_code.hpp>
#include <numeric>
#include <random>

#include "support.hpp"

namespace head_store_test {

using namespace support;
using detail::HeadStore;

constexpr int dim = 8;

// A store, and the number that each of its rows holds in every channel.
struct Head {
  HeadStore store;
  std::vector<float> rows;
  Index closed = 0;  // rows of the codec
};

class RandomHead : public testing::TestWithParam<bool> {
 protected:
  Head fresh() const {
    std::shared_ptr<const SideCodec> keys, values;
    if (GetParam()) {
      keys = IntCode{.bits = 8}.codec(Side::keys, dim);
      values = IntCode{.bits = 8}.codec(Side::values, dim);
    }
    return {HeadStore(dim, dim, DType::f32, keys, values), {}, 0};
  }
  Index any(Index below) { return static_cast<Index>(random() % static_cast<unsigned>(below)); }

  void append(Head& head) {
    // A prompt, a chunk, one row.
    const Index n = any(3) == 0 ? any(2000) : any(2) == 0 ? any(70) : 1;
    if (any(2) == 0) head.store.expect(n);
    for (Index done = 0; done < n;) {
      const Index part = std::min<Index>(n - done, 64);
      Matrix keys(part, dim), values(part, dim);
      for (Index i = 0; i < part; ++i) {
        head.rows.push_back(next_);
        keys.row(i).setConstant(next_);
        values.row(i).setConstant(-next_);
        next_ = next_ > 399 ? 1 : next_ + 1;
      }
      head.store.append(keys.data(), values.data(), part);
      done += part;
    }
  }
  void keep(Head& head) {
    std::vector<std::int32_t> kept;
    // None, few, most, all but one stretch, all.
    const Index kind = any(5), n = static_cast<Index>(head.rows.size()), cut = any(n + 1);
    for (Index i = 0; i < n; ++i)
      if (kind == 4 || (kind == 3 && (i < cut || i > cut + 100)) || (kind == 2 && any(10) > 0) ||
          (kind == 1 && any(10) == 0))
        kept.push_back(static_cast<std::int32_t>(i));
    std::vector<float> left;
    for (const auto i : kept) left.push_back(head.rows[std::size_t(i)]);
    const bool whole = any(2) == 0;
    if (head.store.coded()) {
      std::vector<std::uint32_t> positions(head.rows.size());
      std::iota(positions.begin(), positions.end(), 0U);
      // Rows once encoded stay so; nothing exact lies between them.
      Index coded = 0;
      for (const auto i : kept) coded += i < head.closed;
      const Index m = static_cast<Index>(kept.size());
      head.closed = std::max(coded, m - any(100));
      head.store.compact(kept, 0, head.closed, whole, positions.data());
      head.closed = m - uncoded(head);
    } else {
      head.store.keep(kept, whole);
    }
    head.rows = std::move(left);
  }
  static Index uncoded(const Head& head) { return head.store.uncoded(0, head.store.rows()); }
  void truncate(Head& head) {
    const Index n = static_cast<Index>(head.rows.size());
    // Coded blocks are not cut.
    const Index to = std::max(n - any(2) * any(n + 1), head.closed);
    head.store.truncate(to);
    head.rows.resize(std::size_t(to));
  }
  void check(const Head& head) const {
    const Index n = static_cast<Index>(head.rows.size());
    ASSERT_EQ(head.store.rows(), n);
    if (n == 0) return;
    Matrix keys(n, dim), values(n, dim);
    std::vector<std::uint32_t> positions(head.rows.size());
    head.store.read(0, n, keys.data(), values.data(), positions.data());
    const float near = GetParam() ? 0.4f : 0.f;
    for (Index i = 0; i < n; ++i)
      for (int c = 0; c < dim; ++c) {
        ASSERT_NEAR(keys(i, c), head.rows[std::size_t(i)], near) << i;
        ASSERT_NEAR(values(i, c), -head.rows[std::size_t(i)], near) << i;
      }
  }

  std::mt19937 random{7};
  float next_ = 1;
};

TEST_P(RandomHead, HoldsWhatPlainVectorsHold) {
  std::vector<Head> heads{fresh()};
  for (int step = 0; step < 1500; ++step) {
    Head& head = heads[std::size_t(any(static_cast<Index>(heads.size())))];
    switch (any(8)) {
      case 0:
        keep(head);
        break;
      case 1:
        truncate(head);
        break;
      case 2:
        head.store.reserve(any(1500));
        break;
      case 3: {
        Head fork = head;
        if (heads.size() < 4)
          heads.push_back(std::move(fork));
        else
          heads[std::size_t(any(4))] = std::move(fork);
        break;
      }
      default:
        if (head.rows.size() < 6000) append(head);
    }
    for (const Head& each : heads) check(each);
    if (HasFatalFailure()) FAIL() << "after step " << step;
  }
}
INSTANTIATE_TEST_SUITE_P(Storage, RandomHead, testing::Bool(),
                         [](const auto& of) { return of.param ? "coded" : "exact"; });

TEST(HeadStore, RoomIsTakenOnceAndGivenBack) {
  HeadStore store(64, 64, DType::f16);
  store.reserve(4096);
  const std::size_t room = store.bytes();
  EXPECT_GE(room, 4096u * 256);
  EXPECT_GE(store.capacity(), 4096);
  const Matrix rows = normal(64, 64, 1);
  for (int i = 0; i < 64; ++i) store.append(rows.data(), rows.data(), 64);
  EXPECT_EQ(store.bytes(), room) << "the rows went into the room";
  // Every tenth row stays: so much memory, and no more, is held.
  std::vector<std::int32_t> kept;
  for (int i = 0; i < 4096; i += 10) kept.push_back(i);
  store.keep(kept, true);
  EXPECT_LE(store.bytes(), store.forecast().bytes_for(410, 0, 0, true));
  EXPECT_LT(static_cast<double>(store.bytes()), 0.11 * static_cast<double>(room));
}

TEST(HeadStore, TruncationGivesMemoryBack) {
  HeadStore store(64, 64, DType::f16);
  const Matrix rows = normal(64, 64, 1);
  store.expect(4096);
  for (int i = 0; i < 64; ++i) store.append(rows.data(), rows.data(), 64);
  const std::size_t full = store.bytes();
  store.truncate(1000);
  EXPECT_LT(static_cast<double>(store.bytes()), 0.26 * static_cast<double>(full));
  Matrix keys(1000, 64);
  store.read(0, 1000, keys.data(), nullptr);
  for (Index i = 0; i < 1000; ++i)
    ASSERT_LT((keys.row(i) - rows.row(i % 64)).cwiseAbs().maxCoeff(), 2e-3f) << i;
}

TEST(HeadStore, BlocksOfOnePromptLieInOneStretch) {
  HeadStore store(64, 64, DType::f16);
  const Matrix rows = normal(64, 64, 1);
  store.expect(8192);
  for (int i = 0; i < 128; ++i) store.append(rows.data(), rows.data(), 64);
  const auto* first = static_cast<const std::byte*>(store.block(0).keys);
  for (Index b = 0; b < 128; ++b)
    EXPECT_EQ(static_cast<const std::byte*>(store.block(b).keys) - first, b * 64 * 256);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % detail::huge_page, 0u);
  // A fork that writes into the stretch leaves the other as it is.
  HeadStore fork = store;
  fork.truncate(8190);
  fork.append(normal(2, 64, 2).data(), normal(2, 64, 3).data(), 2);
  Matrix keys(8192, 64);
  store.read(0, 8192, keys.data(), nullptr);
  for (Index i = 0; i < 8192; ++i)
    ASSERT_LT((keys.row(i) - rows.row(i % 64)).cwiseAbs().maxCoeff(), 2e-3f) << i;
}

// Several groups of 32 blocks. What stays fills the first ones where they are; the rest moves.
TEST(HeadStore, GroupsThatStayWholeAreNotMoved) {
  const auto filled = [](Index reserved, Index rows) {
    HeadStore store(128, 128, DType::f32);
    store.reserve(reserved);
    Matrix part(64, 128);
    for (Index first = 0; first < rows; first += 64) {
      for (Index i = 0; i < 64; ++i) part.row(i).setConstant(static_cast<float>(first + i));
      const Matrix values = -part;
      store.append(part.data(), values.data(), std::min<Index>(64, rows - first));
    }
    return store;
  };
  const auto expect_rows = [](const HeadStore& store, const std::vector<std::int32_t>& rows) {
    const auto n = static_cast<Index>(rows.size());
    ASSERT_EQ(store.rows(), n);
    Matrix keys(n, 128), values(n, 128);
    store.read(0, n, keys.data(), values.data());
    for (Index i = 0; i < n; ++i) {
      const auto want = static_cast<float>(rows[static_cast<std::size_t>(i)]);
      ASSERT_TRUE((keys.row(i).array() == want).all() && (values.row(i).array() == -want).all())
          << "row " << i << " is not " << want;
    }
  };
  const auto all = [](Index rows) {
    std::vector<std::int32_t> out(static_cast<std::size_t>(rows));
    std::iota(out.begin(), out.end(), 0);
    return out;
  };
  std::mt19937 random(5);
  for (const auto& [reserved, rows] :
       {std::pair<Index, Index>{8192, 8192}, {8192, 5000}, {9000, 8990}})
    for (const bool forked : {false, true})
      for (const unsigned percent : {20u, 30u, 55u, 70u, 95u}) {
        HeadStore store = filled(reserved, rows);
        const std::size_t before = store.bytes();
        std::vector<std::int32_t> kept;
        for (std::int32_t r = 0; r < rows; ++r)
          if (random() % 100 < percent) kept.push_back(r);
        const auto n = static_cast<Index>(kept.size());
        const void* first = store.block(0).keys;
        HeadStore fork(128, 128, DType::f32);
        if (forked) fork = store;
        store.keep(kept, true);
        expect_rows(store, kept);
        EXPECT_EQ(store.block(0).keys == first, !forked && n >= 32 * 64) << percent;
        EXPECT_LE(store.bytes(), store.forecast().bytes_for(n, 0, 0, true));
        EXPECT_LT(store.bytes(), before);
        if (forked) expect_rows(fork, all(rows));
        // And again, with new rows behind.
        const Matrix more = Matrix::Constant(100, 128, 3.f), less = -more;
        store.append(more.data(), less.data(), 100);
        std::vector<std::int32_t> second, found;
        for (std::int32_t r = 0; r < n + 100; r += 1 + static_cast<std::int32_t>(random() % 3)) {
          second.push_back(r);
          found.push_back(r < n ? kept[static_cast<std::size_t>(r)] : 3);
        }
        store.keep(second, true);
        expect_rows(store, found);
      }
}

}  // namespace head_store_test
