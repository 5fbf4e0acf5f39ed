// SPDX-License-Identifier: MIT
// bytes() against an allocator that counts; memory really falls; steady decoding allocates nothing.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <lesskv/codec/lloyd_max.hpp>
#include <lesskv/fold/centroids.hpp>
#include <lesskv/score/keydiff.hpp>
#include <new>

#include "codec/csr_support.hpp"
#include "support.hpp"

namespace {
std::atomic<std::size_t> live{0}, calls{0}, peak{0};

void* counted(std::size_t n, std::size_t align) {
  // The size is remembered in front of the block.
  const std::size_t room = std::max<std::size_t>(align, 64);
  char* raw = static_cast<char*>(std::aligned_alloc(room, (n + room + room - 1) / room * room));
  if (!raw) throw std::bad_alloc();
  std::size_t size = n;
  std::memcpy(raw, &size, sizeof size);
  const std::size_t now = live.fetch_add(n) + n;
  calls.fetch_add(1);
  if (now > peak.load()) peak.store(now);
  return raw + room;
}
void release(void* p, std::size_t align) {
  if (!p) return;
  char* raw = static_cast<char*>(p) - std::max<std::size_t>(align, 64);
  std::size_t size;
  std::memcpy(&size, raw, sizeof size);
  live.fetch_sub(size);
  std::free(raw);
}
}  // namespace

