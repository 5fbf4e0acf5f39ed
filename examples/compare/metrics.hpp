// SPDX-License-Identifier: MIT
// What is measured on a pair of logit rows, and means with their standard errors.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace compare {

using Index = std::ptrdiff_t;

// Mean of numbers that come one by one or in parts. Welford's and Chan's updates: no cancellation.
class Mean {
 public:
  void add(double x) {
    ++count_;
    const double step = x - mean_;
    mean_ += step / static_cast<double>(count_);
    squares_ += step * (x - mean_);
  }
  void add(const Mean& other) {
    if (other.count_ == 0) return;
    const double a = static_cast<double>(count_), b = static_cast<double>(other.count_),
                 step = other.mean_ - mean_;
    mean_ += step * b / (a + b);
    squares_ += other.squares_ + step * step * a * b / (a + b);
    count_ += other.count_;
  }
  Index count() const { return count_; }
  // NaN if there is nothing to average.
  double value() const { return count_ > 0 ? mean_ : std::numeric_limits<double>::quiet_NaN(); }
  // Of the mean: sample deviation / sqrt(count). 0 for fewer than two numbers.
  double standard_error() const {
    if (count_ < 2) return 0;
    return std::sqrt(squares_ / static_cast<double>(count_ - 1) / static_cast<double>(count_));
  }

 private:
  Index count_ = 0;
  double mean_ = 0, squares_ = 0;
};

// Of a share found in n trials.
inline double binomial_standard_error(double share, Index n) {
  return n > 0 ? std::sqrt(share * (1 - share) / static_cast<double>(n)) : 0;
}

// Spearman's: the correlation of ranks; equal numbers share the mean of their ranks. NaN where all
// numbers are equal.
inline double rank_correlation(std::span<const double> x, std::span<const double> y) {
  const auto ranks = [](std::span<const double> numbers) {
    Eigen::ArrayXd out(static_cast<Index>(numbers.size()));
    for (Index i = 0; i < out.size(); ++i) {
      double rank = -0.5;
      for (const double other : numbers) {
        const double own = numbers[static_cast<std::size_t>(i)];
        rank += other < own ? 1 : other == own ? 0.5 : 0;
      }
      out[i] = rank;
    }
    return Eigen::ArrayXd(out - out.mean());
  };
  const Eigen::ArrayXd a = ranks(x), b = ranks(y);
  return (a * b).sum() / std::sqrt(a.square().sum() * b.square().sum());
}

// The lowest index of the largest number.
inline Index argmax(std::span<const float> x) {
  Index best = 0;
  for (Index i = 1; i < static_cast<Index>(x.size()); ++i)
    if (x[static_cast<std::size_t>(i)] > x[static_cast<std::size_t>(best)]) best = i;
  return best;
}

struct LogitComparison {
  double divergence = 0;  // KL(exact || other) in nats, over the whole vocabulary
  bool same_argmax = false;
  Index other_best = 0;                         // its first choice
  double exact_log_sum = 0, other_log_sum = 0;  // log of the softmax denominators
};

// Exponentials in f32, a piece at a time so that they stay in the first-level cache; sums in
// double.
inline LogitComparison compare_logits(std::span<const float> exact, std::span<const float> other) {
  constexpr Index piece = 1024;
  using Floats = Eigen::Array<float, Eigen::Dynamic, 1>;
  const Index n = static_cast<Index>(exact.size());
  const Index exact_best = argmax(exact), other_best = argmax(other);
  const float exact_max = exact[static_cast<std::size_t>(exact_best)];
  const float other_max = other[static_cast<std::size_t>(other_best)];
  double exact_sum = 0, other_sum = 0, difference = 0;
  Floats weight(piece);
  for (Index first = 0; first < n; first += piece) {
    const Index count = std::min(piece, n - first);
    const Eigen::Map<const Floats> x(exact.data() + first, count), y(other.data() + first, count);
    weight.head(count) = (x - exact_max).exp();
    exact_sum += weight.head(count).cast<double>().sum();
    difference += (weight.head(count).cast<double>() * (x.cast<double>() - y.cast<double>())).sum();
    weight.head(count) = (y - other_max).exp();
    other_sum += weight.head(count).cast<double>().sum();
  }
  LogitComparison out;
  out.exact_log_sum = double{exact_max} + std::log(exact_sum);
  out.other_log_sum = double{other_max} + std::log(other_sum);
  // Rounding can give -1e-9 where the two are nearly equal.
  out.divergence = std::max(0.0, difference / exact_sum - out.exact_log_sum + out.other_log_sum);
  out.same_argmax = exact_best == other_best;
  out.other_best = other_best;
  return out;
}

// Tokens of one task, compared one by one.
struct TokenScores {
  Mean divergence, same_argmax, loss_delta;
  Mean right;  // the first choice is the token that really follows

  // Logits [token][vocabulary] of both; `next` are the real next tokens.
  void add(std::span<const float> exact, std::span<const float> other,
           std::span<const std::int32_t> next) {
    if (next.empty()) return;
    const std::size_t width = exact.size() / next.size();
    for (std::size_t t = 0; t < next.size(); ++t) {
      const auto x = exact.subspan(t * width, width), y = other.subspan(t * width, width);
      const LogitComparison c = compare_logits(x, y);
      const auto token = static_cast<std::size_t>(next[t]);
      divergence.add(c.divergence);
      same_argmax.add(c.same_argmax ? 1 : 0);
      right.add(c.other_best == static_cast<Index>(next[t]) ? 1 : 0);
      loss_delta.add((c.other_log_sum - double{y[token]}) - (c.exact_log_sum - double{x[token]}));
    }
  }
  void add(const TokenScores& other) {
    divergence.add(other.divergence);
    same_argmax.add(other.same_argmax);
    loss_delta.add(other.loss_delta);
    right.add(other.right);
  }
};

}  // namespace compare
