// SPDX-License-Identifier: MIT
// A dictionary of unit-norm atoms, as sparse codes refer to them: [atom][dim], f32 or f16.
//
// A value that is cheap to copy: the atoms are shared. It may consist of two parts: the shared one,
// learned beforehand, and atoms of its own that were taken from a prompt (CSR, arXiv 2412.11741:
// the online and the guard part). Indices of the shared part come first, so a code that only uses
// it stays valid when the dictionary is extended.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../../core/error.hpp"
#include "../../core/types.hpp"

LESSKV_BEGIN_NAMESPACE

class Dictionary {
 public:
  // Codes hold an index in 16 bits.
  static constexpr Index most_atoms = 65536;

  Dictionary() = default;

  // Copies `count` atoms, row-major. f16 halves the memory; the atoms are rounded once, here.
  Dictionary(int dim, Index count, const float* atoms, DType stored = DType::f16)
      : dim_(dim), stored_(stored), base_(copy(dim, count, atoms, stored)), base_count_(count) {}

  // Atoms that lie in memory of somebody else, e.g. a mapped file, which `owner` keeps alive. They
  // are read as they are: only the checks of the constructor above are made.
  static Dictionary view(int dim, Index count, std::shared_ptr<const void> owner, const void* atoms,
                         DType stored) {
    check_shape(dim, count, stored);
    check_atoms(dim, count, atoms, stored);
    Dictionary out;
    out.dim_ = dim;
    out.stored_ = stored;
    out.base_ = std::shared_ptr<const void>(std::move(owner), atoms);
    out.base_count_ = count;
    return out;
  }

  bool empty() const { return base_count_ == 0; }
  int dim() const { return dim_; }
  Index size() const { return base_count_ + own_count_; }
  Index base_size() const { return base_count_; }
  DType dtype() const { return stored_; }
  const void* base() const { return base_.get(); }
  const void* own() const { return own_.get(); }

  // The shared part, counted once however many heads and caches use it.
  std::size_t shared_bytes() const { return bytes_of(base_count_); }
  // What was added for one prompt.
  std::size_t own_bytes() const { return bytes_of(own_count_); }

  void atom(Index i, float* out) const {
    const bool shared = i < base_count_;
    const Index row = shared ? i : i - base_count_;
    const std::size_t at = detail::uz(row * dim_);
    const void* from = shared ? base_.get() : own_.get();
    for (int c = 0; c < dim_; ++c) out[c] = read(from, at + static_cast<std::size_t>(c), stored_);
  }

  // This dictionary with more atoms of its own behind those it has. They count in own_bytes().
  Dictionary extended(const float* atoms, Index count) const {
    if (empty()) fail("Dictionary::extended: there is no dictionary to extend");
    if (count < 0 || size() + count > most_atoms)
      fail("Dictionary::extended: ", size(), " + ", count, " atoms; the most is ", most_atoms);
    if (count == 0) return *this;
    Dictionary out = *this;
    std::vector<float> all(detail::uz((own_count_ + count) * dim_));
    for (Index i = 0; i < own_count_; ++i) atom(base_count_ + i, all.data() + detail::uz(i * dim_));
    std::memcpy(all.data() + detail::uz(own_count_ * dim_), atoms,
                detail::uz(count * dim_) * sizeof(float));
    out.own_count_ += count;
    out.own_ = copy(dim_, out.own_count_, all.data(), stored_);
    return out;
  }

  // Coefficient levels for packed codes: [stages][levels], relative to the norm of the coded
  // vector, each stage ascending. Empty: none were fitted (see levels.hpp).
  int stages() const { return stages_; }
  int levels() const { return levels_; }
  const float* level_table() const { return table_ ? table_->data() : nullptr; }
  std::size_t level_bytes() const {
    return static_cast<std::size_t>(stages_) * static_cast<std::size_t>(levels_) * sizeof(float);
  }

  Dictionary with_levels(int stages, int levels, const float* table) const {
    if (stages < 1 || stages > 64) fail("Dictionary::stages is ", stages, "; 1 to 64 are possible");
    if (levels < 2 || levels > 256 || (levels & (levels - 1)) != 0)
      fail("Dictionary::levels is ", levels, "; it must be a power of two from 2 to 256");
    for (int s = 0; s < stages; ++s)
      for (int l = 0; l < levels; ++l) {
        const float x = table[s * levels + l];
        if (!std::isfinite(x) || (l > 0 && x < table[s * levels + l - 1]))
          fail("Dictionary::levels: stage ", s, " is not finite and ascending");
      }
    Dictionary out = *this;
    out.stages_ = stages;
    out.levels_ = levels;
    out.table_ = std::make_shared<const std::vector<float>>(table, table + stages * levels);
    return out;
  }

 private:
  static float read(const void* from, std::size_t i, DType type) {
    if (type == DType::f32) return static_cast<const float*>(from)[i];
    return to_float(static_cast<const f16*>(from)[i]);
  }

  std::size_t bytes_of(Index count) const {
    return detail::uz(count * dim_) * detail::uz(size_of(stored_));
  }

  static void check_shape(int dim, Index count, DType stored) {
    if (stored != DType::f32 && stored != DType::f16) fail("Dictionary::stored must be f32 or f16");
    if (dim < 1 || dim > 4096) fail("Dictionary::dim is ", dim, "; 1 to 4096 are possible");
    if (count < 1 || count > most_atoms)
      fail("Dictionary::count is ", count, "; 1 to ", most_atoms, " atoms are possible");
  }

  // Finite, and of unit norm as far as f16 can hold it.
  static void check_atoms(int dim, Index count, const void* atoms, DType stored) {
    for (Index i = 0; i < count; ++i) {
      double norm = 0;
      for (int c = 0; c < dim; ++c) {
        const double x = read(atoms, detail::uz(i * dim + c), stored);
        norm += x * x;
      }
      if (!(std::abs(std::sqrt(norm) - 1) < 2e-3))  // catches NaN as well
        fail("Dictionary::atoms: atom ", i, " is not finite or not of unit norm");
    }
  }

  static std::shared_ptr<const void> copy(int dim, Index count, const float* atoms, DType stored) {
    check_shape(dim, count, stored);
    check_atoms(dim, count, atoms, DType::f32);
    const std::size_t n = detail::uz(count * dim);
    if (stored == DType::f32) {
      auto out = std::make_shared<std::vector<float>>(atoms, atoms + n);
      return {out, out->data()};
    }
    auto out = std::make_shared<std::vector<f16>>(n);
    for (std::size_t i = 0; i < n; ++i) (*out)[i] = to_f16(atoms[i]);
    return {out, out->data()};
  }

  int dim_ = 0;
  DType stored_ = DType::f16;
  std::shared_ptr<const void> base_, own_;
  Index base_count_ = 0, own_count_ = 0;
  int stages_ = 0, levels_ = 0;
  std::shared_ptr<const std::vector<float>> table_;
};

LESSKV_END_NAMESPACE
