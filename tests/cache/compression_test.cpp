// SPDX-License-Identifier: MIT
// Keep::compression: the bytes that a ratio allows, whatever the length, the codec and the budget.
#include <gtest/gtest.h>

#include <lesskv/any.hpp>

#include "support.hpp"

namespace compression_test {

using namespace support;

double two_bytes_a_number(const Shape& shape, Index tokens) {
  return 2.0 * double(tokens * shape.heads()) * double(shape.head_dim + shape.value_width());
}

void observe_probes(AnyCache& cache, const Shape& shape) {
  if (!cache.needs_probes()) return;
  cache.begin_probes();
  feed(cache, tensors(shape, 40, 9), 0, 40);
  cache.end_probes();
}

// After a prompt bytes() is what the ratio allows, less at most 16 rows of every head: blocks grow by
// so many. `lost`: rows of a head that a whole number for every chunk leaves out.
void expect_met(const AnyCache& cache, Index tokens, double ratio, Index lost = 0) {
  const Shape& shape = cache.shape();
  const double allowed = two_bytes_a_number(shape, tokens) / ratio, held = double(cache.bytes());
  double rows = 0;
  for (int layer = 0; layer < shape.layers; ++layer)
    for (int head = 0; head < shape.kv_heads; ++head) rows += double(cache.size(layer, head));
  EXPECT_LE(held, allowed);
  if (rows == double(tokens * shape.heads())) return;  // the codec alone does it
  EXPECT_GE(held + double((16 + lost) * shape.heads()) * (held / rows), 0.99 * allowed);
}

TEST(Compression, IsMetAtEveryLength) {
  const Shape shapes[] = {
      {.layers = 4, .query_heads = 6, .kv_heads = 2, .head_dim = 64, .rope = Rope{}},
      {.layers = 3,
       .query_heads = 2,
       .kv_heads = 2,
       .head_dim = 32,
       .value_dim = 48,
       .rope = Rope{}}};
  const char* policies[] = {"keydiff",
                            "snapkv+zigzag",
                            "h2o+globalcut",
                            "keydiff+lm(bits=4)",
                            "h2o+entropy+globalcut(by=keydiff,alpha=0.5)+centroids+lm(bits=5)",
                            "kvzip+globalcut+centroids+int(bits=8)",
                            "snapkv(window=16)+adakv+int(bits=4)"};
  for (const Shape& shape : shapes)
    for (const Index tokens : {700, 2100}) {
      const std::vector<Tensors> text = tensors(shape, tokens, 1);
      for (const double ratio : {3.0, 6.0})
        for (const char* policy : policies) {
          const std::string spec =
              "keep(compression=" + std::to_string(ratio) + ",sinks=4)+" + policy;
          SCOPED_TRACE(spec + " of " + std::to_string(tokens));
          AnyCache cache = make_cache(spec, shape);
          feed(cache, text, 0, tokens);
          observe_probes(cache, shape);
          cache.compress();
          expect_met(cache, tokens, ratio);
        }
    }
}

// The rows are those that a fraction of the same size would keep.
TEST(Compression, KeepsTheBestRows) {
  const Shape shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  const std::vector<Tensors> text = tensors(shape, 900, 1);
  KVCache by_ratio(shape, Keep{.compression = 4, .sinks = 4, .recent = 8}, KeyDiff{});
  feed(by_ratio, text, 0, 900);
  by_ratio.compress();
  const Index rows = by_ratio.size(0, 0);
  KVCache by_rows(shape, Keep{.tokens = rows, .sinks = 4, .recent = 8}, KeyDiff{});
  feed(by_rows, text, 0, 900);
  by_rows.compress();
  for (int layer = 0; layer < 2; ++layer)
    for (int head = 0; head < 2; ++head) {
      const auto more = by_ratio.positions(layer, head), less = by_rows.positions(layer, head);
      EXPECT_LE(std::abs(Index(more.size()) - Index(less.size())), 1);
      EXPECT_TRUE(more.size() < less.size()
                      ? std::includes(less.begin(), less.end(), more.begin(), more.end())
                      : std::includes(more.begin(), more.end(), less.begin(), less.end()));
    }
}

// What cannot be met is not an error: sinks and recent rows stay.
TEST(Compression, ShortPromptsKeepTheirPins) {
  const Shape shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16};
  const std::vector<Tensors> text = tensors(shape, 400, 1);
  for (const char* policy : {"keydiff", "h2o+globalcut+centroids+lm(bits=2)", "lagkv(lag=16)"})
    for (const Index tokens : {0, 1, 5, 20, 63, 64, 65, 130, 400}) {
      SCOPED_TRACE(std::string(policy) + " of " + std::to_string(tokens));
      AnyCache cache =
          make_cache("keep(compression=1000,sinks=3,recent=7)+" + std::string(policy), shape);
      if (tokens > 0) feed(cache, text, 0, tokens);
      cache.compress();
      for (int head = 0; head < 2; ++head) {
        EXPECT_GE(cache.size(1, head), std::min<Index>(tokens, 10));
        if (tokens > 0) {
          EXPECT_EQ(cache.positions(1, head).front(), Position{0});
        }
      }
      if (tokens == 400) {
        EXPECT_LE(cache.size(1, 0) + cache.size(1, 1), 2 * 48);
      }
    }
  AnyCache cache = make_cache("keep(compression=1)+keydiff", shape);
  feed(cache, text, 0, 400);
  cache.compress();
  EXPECT_GT(cache.size(0, 0), 320) << "only positions and the like have to be paid for";
}

