// SPDX-License-Identifier: MIT
// What no code of single rows can go below, were they Gaussian with the covariance that they have:
// reverse water-filling over the eigenvalues of the covariance (Cover and Thomas, Elements of
// Information Theory, 10.3.3). The mean and the eigenvectors cost nothing here. Rows that are not
// Gaussian, or depend on their neighbours, can be coded better.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <lesskv/budget/matrix_entropy.hpp>
#include <span>
#include <vector>

namespace oracle {

// Smallest mean square error a number at `bits` bits a number, divided by the mean square.
inline double gaussian_bound(std::span<const float> rows, std::size_t dim, double bits) {
  const std::size_t n = rows.size() / dim;
  std::vector<double> mean(dim, 0), covariance(dim * dim, 0);
  double power = 0;
  for (std::size_t r = 0; r < n; ++r)
    for (std::size_t c = 0; c < dim; ++c) {
      const double x = rows[r * dim + c];
      mean[c] += x / static_cast<double>(n);
      power += x * x / static_cast<double>(n * dim);
    }
  for (std::size_t r = 0; r < n; ++r)
    for (std::size_t i = 0; i < dim; ++i)
      for (std::size_t j = 0; j <= i; ++j)
        covariance[i * dim + j] += (double{rows[r * dim + i]} - mean[i]) *
                                   (double{rows[r * dim + j]} - mean[j]) / static_cast<double>(n);
  const std::vector<double> variance =
      lesskv::symmetric_eigenvalues(covariance, static_cast<std::ptrdiff_t>(dim));
  // The water level at which the rate is what there is.
  double low = -80, high = std::log2(std::max(variance.front(), 1e-30));
  for (int step = 0; step < 100; ++step) {
    const double level = 0.5 * (low + high);
    double rate = 0;
    for (const double v : variance)
      rate += std::max(0.0, 0.5 * (std::log2(std::max(v, 1e-30)) - level)) / double(dim);
    (rate > bits ? low : high) = level;
  }
  double error = 0;
  for (const double v : variance)
    error += std::min(std::max(v, 0.0), std::exp2(high)) / static_cast<double>(dim);
  return error / power;
}

}  // namespace oracle
