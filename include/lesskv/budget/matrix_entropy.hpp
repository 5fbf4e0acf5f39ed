// SPDX-License-Identifier: MIT
// Truncated matrix entropy: how many directions the rows of a matrix really use.
//
//   y_t = x_t - mean,  z_t = y_t / |y_t|,  lambda = eigenvalues of Z'Z / trace, largest first,
//   H_k = -sum of lambda_j ln lambda_j over the k largest,
//
// in nats, lambda divided by the full trace (not renormalised over the k). Bounds: 0 (one
// direction) to ln k; an isotropic matrix of d channels gives (k / d) ln d. UNComp (arXiv
// 2410.03090), as its released code computes it; that code divides by ln d and adds 1e-10 to every
// eigenvalue, which changes nothing here.
//
// Two forms. Of all rows at once: two exact passes, `spectrum`. Of rows that stream by:
// UnitMoments, which can not centre before it scales, because every z_t would depend on the final
// mean. It scales first, u_t = x_t / |x_t|, and takes the eigenvalues of the covariance of u: exact
// however the rows are cut into blocks, and equal to the other form up to the lengths of rows.
//
// The d x d side is enough: Z'Z and ZZ' share their non-zero eigenvalues. Rows without a direction
// (zero after centring) are left out. Sums are f32 in blocks, totals and eigenvalues f64.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include "../core/head.hpp"
#include "../core/scratch.hpp"
#include "../kernels/gram.hpp"

LESSKV_BEGIN_NAMESPACE

// Eigenvalues of a symmetric matrix [n][n] of which the lower triangle is read, largest first.
// Householder, then implicit QL, values only; within 1e-13 of the largest one.
inline std::vector<double> symmetric_eigenvalues(std::span<const double> lower, Index n) {
  using detail::uz;
  std::vector<double> a(lower.begin(), lower.end()), d(uz(n)), e(uz(n) + 1, 0.0);
  double scale = 0;  // so that no square leaves the range of double
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j <= i; ++j) scale = std::max(scale, std::abs(a[uz(i * n + j)]));
  if (!(scale > 0)) return d;
  for (double& x : a) x /= scale;
  gram_kernels().tridiagonalise(a.data(), n, d.data(), e.data());
  std::copy(e.begin() + 1, e.end(), e.begin());  // now off-diagonal i lies between i and i + 1
  // What is below the rounding of the whole matrix is zero: tiny eigenvalues need no more.
  double largest = 0;
  for (Index i = 0; i < n; ++i)
    largest = std::max(largest, std::abs(d[uz(i)]) + std::abs(e[uz(i)]));
  const double tiny = largest * 0x1p-53;
  for (Index l = 0; l < n; ++l)
    for (int turn = 0; turn < 60; ++turn) {
      Index m = l;
      while (m + 1 < n && std::abs(e[uz(m)]) > tiny) ++m;
      if (m == l) break;
      // Wilkinson's shift, and one chase of the bulge from m down to l.
      const double half = (d[uz(l + 1)] - d[uz(l)]) / (2 * e[uz(l)]);
      const double root = std::sqrt(half * half + 1);
      double g = d[uz(m)] - d[uz(l)] + e[uz(l)] / (half + (half < 0 ? -root : root));
      double s = 1, c = 1, p = 0;
      Index i = m - 1;
      for (; i >= l; --i) {
        const double f = s * e[uz(i)], b = c * e[uz(i)];
        const double r = std::sqrt(f * f + g * g);
        e[uz(i + 1)] = r;
        if (!(r > 0)) {
          d[uz(i + 1)] -= p;
          e[uz(m)] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[uz(i + 1)] - p;
        const double t = (d[uz(i)] - g) * s + 2 * c * b;
        p = s * t;
        d[uz(i + 1)] = g + p;
        g = c * t - b;
      }
      if (i >= l) continue;
      d[uz(l)] -= p;
      e[uz(l)] = g;
      e[uz(m)] = 0;
    }
  for (double& x : d) x *= scale;
  std::sort(d.begin(), d.end(), std::greater<>());
  return d;
}