// Rows follow the length: the ratio of a text that grew token by token is that of its length, with the
// rows that wait for their block on top.
TEST(Compression, FollowsTheLength) {
  const Shape shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  const std::vector<Tensors> text = tensors(shape, 2400, 1);
  for (const char* policy : {"h2o+globalcut", "h2o+globalcut+lm(bits=4)", "lagkv(lag=64)"}) {
    SCOPED_TRACE(policy);
    AnyCache cache = make_cache("keep(compression=4,sinks=4)+" + std::string(policy), shape);
    feed(cache, text, 0, 1000);
    cache.compress();
    const std::size_t first = cache.bytes();
    for (Index at = 1000; at < 2400; ++at) {
      feed(cache, text, at, 1);
      cache.compress();
    }
    const double open = 4.0 * 192 * 256;  // a block, and up to 128 rows that are not judged yet
    EXPECT_LE(double(cache.bytes()), two_bytes_a_number(shape, 2400) / 4 + open);
    EXPECT_GE(double(cache.bytes()), 1.8 * double(first));
  }
}

// A scorer that judges chunk by chunk.
TEST(Compression, OfChunks) {
  const Shape shape{.layers = 4, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  const std::vector<Tensors> text = tensors(shape, 2048, 1);
  for (const char* policy : {"lagkv(lag=64)", "lagkv(lag=64)+int(bits=8)"}) {
    SCOPED_TRACE(policy);
    AnyCache cache = make_cache("keep(compression=5,sinks=16)+" + std::string(policy), shape);
    feed(cache, text, 0, 2048);
    cache.compress();
    expect_met(cache, 2048, 5, 2048 / 64);
  }
}

// Memory of the engine's own: bytes are those of the rows.
TEST(Compression, OfAPlan) {
  const Shape shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  const std::vector<Tensors> text = tensors(shape, 1000, 1);
  AnyPlanner planner = make_planner("keep(compression=8,sinks=4)+keydiff", shape);
  for (int layer = 0; layer < 2; ++layer) planner.append(layer, 1000);
  const Plan plan = planner.plan([&](int layer, int) {
    const Tensors& in = text[std::size_t(layer)];
    return HeadView{in.k(0, 1000), in.v(0, 1000)};
  });
  Index rows = 0;
  for (const HeadPlan& head : plan.heads) rows += Index(head.kept.size());
  EXPECT_LE(rows, 4 * 1000 / 8);
  EXPECT_GE(rows, 4 * 1000 / 8 - 4);
}

TEST(Compression, SaysWhatIsWrong) {
  const Shape shape{.layers = 2, .query_heads = 2, .kv_heads = 1, .head_dim = 16};
  const auto message = [&](const Keep& keep) {
    return message_of([&] { KVCache(shape, keep, KeyDiff{}); });
  };
  EXPECT_NE(message({.compression = 0.5}).find("Keep::compression"), std::string::npos);
  EXPECT_NE(message({.compression = -8}).find("Keep::compression"), std::string::npos);
  EXPECT_NE(message({.compression = std::nan("")}).find("Keep::compression"), std::string::npos);
  EXPECT_NE(message({.fraction = 0.5, .compression = 8}).find("fraction or compression"),
            std::string::npos);
  EXPECT_NE(message({.tokens = 50, .compression = 8}).find("one of"), std::string::npos);
  EXPECT_NE(message({.bytes = 5000, .compression = 8}).find("one of"), std::string::npos);
  EXPECT_NE(message({}).find("compression"), std::string::npos);
  KVCache cache(shape, Keep{.compression = 8}, KeyDiff{});
  feed(cache, tensors(shape, 100, 1), 0, 100);
  EXPECT_NE(message_of([&] { cache.compress(0); }).find("Keep::compression"), std::string::npos);
  EXPECT_EQ(parse_spec("keep(compression=6.5,sinks=4)+keydiff").to_string(),
            "keep(compression=6.5,sinks=4)+keydiff");
}

}  // namespace compression_test
