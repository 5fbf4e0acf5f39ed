// SPDX-License-Identifier: MIT
// The quickstart of the README.
#include <cstdio>
#include <lesskv/lesskv.hpp>
#include <vector>

using namespace lesskv;

int main() {
  const Shape shape{.layers = 2, .query_heads = 8, .kv_heads = 2, .head_dim = 64};
  // A quarter of the tokens stays; the first 16 and the newest ones always do.
  KVCache cache(shape, Keep{.fraction = 0.25, .sinks = 16}, LagKV{.lag = 128});
  // Your model's tensors, [token][head][channel]; here zeros.
  std::vector<float> k(4096 * 2 * 64), v(k.size()), q(4096 * 8 * 64), out(q.size());
  for (const Index tokens : {4096, 1, 1}) {  // a prompt, then token by token
    for (int layer = 0; layer < 2; ++layer) {
      cache.append(layer, View::packed(k.data(), tokens, 2, 64),
                   View::packed(v.data(), tokens, 2, 64));
      cache.attend(layer, View::packed(q.data(), tokens, 8, 64), out.data());
    }
    cache.compress();
    std::printf("%td rows a head, %.2f MB\n", cache.size(0, 0), double(cache.bytes()) / 1e6);
  }
}