// H_k in nats of eigenvalues, largest first, divided by their sum; k = 0: all of them. Negative
// ones (rounding) count as zero. A matrix without any gives 0.
inline double truncated_entropy(std::span<const double> eigenvalues, Index k = 0) {
  double trace = 0, sum = 0;
  for (const double x : eigenvalues) trace += std::max(x, 0.0);
  if (!(trace > 0)) return 0;
  const Index n = static_cast<Index>(eigenvalues.size());
  for (Index j = 0; j < (k > 0 ? std::min(k, n) : n); ++j)
    if (const double p = eigenvalues[detail::uz(j)] / trace; p > 0) sum -= p * std::log(p);
  return sum;
}

// k unless said otherwise: the paper's code uses 32 of 128.
inline Index default_truncation(Index dim) {
  return std::max<Index>(1, static_cast<Index>(std::lround(double(dim) / 4)));
}

namespace detail {

// Block sums of a Gram matrix in f32, totals in f64.
class GramSum {
 public:
  GramSum(Index dim, Floats& work)
      : dim_(dim),
        wide_(round_up(dim, gram_panel)),
        sum_(work.reserve(wide_ * wide_ + wide_ * gram_rows)) {
    std::fill_n(sum_, wide_ * wide_, 0.f);
  }
  // Where the next block of unit rows goes.
  float* block() { return sum_ + wide_ * wide_; }
  void add_block(Index rows) {
    gram_kernels().gram(block(), rows, dim_, sum_);
    pending_ += rows;
  }
  bool full() const { return pending_ >= 512; }
  // to(i, j, number) for the lower triangle; starts anew.
  template <class To>
  void flush(To&& to) {
    for (Index i = 0; i < dim_; ++i) {
      const float* row = sum_ + i * wide_;
      for (Index j = 0; j <= i; ++j) to(i, j, double{row[j]});
    }
    std::fill_n(sum_, wide_ * wide_, 0.f);
    pending_ = 0;
  }

 private:
  Index dim_, wide_, pending_ = 0;
  float* sum_;
};

}  // namespace detail

// Eigenvalues, largest first, their sum 1 (0 if no row has a direction), of the rows' centred unit
// form. `rows(first, count)` lends `count` <= 64 of n rows as const float* [count][stride]; it is
// asked for all of them twice.
template <class Lend>
std::vector<double> spectrum(Index n, Index dim, Index stride, Lend&& rows) {
  using namespace detail;
  const GramTable& kernel = gram_kernels();
  std::vector<double> mean(uz(dim), 0.0), total(uz(dim * dim), 0.0);
  for (Index t = 0; t < n; t += gram_rows) {
    const Index count = std::min(gram_rows, n - t);
    kernel.add_rows(rows(t, count), stride, count, dim, mean.data());
  }
  const Index wide = round_up(dim, gram_panel);
  std::vector<float> centre(uz(wide), 0.f), shift(uz(wide), 0.f);
  for (Index c = 0; c < dim; ++c) centre[uz(c)] = static_cast<float>(mean[uz(c)] / double(n));
  thread_local Floats work;
  GramSum sum(dim, work);
  const auto flush = [&] {
    sum.flush([&](Index i, Index j, double x) { total[uz(i * dim + j)] += x; });
  };
  Index directions = 0;
  for (Index t = 0; t < n; t += gram_rows) {
    const Index count = std::min(gram_rows, n - t);
    directions += kernel.unit_rows(rows(t, count), stride, count, dim, centre.data(), shift.data(),
                                   sum.block());
    sum.add_block(count);
    if (sum.full()) flush();
  }
  flush();
  if (directions > 0)
    for (double& x : total) x /= double(directions);
  return symmetric_eigenvalues(total, dim);
}

inline std::vector<double> spectrum(const Rows& x) {
  return spectrum(x.rows(), x.cols(), x.outerStride(),
                  [&](Index first, Index) { return x.data() + first * x.outerStride(); });
}

// The reference form: H_k of all rows, two exact passes.
inline double matrix_entropy(const Rows& x, Index k = 0) {
  return truncated_entropy(spectrum(x), k);
}

// The streaming form: count, mean and second moments of unit rows. 4 d^2 + 16 d bytes, whatever the
// number of rows; blocks of any size give the same sums up to rounding.
class UnitMoments {
 public:
  Index count() const { return count_; }  // rows with a direction
  Index seen() const { return seen_; }    // rows added
  Index dim() const { return static_cast<Index>(sum_.size()); }
  std::size_t bytes() const {
    return (sum_.capacity() + lower_.capacity()) * sizeof(double) + shift_.capacity() * 4;
  }

