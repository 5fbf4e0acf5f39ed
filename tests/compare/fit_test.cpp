// SPDX-License-Identifier: MIT
#include "compare/fit.hpp"

#include <gtest/gtest.h>

#include <random>
#include <stdexcept>

#include "compare/parallel.hpp"

namespace fit_test {

using namespace compare;

// The largest step that fits, one after the other.
Fit slow(const std::function<std::size_t(double)>& size, std::size_t limit, std::size_t all,
         long steps) {
  if (all <= limit) return {1, true};
  Fit best{1e-6, false};
  for (long k = 0; k < steps; ++k) {
    const double fraction = std::max(static_cast<double>(k) / static_cast<double>(steps), 1e-6);
    if (size(fraction) <= limit) best = {fraction, true};
  }
  return best;
}

TEST(Fit, FindsTheLargestFractionThatFits) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 300; ++trial) {
    const long steps = 1 + static_cast<long>(random() % 300);
    // Any rising staircase with an offset: pins, blocks, books.
    const double offset = static_cast<double>(random() % 2000),
                 bend = 0.2 + 0.01 * static_cast<double>(random() % 400);
    const std::size_t block = 1 + random() % 200;
    const auto size = [&](double fraction) {
      const double x = offset + 10000 * std::pow(fraction, bend);
      return static_cast<std::size_t>(x) / block * block;
    };
    const std::size_t limit = random() % 13000, all = size(1);
    const Fit got = fit_fraction(size, limit, all, steps), want = slow(size, limit, all, steps);
    EXPECT_EQ(got.fits, want.fits) << trial;
    EXPECT_EQ(got.fraction, want.fraction) << trial;
  }
}

TEST(Fit, AStraightLineTakesFewCalls) {
  int calls = 0;
  const Fit fit = fit_fraction(
      [&](double fraction) {
        ++calls;
        return static_cast<std::size_t>(500 + 100000 * fraction);
      },
      25000, 100500, 4096);
  EXPECT_TRUE(fit.fits);
  EXPECT_NEAR(fit.fraction, 0.245, 1.0 / 4096);
  EXPECT_LE(calls, 5);
}

TEST(Fit, SlackSavesCallsAndStaysBelow) {
  for (const long pins : {0L, 37L, 300L}) {
    int exact_calls = 0, calls = 0;
    const auto size = [&](int& count) {
      return [&count, pins](double fraction) {
        ++count;
        return static_cast<std::size_t>(pins + std::floor(fraction * 4096) * 8.7);
      };
    };
    const Fit exact = fit_fraction(size(exact_calls), 5000, 40000, 4096);
    const Fit near = fit_fraction(size(calls), 5000, 40000, 4096, 0.002);
    EXPECT_TRUE(near.fits);
    EXPECT_LE(near.fraction, exact.fraction);
    EXPECT_GE(near.fraction, 0.995 * exact.fraction);
    EXPECT_LE(calls, exact_calls);
  }
}

TEST(Parallel, EveryJobRunsOnce) {
  for (const int threads : {1, 2, 7}) {
    std::vector<std::atomic<int>> ran(100);
    run_parallel(threads, ran.size(), [&](std::size_t i, int thread) {
      EXPECT_LT(thread, threads);
      ++ran[i];
    });
    for (const auto& count : ran) EXPECT_EQ(count, 1);
  }
  run_parallel(3, 0, [](std::size_t, int) { FAIL(); });
}

TEST(Parallel, TheFirstErrorComesOutAndStopsTheRest) {
  std::atomic<int> ran = 0;
  EXPECT_THROW(run_parallel(2, 100000,
                            [&](std::size_t i, int) {
                              ++ran;
                              if (i == 3) throw std::runtime_error("job 3");
                            }),
               std::runtime_error);
  EXPECT_LT(ran, 100000);
}

}  // namespace fit_test
