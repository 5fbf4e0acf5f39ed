// SPDX-License-Identifier: MIT
// What one core can read from DRAM at most: vector sums over 1 GiB. Every benchmark that states a
// share of the read limit measures it in the same run, in turn with what it times.
#pragma once

#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

namespace bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// Time that this thread really ran: on a busy machine its neighbours do not count. Waiting for
// memory does.
inline double thread_now() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

inline double median(std::vector<double> x) {
  const auto middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

// Sums of `n` bytes, a multiple of 512, eight vectors in flight.
#define LESSKV_BENCH_SUM(name, bytes)                                                \
  inline long long name(const char* p, std::size_t n) {                              \
    typedef long long Lanes __attribute__((vector_size(bytes), may_alias));          \
    const Lanes* x = reinterpret_cast<const Lanes*>(p);                              \
    Lanes a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{};                                    \
    for (std::size_t i = 0; i < n / sizeof(Lanes); i += 8) {                         \
      a += x[i], b += x[i + 1], c += x[i + 2], d += x[i + 3];                        \
      e += x[i + 4], f += x[i + 5], g += x[i + 6], h += x[i + 7];                    \
    }                                                                                \
    a += b + c + d + e + f + g + h;                                                  \
    long long sum = 0;                                                               \
    for (std::size_t i = 0; i < sizeof(Lanes) / sizeof(long long); ++i) sum += a[i]; \
    return sum;                                                                      \
  }
LESSKV_BENCH_SUM(sum_base, 16)
#if defined(__x86_64__)
__attribute__((target("avx2"))) LESSKV_BENCH_SUM(sum_avx2, 32) __attribute__((target("avx512f")))
LESSKV_BENCH_SUM(sum_avx512, 64)
#endif
#undef LESSKV_BENCH_SUM

    // 1 GiB to read; huge pages, where the limit is highest.
    class ReadLimit {
 public:
  static constexpr std::size_t bytes = std::size_t{1} << 30;
  ReadLimit() {
    constexpr std::size_t page = std::size_t{2} << 20;
    void* raw =
        mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) std::abort();
    data_ =
        reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(raw) + page - 1) / page * page);
    madvise(data_, bytes, MADV_HUGEPAGE);
    std::memset(data_, 1, bytes);
  }
  // Bytes per second of one pass over `part` bytes; a pass over all of them leaves nothing else in the caches.
  double measure(std::size_t part = bytes, std::size_t from = 0) const {
    const double start = thread_now();
    benchmark::DoNotOptimize(sum()(data_ + from, part));
    return static_cast<double>(part) / (thread_now() - start);
  }

  // The best sum that this CPU can run.
  static auto sum() -> long long (*)(const char*, std::size_t) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return sum_avx512;
    if (__builtin_cpu_supports("avx2")) return sum_avx2;
#endif
    return sum_base;
  }

 private:
  char* data_ = nullptr;
};

}  // namespace bench
