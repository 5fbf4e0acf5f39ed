// SPDX-License-Identifier: MIT
#include "sampler.hpp"

#include <algorithm>
#include <cmath>

#include "gguf.hpp"

namespace engine {

std::int32_t argmax(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature))
    throw Error("temperature: it must be 0 or positive");
  if (!(options.top_p > 0 && options.top_p <= 1))
    throw Error("top_p: it must lie above 0 and at most at 1");
}

std::int32_t Sampler::next(std::span<const float> logits) {
  if (options_.temperature == 0) return argmax(logits);
  const float max = *std::max_element(logits.begin(), logits.end());
  choices_.clear();
  float sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float weight = std::exp((logits[i] - max) / options_.temperature);
    if (weight < 1e-8f) continue;
    choices_.push_back({weight, static_cast<std::int32_t>(i)});
    sum += weight;
  }
  std::sort(choices_.begin(), choices_.end(), [](const Choice& a, const Choice& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
  });
  std::size_t count = 0;
  float held = 0;
  while (count < choices_.size() && held < options_.top_p * sum)
    held += choices_[count++].probability;

  // Not std::uniform_real_distribution: its numbers differ between standard libraries.
  const auto uniform = static_cast<float>(static_cast<double>(random_() >> 11) * 0x1p-53);
  float at = uniform * held;
  for (std::size_t i = 0; i + 1 < count; ++i)
    if ((at -= choices_[i].probability) < 0) return choices_[i].id;
  return choices_[count - 1].id;
}

}  // namespace engine
