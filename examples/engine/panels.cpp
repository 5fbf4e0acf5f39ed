// SPDX-License-Identifier: MIT
#include "panels.hpp"

#include <bit>
#include <cmath>

namespace engine {
namespace {

// e^x by 2^n * p(r), r in [-ln2/2, ln2/2], p the degree-6 Taylor-like polynomial of Cephes' expf;
// branch-free, so the loop around it vectorises, which the C library's does not.
inline float exponential(float x) {
  x = std::min(std::max(x, -87.f), 88.f);
  constexpr float shift = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504f + shift;
  const float n = shifted - shift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const std::uint32_t power = (std::bit_cast<std::uint32_t>(shifted) + 127u) << 23;
  return p * std::bit_cast<float>(power);
}

}  // namespace

void rms_norm(const Panels& in, std::span<const float> gain, float epsilon, Panels& out) {
  out.resize(in.features(), in.tokens());
  for (Index p = 0; p < in.count(); ++p) {
    const float* from = in.panel(p);
    float* to = out.panel(p);
    const Index width = in.width(p), size = in.size(p);
    // 32 sums run over the memory; sum k belongs to token k % width, because width divides 32.
    float sums[Panels::full_width] = {};
    Index i = 0;
    for (; i + Panels::full_width <= size; i += Panels::full_width)
      for (Index k = 0; k < Panels::full_width; ++k) sums[k] += from[i + k] * from[i + k];
    for (; i < size; ++i) sums[i % Panels::full_width] += from[i] * from[i];
    float scale[Panels::full_width];
    for (Index lane = 0; lane < width; ++lane) {
      float sum = 0;
      for (Index k = lane; k < Panels::full_width; k += width) sum += sums[k];
      scale[lane] = 1.f / std::sqrt(sum / static_cast<float>(in.features()) + epsilon);
    }
    if (width == 1) {
      for (Index f = 0; f < in.features(); ++f)
        to[f] = from[f] * scale[0] * gain[static_cast<std::size_t>(f)];
      continue;
    }
    for (Index f = 0; f < in.features(); ++f) {
      const float g = gain[static_cast<std::size_t>(f)];
      for (Index lane = 0; lane < width; ++lane)
        to[f * width + lane] = from[f * width + lane] * scale[lane] * g;
    }
  }
}

void swiglu(Panels& gate, const Panels& up) {
  for (Index p = 0; p < gate.count(); ++p) {
    float* const g = gate.panel(p);
    const float* const u = up.panel(p);
    const Index size = gate.size(p);
    for (Index i = 0; i < size; ++i) g[i] = g[i] / (1.f + exponential(-g[i])) * u[i];
  }
}

void rotation_table(std::span<const double> frequencies, std::span<const std::int64_t> positions,
                    Panels& cosines, Panels& sines) {
  const auto half = static_cast<Index>(frequencies.size());
  const auto tokens = static_cast<Index>(positions.size());
  cosines.resize(half, tokens);
  sines.resize(half, tokens);
  for (Index p = 0; p < cosines.count(); ++p) {
    const Index width = cosines.width(p);
    for (Index f = 0; f < half; ++f)
      for (Index lane = 0; lane < width; ++lane) {
        // Lanes without a token turn as the last one does.
        const Index token = std::min(p * Panels::full_width + lane, tokens - 1);
        const auto position = static_cast<double>(positions[static_cast<std::size_t>(token)]);
        const double angle = position * frequencies[static_cast<std::size_t>(f)];
        cosines.panel(p)[f * width + lane] = static_cast<float>(std::cos(angle));
        sines.panel(p)[f * width + lane] = static_cast<float>(std::sin(angle));
      }
  }
}

void rotate(Panels& heads, const Panels& cosines, const Panels& sines) {
  for (Index p = 0; p < heads.count(); ++p) {
    // Both halves of a head are contiguous, and so are their tables: one flat loop per head.
    const Index half = cosines.size(p);
    const float* const c = cosines.panel(p);
    const float* const s = sines.panel(p);
    for (float* head = heads.panel(p); head < heads.panel(p) + heads.size(p); head += 2 * half)
      for (Index i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        head[i] = a * c[i] - b * s[i];
        head[i + half] = b * c[i] + a * s[i];
      }
  }
}

void to_rows(const Panels& in, float* rows) {
  constexpr Index tile = 16;  // one cache line of the row side
  const Index features = in.features();
  for (Index p = 0; p < in.count(); ++p) {
    const float* const from = in.panel(p);
    const Index width = in.width(p);
    float* const to = rows + p * Panels::full_width * features;
    for (Index f = 0; f < features; f += tile)
      for (Index t = 0; t < in.tokens_in(p); ++t)
        for (Index i = f; i < std::min(f + tile, features); ++i)
          to[t * features + i] = from[i * width + t];
  }
}

void from_rows(const float* rows, Index features, Index tokens, Panels& out) {
  constexpr Index tile = 16;
  out.resize(features, tokens);
  for (Index p = 0; p < out.count(); ++p) {
    const float* const from = rows + p * Panels::full_width * features;
    float* const to = out.panel(p);
    const Index width = out.width(p), used = out.tokens_in(p);
    for (Index f = 0; f < features; f += tile)
      for (Index t = 0; t < width; ++t)
        for (Index i = f; i < std::min(f + tile, features); ++i)
          to[i * width + t] = t < used ? from[t * features + i] : 0.f;
  }
}

void copy_token(const Panels& in, Index token, float* row) {
  const Index p = token / Panels::full_width, lane = token % Panels::full_width,
              width = in.width(p);
  for (Index f = 0; f < in.features(); ++f) row[f] = in.panel(p)[f * width + lane];
}

}  // namespace engine
