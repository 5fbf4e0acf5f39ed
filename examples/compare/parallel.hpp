// SPDX-License-Identifier: MIT
// Independent jobs on a fixed number of threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace compare {

// Runs job(index, thread) for every index, started in ascending order. The first exception stops
// the rest and is thrown again here. With one thread everything runs on the caller.
inline void run_parallel(int threads, std::size_t count,
                         const std::function<void(std::size_t, int)>& job) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&](int thread) {
    try {
      for (std::size_t i = next++; i < count; i = next++) job(i, thread);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads && static_cast<std::size_t>(t) < count; ++t)
    others.emplace_back(work, t);
  work(0);
  for (std::thread& thread : others) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace compare
