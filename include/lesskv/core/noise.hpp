// SPDX-License-Identifier: MIT
// Counter-based noise: a hash of numbers that say what it is for. No state, so it is the same
// whatever the thread, the order or the standard library.
#pragma once

#include <cstdint>

#include "config.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// The finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
constexpr std::uint64_t noise(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace detail
LESSKV_END_NAMESPACE
