// SPDX-License-Identifier: MIT
// Sparse coding in double, as slow and plain as the definition.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <lesskv/codec/sparse/pursuit.hpp>
#include <random>
#include <string>
#include <vector>

#include "support/message.hpp"
#include "support/npy.hpp"

namespace sparse {

using namespace lesskv;
using support::message_of;

inline std::string path(const std::string& file) {
  return std::string(LESSKV_TEST_DATA) + "/csr/" + file + ".npy";
}

// Unit vectors in random directions.
inline std::vector<float> random_atoms(Index count, int dim, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<float> out;
  for (Index i = 0; i < count; ++i) {
    std::vector<double> x(static_cast<std::size_t>(dim));
    double square = 0;
    for (double& v : x) {
      v = normal(random);
      square += v * v;
    }
    for (const double v : x) out.push_back(static_cast<float>(v / std::sqrt(square)));
  }
  return out;
}

inline std::vector<float> random_rows(Index count, int dim, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(count * dim));
  for (float& x : out) x = normal(random);
  return out;
}

struct Codes {
  int steps;
  std::vector<std::int32_t> index, count, level;
  std::vector<float> coefficient, energy;

  Codes(Index n, int steps_)
      : steps(steps_),
        index(static_cast<std::size_t>(n * steps_), -1),
        count(static_cast<std::size_t>(n)),
        level(index.size(), -1),
        coefficient(index.size()),
        energy(static_cast<std::size_t>(n * (steps_ + 1)), -1.f) {}
  PursuitCodes out() {
    return {index.data(), coefficient.data(), count.data(), level.data(), energy.data()};
  }
  std::size_t at(Index row, int slot) const { return static_cast<std::size_t>(row * steps + slot); }
};

inline Codes encode(const Pursuit& coder, const std::vector<float>& rows,
                    const PursuitOptions& options) {
  const Index n = static_cast<Index>(rows.size()) / coder.dictionary().dim();
  Codes codes(n, options.steps);
  coder.encode(rows.data(), n, coder.dictionary().dim(), options, codes.out());
  return codes;
}

// The decoded row, in double.
inline std::vector<double> decode(const Dictionary& dictionary, const Codes& codes, Index row) {
  std::vector<double> out(static_cast<std::size_t>(dictionary.dim()));
  std::vector<float> atom(out.size());
  for (int k = 0; k < codes.count[static_cast<std::size_t>(row)]; ++k) {
    dictionary.atom(codes.index[codes.at(row, k)], atom.data());
    for (std::size_t c = 0; c < out.size(); ++c)
      out[c] += double(codes.coefficient[codes.at(row, k)]) * atom[c];
  }
  return out;
}

inline double error(const std::vector<double>& got, const float* want) {
  double sum = 0;
  for (std::size_t c = 0; c < got.size(); ++c) sum += (got[c] - want[c]) * (got[c] - want[c]);
  return sum;
}

// One vector by the definition.
struct Slow {
  std::vector<int> index;
  std::vector<double> coefficient, energy;
  double gap = 1;  // smallest relative distance of the two best atoms

  Slow(const Dictionary& dictionary, const float* x, int steps, bool orthogonal) {
    const std::size_t dim = static_cast<std::size_t>(dictionary.dim());
    const Index n = dictionary.size();
    std::vector<std::vector<double>> atoms;
    std::vector<float> row(dim);
    for (Index i = 0; i < n; ++i) {
      dictionary.atom(i, row.data());
      atoms.emplace_back(row.begin(), row.end());
    }
    const auto product = [](const std::vector<double>& a, const std::vector<double>& b) {
      double sum = 0;
      for (std::size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
      return sum;
    };
    const std::vector<double> whole(x, x + dim);
    std::vector<double> residual = whole;
    energy.push_back(product(residual, residual));
    for (int step = 0; step < steps; ++step) {
      double best = -1, second = -1, value = 0;
      int which = -1;
      for (Index i = 0; i < n; ++i) {
        const double p = product(atoms[static_cast<std::size_t>(i)], residual);
        if (std::abs(p) > best) {
          second = best;
          best = std::abs(p);
          which = static_cast<int>(i);
          value = p;
        } else {
          second = std::max(second, std::abs(p));
        }
      }
      gap = std::min(gap, best > 0 ? (best - second) / best : 0);
      index.push_back(which);
      if (orthogonal) {
        solve(atoms, whole, product);
        residual = whole;
        for (std::size_t k = 0; k < index.size(); ++k)
          for (std::size_t c = 0; c < dim; ++c)
            residual[c] -= coefficient[k] * atoms[static_cast<std::size_t>(index[k])][c];
      } else {
        coefficient.push_back(value);
        for (std::size_t c = 0; c < dim; ++c)
          residual[c] -= value * atoms[static_cast<std::size_t>(which)][c];
      }
      energy.push_back(product(residual, residual));
    }
  }

 private:
  // Normal equations by elimination.
  template <class Product>
  void solve(const std::vector<std::vector<double>>& atoms, const std::vector<double>& x,
             const Product& product) {
    const std::size_t n = index.size();
    std::vector<std::vector<double>> a(n, std::vector<double>(n + 1));
    for (std::size_t i = 0; i < n; ++i) {
      const auto& atom = atoms[static_cast<std::size_t>(index[i])];
      for (std::size_t j = 0; j < n; ++j)
        a[i][j] = product(atom, atoms[static_cast<std::size_t>(index[j])]);
      a[i][n] = product(atom, x);
    }
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t k = 0; k < n; ++k)
        if (k != i) {
          const double f = a[k][i] / a[i][i];
          for (std::size_t j = i; j <= n; ++j) a[k][j] -= f * a[i][j];
        }
    coefficient.assign(n, 0);
    for (std::size_t i = 0; i < n; ++i) coefficient[i] = a[i][n] / a[i][i];
  }
};

}  // namespace sparse
