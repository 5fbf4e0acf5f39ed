// SPDX-License-Identifier: MIT
// Sparse coding of vectors over a dictionary: x ~ sum_k coefficient[k] * atom[index[k]].
//
// CSR (arXiv 2412.11741) takes plain matching pursuit: the atom of largest |residual . atom| leaves
// the residual, `steps` times; an atom may come again, its coefficients then add up. Lexico (arXiv
// 2412.08890) takes orthogonal matching pursuit, the Gram form in batches, with a fixed number of
// atoms or until |residual| <= tolerance * |x|. `refit` is in between: the atoms of plain pursuit,
// coefficients by least squares.
//
// Cost per vector: 2 * dim * atoms flop for the products, and steps * atoms multiply-adds on 8-bit
// numbers (orthogonal: steps^2 / 2 * atoms). See pursuit_kernels.hpp.
//
// A Pursuit is the work tables of one dictionary: the Gram matrix in 8 bits and the atoms in the
// layout of the kernels; work_bytes() says how much. Make it for a round of coding and drop it:
// nothing in a coded block refers to it. Constant after construction: any number of threads.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "../../core/scratch.hpp"
#include "dictionary.hpp"
#include "pursuit_kernels.hpp"

LESSKV_BEGIN_NAMESPACE

struct PursuitOptions {
  int steps = 4;
  PursuitMethod method = PursuitMethod::matching;
  float tolerance = 0;  // stop at this share of the vector's norm; 0: always `steps` atoms
  // Quantise in the loop with the dictionary's levels (matching only): what is subtracted is what
  // will be read back, so later atoms repair the error of earlier coefficients.
  bool quantised = false;
};

// Codes of n vectors, slot k of vector i at [i * steps + k]. Slots behind count[i] are not written.
// energy (if not null) is [n][steps + 1]: |residual|^2 after 0, 1, ... atoms; entries behind the
// count of a row are not written, and `refit` only corrects the last one.
struct PursuitCodes {
  std::int32_t* index;
  float* coefficient;
  std::int32_t* count;
  std::int32_t* level = nullptr;  // with `quantised`
  float* energy = nullptr;
};

class Pursuit {
 public:
  // Vectors whose products are computed together.
  static constexpr Index block = 64;
  static constexpr int most_steps = 64;

  explicit Pursuit(Dictionary dictionary, const PursuitKernels& table = pursuit_kernels())
      : dictionary_(std::move(dictionary)), kernels_(&table) {
    if (dictionary_.empty()) fail("Pursuit::dictionary is empty");
    using namespace detail;
    padded_ = round_up(dictionary_.size(), pursuit_chunk);
    pack();
    build_gram();
  }

  const Dictionary& dictionary() const { return dictionary_; }
  std::size_t work_bytes() const { return work_bytes(dictionary_); }
  // Of the coder of a dictionary.
  static std::size_t work_bytes(const Dictionary& dictionary) {
    const Index padded = detail::round_up(dictionary.size(), detail::pursuit_chunk);
    return detail::uz(padded * dictionary.dim() + 2 * dictionary.size()) * sizeof(float) +
           detail::uz(padded * dictionary.size());
  }

  // Codes `n` vectors at rows, rows + stride, ...
  void encode(const float* rows, Index n, Index stride, const PursuitOptions& options,
              const PursuitCodes& out) const {
    check(options, out);
    const Index dim = dictionary_.dim(), stride_out = padded_ + 16;  // not a power of two apart
    Work& work = scratch();
    float* x = work.vectors.reserve(block * dim);
    float* alpha = work.alpha.reserve(block * stride_out);
    PursuitTask tasks[detail::pursuit_walkers];
    make_tasks(options, work, tasks);
    float scales[block];
    for (Index first = 0; first < n; first += block) {
      const Index count = std::min(block, n - first);
      for (Index i = 0; i < count; ++i)
        scales[i] = copy_vector(rows + (first + i) * stride, x + i * dim, first + i);
      kernels_->correlate(panels_.data(), padded_, dim, x, count, alpha, stride_out);
      for (Index i = 0; i < count; i += detail::pursuit_walkers) {
        const int together = static_cast<int>(std::min(Index{detail::pursuit_walkers}, count - i));
        for (int t = 0; t < together; ++t) {
          PursuitTask& task = tasks[t];
          const Index row = first + i + t, at = row * options.steps;
          task.x = x + (i + t) * dim;
          task.alpha = alpha + (i + t) * stride_out;
          task.index = out.index + at;
          task.coefficient = out.coefficient + at;
          task.level = options.quantised ? out.level + at : nullptr;
          task.energy = out.energy ? out.energy + row * (options.steps + 1) : nullptr;
        }
        std::int32_t* counts = out.count + first + i;
        kernels_->pursue(tasks, together, counts);
        for (int t = 0; t < together; ++t)
          if (scales[i + t] != 1) rescale(tasks[t], counts[t], scales[i + t]);
      }
    }
  }

 private:
  struct Work {
    detail::Floats vectors, alpha, rest;
    std::vector<std::int32_t> candidates;
  };
  static Work& scratch() {
    static thread_local Work work;
    return work;
  }

