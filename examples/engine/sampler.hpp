// SPDX-License-Identifier: MIT
// The next token out of logits.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace engine {

// The most likely token; the lowest id among equals.
std::int32_t argmax(std::span<const float> logits);

struct SamplerOptions {
  float temperature = 0;  // 0: greedy
  float top_p =
      1;  // nucleus (Holtzman et al. 2020): the fewest tokens whose probability sums to top_p
  std::uint64_t seed = 1;
};

// The same seed gives the same text. Throws Error if temperature is negative or top_p is not in (0,
// 1].
class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options);
  std::int32_t next(std::span<const float> logits);

 private:
  struct Choice {
    float probability;
    std::int32_t id;
  };
  SamplerOptions options_;
  std::mt19937_64 random_;
  std::vector<Choice> choices_;
};

}  // namespace engine
