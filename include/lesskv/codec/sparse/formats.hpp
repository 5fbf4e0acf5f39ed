// SPDX-License-Identifier: MIT
// How sparse codes are found and stored, by name.
#pragma once

#include <array>
#include <string_view>

#include "../../core/config.hpp"

LESSKV_BEGIN_NAMESPACE

// Index and coefficient of an atom: see codec.hpp.
enum class SparseCode { pairs, lexico, packed };

// matching: plain matching pursuit (Mallat, Zhang 1993); CSR's. refit: least squares on its atoms.
// orthogonal: OMP; Lexico's.
enum class PursuitMethod { matching, refit, orthogonal };

constexpr std::array<std::string_view, 3> names_of(SparseCode) {
  return {"pairs", "lexico", "packed"};
}
constexpr std::array<std::string_view, 3> names_of(PursuitMethod) {
  return {"matching", "refit", "orthogonal"};
}

LESSKV_END_NAMESPACE