  void check(const PursuitOptions& options, const PursuitCodes& out) const {
    if (options.steps < 1 || options.steps > most_steps)
      fail("Pursuit::steps is ", options.steps, "; 1 to ", most_steps, " are possible");
    if (!(options.tolerance >= 0 && options.tolerance < 1))
      fail("Pursuit::tolerance must lie between 0 and 1");
    if (!options.quantised) return;
    if (options.method != PursuitMethod::matching)
      fail("Pursuit::quantised needs PursuitMethod::matching");
    if (options.tolerance > 0) fail("Pursuit::tolerance: quantised codes have a fixed length");
    if (!out.level) fail("Pursuit::level: there is no place for the levels");
    if (dictionary_.stages() < options.steps)
      fail("Pursuit::steps is ", options.steps, "; the dictionary has coefficient levels for ",
           dictionary_.stages(), " (see fit_levels)");
  }

  // The vector, divided by a power of two if its square would leave the range of f32.
  float copy_vector(const float* from, float* to, Index row) const {
    const std::size_t dim = static_cast<std::size_t>(dictionary_.dim());
    float most = 0;
    bool finite = true;
    for (std::size_t c = 0; c < dim; ++c) {
      const float size = std::abs(from[c]);
      finite &= size <= largest(DType::f32);
      most = size > most ? size : most;
    }
    if (!finite) fail("Pursuit::rows: vector ", row, " is not finite");
    if (most == 0 || (most > 1e-12f && most < 1e12f)) {
      std::memcpy(to, from, dim * sizeof(float));
      return 1;
    }
    const int exponent = std::ilogb(most);
    for (std::size_t c = 0; c < dim; ++c) to[c] = std::ldexp(from[c], -exponent);
    return std::ldexp(1.f, exponent);
  }

  static void rescale(const PursuitTask& task, int count, float scale) {
    for (int k = 0; k < count; ++k) task.coefficient[k] *= scale;
    if (task.energy)
      for (int k = 0; k <= count; ++k) task.energy[k] *= scale * scale;
  }

  void pack() {
    const Index dim = dictionary_.dim(), width = kernels_->panel_atoms;
    float* out = panels_.reserve(padded_ * dim);
    std::fill(out, out + padded_ * dim, 0.f);
    std::vector<float> atom(detail::uz(dim));
    for (Index i = 0; i < dictionary_.size(); ++i) {
      dictionary_.atom(i, atom.data());
      for (Index c = 0; c < dim; ++c)
        out[(i / width * dim + c) * width + i % width] = atom[detail::uz(c)];
    }
  }

  void build_gram() {
    const Index dim = dictionary_.dim(), count = dictionary_.size();
    gram_.resize(detail::uz(count * padded_));
    scale_.resize(detail::uz(count));
    diagonal_.resize(detail::uz(count));
    detail::Floats atoms(block * dim), rows(block * (padded_ + 16));
    for (Index first = 0; first < count; first += block) {
      const Index n = std::min(block, count - first);
      for (Index i = 0; i < n; ++i) dictionary_.atom(first + i, atoms.data() + i * dim);
      kernels_->correlate(panels_.data(), padded_, dim, atoms.data(), n, rows.data(), padded_ + 16);
      for (Index i = 0; i < n; ++i) {
        const float* row = rows.data() + i * (padded_ + 16);
        const std::size_t at = detail::uz(first + i);
        diagonal_[at] = row[first + i];
        scale_[at] = kernels_->quantise_row(row, padded_, first + i,
                                            gram_.data() + at * detail::uz(padded_));
      }
    }
  }

  void make_tasks(const PursuitOptions& options, Work& work, PursuitTask* tasks) const {
    const Index dim = dictionary_.dim(), steps = options.steps;
    PursuitTask task{};
    task.dtype = dictionary_.dtype();
    task.dim = dim;
    task.atoms = dictionary_.size();
    task.padded = padded_;
    task.base = dictionary_.base();
    task.base_atoms = dictionary_.base_size();
    task.own = dictionary_.own();
    task.panels = panels_.data();
    task.gram = gram_.data();
    task.gram_scale = scale_.data();
    task.gram_diagonal = diagonal_.data();
    task.method = options.method;
    task.steps = options.steps;
    task.tolerance = options.tolerance;
    task.levels = options.quantised ? dictionary_.level_table() : nullptr;
    task.level_count = dictionary_.levels();
    if (work.candidates.size() < detail::uz(padded_)) work.candidates.resize(detail::uz(padded_));
    task.candidates = work.candidates.data();
    const Index most = padded_ / detail::pursuit_chunk * 16;
    const Index width = detail::round_up(dim, 16);
    const Index basis = options.method == PursuitMethod::matching ? 0 : steps;
    const Index other = options.method == PursuitMethod::orthogonal ? padded_ : 0;
    const Index each = detail::round_up(width + most + other + basis * (dim + steps + 1), 16);
    float* at = work.rest.reserve(each * detail::pursuit_walkers);
    for (int t = 0; t < detail::pursuit_walkers; ++t, at += each) {
      task.residual = at;
      task.most = task.residual + width;
      task.other = task.most + most;
      task.basis = task.other + other;
      task.triangle = task.basis + basis * dim;
      task.projection = task.triangle + basis * steps;
      tasks[t] = task;
    }
  }

  Dictionary dictionary_;
  const PursuitKernels* kernels_;
  Index padded_ = 0;
  detail::Floats panels_;
  std::vector<std::int8_t> gram_;
  std::vector<float> scale_, diagonal_;
};

LESSKV_END_NAMESPACE