void* operator new(std::size_t n) { return counted(n, 64); }
void* operator new[](std::size_t n) { return counted(n, 64); }
void* operator new(std::size_t n, std::align_val_t a) {
  return counted(n, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t n, std::align_val_t a) {
  return counted(n, static_cast<std::size_t>(a));
}
// The standard library's temporary buffers use these; a sanitizer's own would not count.
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return counted(n, 64); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return counted(n, 64); }
void operator delete(void* p, const std::nothrow_t&) noexcept { release(p, 64); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { release(p, 64); }
void operator delete(void* p) noexcept { release(p, 64); }
void operator delete[](void* p) noexcept { release(p, 64); }
void operator delete(void* p, std::size_t) noexcept { release(p, 64); }
void operator delete[](void* p, std::size_t) noexcept { release(p, 64); }
void operator delete(void* p, std::align_val_t a) noexcept {
  release(p, static_cast<std::size_t>(a));
}
void operator delete[](void* p, std::align_val_t a) noexcept {
  release(p, static_cast<std::size_t>(a));
}
void operator delete(void* p, std::size_t, std::align_val_t a) noexcept {
  release(p, static_cast<std::size_t>(a));
}
void operator delete[](void* p, std::size_t, std::align_val_t a) noexcept {
  release(p, static_cast<std::size_t>(a));
}

namespace bytes_test {

using namespace support;

const Shape shape{.layers = 4, .query_heads = 6, .kv_heads = 2, .head_dim = 64};

// Feeds 1500 tokens, compresses, decodes; bytes() must be what the allocator gave, at every stage.
template <class... Ps>
void expect_honest_bytes(Ps... policies) {
  const auto in = tensors(shape, 1700, 31);
  Matrix out(1500, 6 * 64);
  {
    // What threads keep as scratch is not held by a cache: let it grow first.
    KVCache warm(shape, policies...);
    for (int l = 0; l < 4; ++l) {
      warm.append(l, in[std::size_t(l)].k(0, 1500), in[std::size_t(l)].v(0, 1500));
      warm.attend(l, in[std::size_t(l)].q(0, 1500), out.data());
    }
    warm.compress();
    for (Index at = 1500; at < 1700; ++at) {
      for (int l = 0; l < 4; ++l) {
        warm.append(l, in[std::size_t(l)].k(at, 1), in[std::size_t(l)].v(at, 1));
        warm.attend(l, in[std::size_t(l)].q(at, 1), out.data());
      }
      warm.compress();
    }
  }
  const std::size_t before = live.load();
  auto cache = std::make_unique<KVCache<Ps...>>(shape, policies...);
  const auto check = [&](const char* when) {
    const double counted = static_cast<double>(live.load() - before),
                 said = static_cast<double>(cache->bytes());
    EXPECT_NEAR(said / counted, 1.0, 0.05)
        << when << ": bytes() " << said << ", allocated " << counted;
  };
  for (int l = 0; l < 4; ++l) {
    cache->append(l, in[std::size_t(l)].k(0, 1500), in[std::size_t(l)].v(0, 1500));
    cache->attend(l, in[std::size_t(l)].q(0, 1500), out.data());
  }
  check("after the prompt");
  const std::size_t full = live.load() - before;
  peak.store(live.load());
  cache->compress();
  check("after compress()");
  if (sizeof...(Ps) > 0) {
    EXPECT_LT(static_cast<double>(live.load() - before), 0.45 * static_cast<double>(full))
        << "memory falls";
    // Law 14: at most 1.15 times what was held, plus one head's rows in f32.
    EXPECT_LT(static_cast<double>(peak.load() - before),
              1.15 * static_cast<double>(full) + 1500 * 128 * 4.0);
  }
  for (Index at = 1500; at < 1700; ++at) {
    for (int l = 0; l < 4; ++l) {
      cache->append(l, in[std::size_t(l)].k(at, 1), in[std::size_t(l)].v(at, 1));
      cache->attend(l, in[std::size_t(l)].q(at, 1), out.data());
    }
    cache->compress();
  }
  check("after decoding");
}

TEST(Bytes, EqualWhatTheAllocatorGave) {
  expect_honest_bytes();
  expect_honest_bytes(SmallKeys{}, Keep{.fraction = 0.25, .sinks = 4});
  expect_honest_bytes(WindowAttention{.window = 64}, Keep{.tokens = 375});
  expect_honest_bytes(SumOfAttention{}, Tilted{}, Keep{.tokens = 375, .recent = 16});
  expect_honest_bytes(ChunkValues{}, Keep{.fraction = 0.25, .sinks = 4});
  expect_honest_bytes(KeyDiff{}, Keep{.bytes = 1000000, .sinks = 4});
  expect_honest_bytes(KeyDiff{}, Keep{.bytes = 1000000, .sinks = 4}, LloydMax{});
  expect_honest_bytes(KeyDiff{}, Keep{.fraction = 0.25, .sinks = 4}, Centroids{});
  expect_honest_bytes(SumOfAttention{}, Tilted{}, Keep{.fraction = 0.25}, Centroids{}, LloydMax{});
}

// Dictionaries are shared by all heads and caches: counted once. A head's own atoms are its own.
TEST(Bytes, OfCSREqualWhatTheAllocatorGave) {
  const Shape& of = csr::shape;
  const auto in = tensors(of, 1100, 35);
  struct Kind {
    const char* name;
    bool before_rope;
    int chunks, atoms;
    Index sampled, guard;
    SparseCode format;
  };
  const Kind kinds[] = {{"packed", true, 1, 5, 0, 0, SparseCode::packed},
                        {"pairs in chunks", false, 2, 4, 0, 0, SparseCode::pairs},
                        {"sampled", true, 1, 3, 24, 0, SparseCode::packed},
                        {"sampled and guard", true, 2, 4, 16, 16, SparseCode::lexico}};
  for (const Kind& kind : kinds) {
    SCOPED_TRACE(kind.name);
    const auto cut = [&](const Dictionaries& dictionaries) {
      return CSR{.atoms = kind.atoms,
                 .format = kind.format,
                 .dictionary = dictionaries,
                 .sampled = kind.sampled,
                 .guard = kind.guard};
    };
    const auto make = [&] { return Dictionaries(csr::example(kind.before_rope, kind.chunks)); };
    const auto drive = [&](auto& cache, auto&& check) {
      feed(cache, in, 0, 900);
      check("after the prompt");
      cache.compress();
      check("after compress()");
      for (Index at = 900; at < 1100; ++at) {
        feed(cache, in, at, 1);
        cache.compress();
        if (at % 50 == 0) check("while decoding");
      }
      check("after decoding");
    };
    {
      KVCache warm(of, Keep{.tokens = 500, .sinks = 4}, KeyDiff{}, cut(make()));
      drive(warm, [](const char*) {});
    }
    const std::size_t before = live.load();
    const Dictionaries dictionaries = make();
    const auto expect_equal = [&](auto& cache, const char* when) {
      const double counted = static_cast<double>(live.load() - before),
                   said = static_cast<double>(cache.bytes());
      EXPECT_NEAR(said / counted, 1.0, 0.05)
          << when << ": bytes() " << said << ", allocated " << counted;
    };
    using Cache = KVCache<Keep, KeyDiff, CSR>;
    const Keep keep{.tokens = 500, .sinks = 4};
    auto cache = std::make_unique<Cache>(of, keep, KeyDiff{}, cut(dictionaries));
    drive(*cache, [&](const char* when) { expect_equal(*cache, when); });
    EXPECT_GT(cache->bytes_shared(), dictionaries.set().bytes());
    // A second cache pays for what it has alone, and shows what the first one paid for too.
    const std::size_t first = live.load();
    auto second = std::make_unique<Cache>(of, keep, KeyDiff{}, cut(dictionaries));
    drive(*second, [](const char*) {});
    const double own = static_cast<double>(second->bytes() - second->bytes_shared());
    EXPECT_NEAR(own / static_cast<double>(live.load() - first), 1.0, 0.05);
    // The dictionaries live as long as one cache does.
    cache.reset();
    expect_equal(*second, "alone");
  }
}

// Law 10: between two seals of a block a step allocates nothing, policies and all.
template <class... Ps>
void expect_silent_decode(Ps... policies) {
  const auto in = tensors(shape, 700, 32);
  Matrix out(512, 6 * 64);
  KVCache cache(shape, policies...);
  for (int l = 0; l < 4; ++l) {
    cache.append(l, in[std::size_t(l)].k(0, 512), in[std::size_t(l)].v(0, 512));
    cache.attend(l, in[std::size_t(l)].q(0, 512), out.data());
  }
  cache.compress();
  int silent = 0;
  for (Index at = 512; at < 640; ++at) {
    const std::size_t start = calls.load();
    for (int l = 0; l < 4; ++l) {
      cache.append(l, in[std::size_t(l)].k(at, 1), in[std::size_t(l)].v(at, 1));
      cache.attend(l, in[std::size_t(l)].q(at, 1), out.data());
    }
    cache.compress();
    silent += calls.load() == start;
  }
  // Of 128 steps only those that seal a block (two, and the first after the prompt) or judge again
  // may allocate.
  EXPECT_GE(silent, 122);
}

TEST(Bytes, SteadyDecodingAllocatesNothing) {
  expect_silent_decode();
  expect_silent_decode(SmallKeys{}, Keep{.fraction = 0.5});
  expect_silent_decode(WindowAttention{}, Keep{.tokens = 300});
  expect_silent_decode(SumOfAttention{}, Keep{.tokens = 300});
  expect_silent_decode(ChunkValues{.chunk = 64}, Keep{.fraction = 0.5});
  expect_silent_decode(SmallKeys{}, Keep{.fraction = 0.5}, Centroids{});
}

// A prompt in chunks, into room that was taken before.
TEST(Bytes, RoomCountsAndIsGivenBack) {
  const auto in = tensors(shape, 1536, 35);
  // The scratch of the thread is not held by a cache: the first round lets it grow.
  for (const bool warm : {true, false}) {
    const std::size_t before = live.load();
    auto cache = std::make_unique<KVCache<SmallKeys, Keep>>(shape, SmallKeys{},
                                                            Keep{.fraction = 0.125, .sinks = 4});
    const auto expect_honest = [&](const char* when) {
      if (warm) return;
      EXPECT_NEAR(static_cast<double>(cache->bytes()) / static_cast<double>(live.load() - before),
                  1.0, 0.05)
          << when;
    };
    cache->reserve(1536);
    expect_honest("room only");
    const std::size_t room = cache->bytes(), start = calls.load();
    for (Index at = 0; at < 1536; at += 512)
      for (int l = 0; l < 4; ++l)
        cache->append(l, in[std::size_t(l)].k(at, 512), in[std::size_t(l)].v(at, 512));
    EXPECT_LT(calls.load() - start, 100u) << "of 192 blocks none is allocated";
    EXPECT_NEAR(static_cast<double>(cache->bytes()) / static_cast<double>(room), 1.0, 0.05);
    cache->compress();
    expect_honest("after compress()");
    EXPECT_LT(static_cast<double>(cache->bytes()), 0.16 * static_cast<double>(room));
    EXPECT_NE(message_of([&] { cache->reserve(-1); }).find("tokens"), std::string::npos);
  }
}

TEST(Bytes, ForksShareTheirBlocks) {
  const auto in = tensors(shape, 1024, 33);
  KVCache trunk(shape);
  for (int l = 0; l < 4; ++l)
    trunk.append(l, in[std::size_t(l)].k(0, 1024), in[std::size_t(l)].v(0, 1024));
  const std::size_t before = live.load();
  auto branch = trunk.fork();
  const std::size_t cost = live.load() - before;
  EXPECT_LT(static_cast<double>(cost), 0.1 * static_cast<double>(trunk.bytes()));
  EXPECT_EQ(branch.keys(3, 1), trunk.keys(3, 1));
}

}  // namespace bytes_test
