// SPDX-License-Identifier: MIT
// An engine that owns its memory: keys and values lie in pages of 16 tokens that a pool hands out,
// one block table per layer and KV head. lesskv only plans: which rows stay. The engine moves them
// and gives whole pages back.
#include <cstdio>
#include <lesskv/lesskv.hpp>
#include <random>
#include <vector>

using namespace lesskv;

constexpr int layers = 4, kv_heads = 2, head_dim = 64, page = 16;

struct BlockTable {  // what the engine keeps per layer and KV head
  std::vector<std::int32_t>
      slots;  // token -> row of the pool: page number * 16 + place in the page
};

struct Pool {  // all pages of the engine, keys and values
  std::vector<float> keys, values;
  std::vector<std::int32_t> free_pages;
  explicit Pool(int pages) : keys(std::size_t(pages * page * head_dim)), values(keys.size()) {
    for (int p = pages; p-- > 0;) free_pages.push_back(p);
  }
  View view(const std::vector<float>& side, const BlockTable& head) const {
    return {.data = side.data(),
            .tokens = Index(head.slots.size()),
            .token_stride = head_dim,
            .rows = head.slots};
  }
};

int main() {
  const Shape shape{.layers = layers, .query_heads = 4, .kv_heads = kv_heads, .head_dim = head_dim};
  Pool pool(layers * kv_heads * 2000 / page);
  std::vector<BlockTable> heads(layers * kv_heads);
  const auto pages_in_use = [&] {
    return layers * kv_heads * 2000 / page - int(pool.free_pages.size());
  };

  // [the part that goes into the engine]
  Planner planner(shape, Keep{.fraction = 0.25, .sinks = 16}, LagKV{.lag = 128});
  const Source source = [&](int layer, int h) {
    const auto& head = heads[std::size_t(layer * kv_heads + h)];
    return HeadView{pool.view(pool.keys, head), pool.view(pool.values, head)};
  };
  const auto after_forward_pass = [&](Index tokens) {
    for (int l = 0; l < layers; ++l) planner.append(l, tokens);
    const Plan plan = planner.plan(source);
    for (std::size_t i = 0; i < plan.heads.size(); ++i) {
      if (plan.heads[i].all) continue;
      BlockTable& head = heads[i];
      move_rows(pool.view(pool.keys, head), head_dim, plan.heads[i].kept);
      move_rows(pool.view(pool.values, head), head_dim, plan.heads[i].kept);
      const std::size_t kept_pages = (plan.heads[i].kept.size() + page - 1) / page;
      for (std::size_t p = kept_pages; p * page < head.slots.size(); ++p)
        pool.free_pages.push_back(head.slots[p * page] / page);
      head.slots.resize(plan.heads[i].kept.size());
    }
    planner.commit(plan);
  };
  // [end]

  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto write =
      [&](BlockTable& head) {  // stands for the forward pass: one new row of one head
        if (head.slots.size() % page == 0) {
          head.slots.push_back(pool.free_pages.back() * page);
          pool.free_pages.pop_back();
        } else {
          head.slots.push_back(head.slots.back() + 1);
        }
        for (int c = 0; c < head_dim; ++c) {
          pool.keys[std::size_t(head.slots.back() * head_dim + c)] = normal(random);
          pool.values[std::size_t(head.slots.back() * head_dim + c)] = normal(random);
        }
      };
  for (int pass = 0; pass < 3; ++pass) {  // a prompt in three parts
    for (BlockTable& head : heads)
      for (int t = 0; t < 512; ++t) write(head);
    const int before = pages_in_use();
    after_forward_pass(512);
    std::printf("tokens %d: pages in use %d -> %d\n", (pass + 1) * 512, before, pages_in_use());
  }
  // The planner and the engine agree on every head.
  for (int l = 0; l < layers; ++l)
    for (int h = 0; h < kv_heads; ++h)
      if (planner.size(l, h) != Index(heads[std::size_t(l * kv_heads + h)].slots.size())) return 1;
  return pages_in_use() * 2 < layers * kv_heads * 1536 / page ? 0 : 1;
}