  // n rows of `dim` channels, `stride` apart.
  void add(const float* x, Index stride, Index n, Index dim) {
    using namespace detail;
    if (n == 0) return;
    const GramTable& kernel = gram_kernels();
    const Index wide = round_up(dim, gram_panel);
    thread_local std::vector<float> zero;
    thread_local Floats work;
    zero.assign(uz(wide), 0.f);
    if (sum_.empty()) start(x, stride, std::min(n, gram_rows), dim);
    seen_ += n;
    if (n < 8) return add_few(x, stride, n);
    GramSum sum(dim, work);
    const auto flush = [&] {
      sum.flush([&](Index i, Index j, double y) { lower_[uz(i * (i + 1) / 2 + j)] += y; });
    };
    for (Index t = 0; t < n; t += gram_rows) {
      const Index rows = std::min(gram_rows, n - t);
      count_ += kernel.unit_rows(x + t * stride, stride, rows, dim, zero.data(), shift_.data(),
                                 sum.block());
      for (Index c = 0; c < dim; ++c) {
        const float* column =
            sum.block() + c / gram_panel * gram_panel * gram_rows + c % gram_panel;
        double part = 0;
        for (Index r = 0; r < rows; ++r) part += double{column[r * gram_panel]};
        sum_[uz(c)] += part;
      }
      sum.add_block(rows);
      if (sum.full()) flush();
    }
    flush();
  }

  // Eigenvalues of the covariance, largest first.
  std::vector<double> spectrum() const {
    using detail::uz;
    const Index dim = static_cast<Index>(sum_.size());
    const double n = std::max<double>(1, double(count_));
    std::vector<double> covariance(uz(dim * dim), 0.0);
    for (Index i = 0; i < dim; ++i)
      for (Index j = 0; j <= i; ++j)
        covariance[uz(i * dim + j)] =
            lower_[uz(i * (i + 1) / 2 + j)] / n - sum_[uz(i)] / n * (sum_[uz(j)] / n);
    return symmetric_eigenvalues(covariance, dim);
  }
  double entropy(Index k = 0) const { return truncated_entropy(spectrum(), k); }

 private:
  // The mean direction of the first rows is taken off all of them, so that subtracting the mean at
  // the end costs no digits.
  void start(const float* x, Index stride, Index n, Index dim) {
    using namespace detail;
    sum_.assign(uz(dim), 0.0);
    lower_.assign(uz(dim * (dim + 1) / 2), 0.0);
    shift_.assign(uz(round_up(dim, gram_panel)), 0.f);
    for (Index t = 0; t < n; ++t) {
      double norm = 0;
      for (Index c = 0; c < dim; ++c) norm += double{x[t * stride + c]} * double{x[t * stride + c]};
      if (!(norm > 0)) continue;
      for (Index c = 0; c < dim; ++c)
        shift_[uz(c)] +=
            static_cast<float>(double{x[t * stride + c]} / std::sqrt(norm) / double(n));
    }
  }

  // A step of decoding: not worth a Gram product.
  void add_few(const float* x, Index stride, Index n) {
    using detail::uz;
    thread_local std::vector<double> u;
    u.resize(sum_.size());
    for (Index t = 0; t < n; ++t) {
      const float* row = x + t * stride;
      double norm = 0;
      for (std::size_t c = 0; c < u.size(); ++c) norm += double{row[c]} * double{row[c]};
      if (!(norm > 0)) continue;
      for (std::size_t c = 0; c < u.size(); ++c)
        u[c] = double{row[c]} / std::sqrt(norm) - double{shift_[c]};
      std::size_t at = 0;
      for (std::size_t i = 0; i < u.size(); ++i) {
        sum_[i] += u[i];
        for (std::size_t j = 0; j <= i; ++j) lower_[at++] += u[i] * u[j];
      }
      ++count_;
    }
  }

  Index count_ = 0, seen_ = 0;
  std::vector<double> sum_, lower_;  // lower_: packed lower triangle
  std::vector<float> shift_;
};

LESSKV_END_NAMESPACE
