// SPDX-License-Identifier: MIT
// A program of somebody else: its own policy, one cache, nothing but the public header. Also the
// file whose compile time is bounded.
#include <lesskv/lesskv.hpp>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <span>
#include <vector>

namespace {

// Keeps the rows with the largest keys.
struct KeySize {
  static constexpr lesskv::Need needs = lesskv::Need::keys;
  void score(const lesskv::Head& head, std::span<float> out) const {
    for (lesskv::Index row = head.first; row < head.last; ++row)
      out[static_cast<std::size_t>(row)] = head.keys.row(row).squaredNorm();
  }
};

int failures = 0;
void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("wrong: %s\n", what);
  ++failures;
}

#if !LESSKV_EXCEPTIONS
[[noreturn]] void on_failure(const char* message) {
  std::printf("handler called: %s\n", message);
  std::_Exit(std::strstr(message, "layer") != nullptr && failures == 0 ? 0 : 1);
}
#endif

}  // namespace

int main() {
  constexpr int tokens = 200, query_heads = 4, kv_heads = 2, width = 8;
  const lesskv::Shape shape{
      .layers = 1, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = width};
  lesskv::KVCache cache(shape, lesskv::Keep{.fraction = 0.5, .sinks = 4}, KeySize{});

  std::vector<float> keys(tokens * kv_heads * width), values(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    keys[i] = std::sin(static_cast<float>(i));
    values[i] = std::cos(static_cast<float>(i));
  }
  std::vector<float> queries(query_heads * width, 0.5f), out(queries.size());

  cache.append(0, lesskv::View::packed(keys.data(), tokens, kv_heads, width),
               lesskv::View::packed(values.data(), tokens, kv_heads, width));
  const std::size_t before = cache.bytes();
  cache.compress();
  cache.attend(0, lesskv::View::packed(queries.data(), 1, query_heads, width), out.data());

  expect(cache.size(0, 0) == 4 + (tokens - 4) / 2, "rows held");
  expect(cache.positions(0, 1).front() == lesskv::Position{0}, "the sink stays");
  expect(cache.bytes() < before, "bytes fall");
  for (const float x : out)
    expect(std::isfinite(x) && std::fabs(x) <= 1, "attention is a mean of values");

#if LESSKV_EXCEPTIONS
  try {
    cache.append(7, lesskv::View::packed(keys.data(), 1, kv_heads, width),
                 lesskv::View::packed(values.data(), 1, kv_heads, width));
    expect(false, "a wrong layer is an error");
  } catch (const lesskv::Error& error) {
    expect(std::strstr(error.what(), "layer") != nullptr, "the error names the argument");
  }
#else
  lesskv::failure_handler() = on_failure;
  cache.append(7, lesskv::View::packed(keys.data(), 1, kv_heads, width),
               lesskv::View::packed(values.data(), 1, kv_heads, width));
  expect(false, "a wrong layer calls the handler");
#endif
  if (failures == 0) std::printf("lesskv %s: a consumer works\n", CONSUMER_KIND);
  return failures;
}
