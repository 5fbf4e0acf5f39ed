// SPDX-License-Identifier: MIT
// A register full of floats, by the vector extension of g++ and clang++: the same source for
// AVX-512, AVX2, SSE and NEON.
#pragma once

#include <cstring>
#include <type_traits>

#include "gguf.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace engine {

// In an unnamed namespace, because its size depends on the flags of the file that includes it.
namespace {

#if defined(__AVX512F__)
constexpr Index lanes = 16;
#elif defined(__AVX__)
constexpr Index lanes = 8;
#else
constexpr Index lanes = 4;
#endif

typedef float Vector __attribute__((vector_size(lanes * sizeof(float))));
typedef std::int32_t IntVector __attribute__((vector_size(lanes * sizeof(std::int32_t))));

inline Vector load(const float* from) {
  Vector out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline void store(float* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

// One number per lane, widened from bytes. Intrinsics where there are some: __builtin_convertvector
// goes through single bytes in g++ 12, which made decoding three times slower.
template <class Byte>
inline IntVector load_bytes(const std::byte* from) {
#if defined(__AVX512F__)
  constexpr __mmask16 all = 0xffff;  // the form without a mask sets off a false warning of g++ 12
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<IntVector>(std::is_signed_v<Byte>
                                         ? _mm512_maskz_cvtepi8_epi32(all, bytes)
                                         : _mm512_maskz_cvtepu8_epi32(all, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<IntVector>(std::is_signed_v<Byte> ? _mm256_cvtepi8_epi32(bytes)
                                                            : _mm256_cvtepu8_epi32(bytes));
#else
  Byte bytes[lanes];
  std::memcpy(bytes, from, sizeof bytes);
  IntVector out;
  for (Index i = 0; i < lanes; ++i) out[i] = bytes[i];
  return out;
#endif
}

inline Vector to_floats(IntVector integers) { return __builtin_convertvector(integers, Vector); }

// Pairwise: a chain of `lanes` additions would take as long as the product of a short row.
inline float sum(Vector vector) {
  typedef float Quad __attribute__((vector_size(16)));
  Quad quads[lanes / 4], total = {};
  std::memcpy(quads, &vector, sizeof vector);
  for (const Quad& quad : quads) total += quad;
  return (total[0] + total[1]) + (total[2] + total[3]);
}

}  // namespace
}  // namespace engine
