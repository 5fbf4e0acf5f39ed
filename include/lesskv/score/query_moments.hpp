// SPDX-License-Identifier: MIT
// Mean and covariance of queries as they were before RoPE, gathered while they stream by. No query
// is kept: 4 d bytes a query head, and 2 d (d + 1) with the covariance.
//
// Chan, Golub and LeVeque's update: a block is taken about the mean so far, so that sums stay small
// and f32 is enough for what is kept; blocks of any size give the same moments up to rounding.
#pragma once

#include <algorithm>
#include <vector>

#include "../core/head.hpp"
#include "../core/scratch.hpp"
#include "../kernels/gram.hpp"

LESSKV_BEGIN_NAMESPACE

class QueryMoments {
 public:
  Index count() const { return count_; }
  std::span<const float> mean() const { return mean_; }
  bool has_covariance() const { return !lower_.empty(); }
  // Of channels i and j.
  double covariance(Index i, Index j) const {
    if (i < j) std::swap(i, j);
    return double{lower_[detail::uz(i * (i + 1) / 2 + j)]} / double(std::max<Index>(1, count_));
  }
  std::size_t bytes() const { return (mean_.capacity() + lower_.capacity()) * sizeof(float); }

  // n rows of `dim` channels, one behind the other.
  void add(const float* x, Index n, Index dim, bool with_covariance) {
    using namespace detail;
    thread_local std::vector<double> sum;
    thread_local Floats work;
    const Index wide = round_up(dim, gram_panel);
    for (Index first = 0; first < n; first += gram_rows) {
      const Index rows = std::min(gram_rows, n - first);
      const float* block = x + first * dim;
      sum.assign(uz(dim), 0.0);
      if (mean_.empty()) start(block, rows, dim, with_covariance);
      float* panels = work.reserve(wide * (gram_rows + wide));
      float* products = panels + wide * gram_rows;
      std::fill_n(panels, wide * gram_rows, 0.f);
      for (Index t = 0; t < rows; ++t)
        for (Index c = 0; c < dim; ++c) {
          const float y = block[t * dim + c] - mean_[uz(c)];
          panels[c / gram_panel * gram_panel * gram_rows + t * gram_panel + c % gram_panel] = y;
          sum[uz(c)] += double{y};
        }
      count_ += rows;
      const double share = 1 / double(count_);
      if (with_covariance) {
        std::fill_n(products, wide * wide, 0.f);
        gram_kernels().gram(panels, rows, dim, products);
        float* to = lower_.data();
        for (Index i = 0; i < dim; ++i) {
          const auto factor = static_cast<float>(share * sum[uz(i)]);
          for (Index j = 0; j <= i; ++j)
            *to++ += products[i * wide + j] - factor * static_cast<float>(sum[uz(j)]);
        }
      }
      for (Index c = 0; c < dim; ++c)
        mean_[uz(c)] = static_cast<float>(double{mean_[uz(c)]} + share * sum[uz(c)]);
    }
  }

 private:
  // Any centre will do for the first block; its own mean costs no digits.
  void start(const float* x, Index n, Index dim, bool with_covariance) {
    mean_.assign(detail::uz(dim), 0.f);
    if (with_covariance) lower_.assign(detail::uz(dim * (dim + 1) / 2), 0.f);
    for (Index t = 0; t < n; ++t)
      for (Index c = 0; c < dim; ++c)
        mean_[detail::uz(c)] += x[t * dim + c] / static_cast<float>(n);
  }

  Index count_ = 0;
  std::vector<float> mean_, lower_;  // lower_: packed lower triangle of summed products
};

LESSKV_END_NAMESPACE
