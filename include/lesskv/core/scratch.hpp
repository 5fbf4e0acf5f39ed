// SPDX-License-Identifier: MIT
// Working memory that is kept by the thread, so that a steady step allocates nothing. It belongs to
// no cache and is not part of bytes().
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "types.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

inline constexpr std::align_val_t alignment{64};

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete(p, alignment); }
};

// Memory of any size. From 2 MB on it begins on a huge page and asks the kernel for huge pages, before
// anything is written: a pass over it then misses the TLB hardly ever.
inline constexpr std::size_t huge_page = std::size_t{2} << 20;

inline std::shared_ptr<std::byte> allocate_pages(std::size_t n) {
  if (n < huge_page)
    return {static_cast<std::byte*>(::operator new(n, alignment)), AlignedDelete{}};
  constexpr std::align_val_t page{huge_page};
  auto* data = static_cast<std::byte*>(::operator new(n, page));
#if defined(__linux__)
  // A hint: where it is refused, memory lies on small pages.
  (void)::madvise(data, n / huge_page * huge_page, MADV_HUGEPAGE);
#endif
  return {data, [](std::byte* p) { ::operator delete(p, page); }};
}

// Uninitialised floats, 64-byte aligned.
class Floats {
 public:
  Floats() = default;
  explicit Floats(Index count) { reserve(count); }
  // At least `count` floats; contents are not kept.
  float* reserve(Index count) {
    if (count > capacity_) {
      data_.reset();
      data_.reset(static_cast<float*>(::operator new(uz(count) * sizeof(float), alignment)));
      capacity_ = count;
    }
    return data_.get();
  }
  float* data() const { return data_.get(); }

 private:
  std::unique_ptr<float, AlignedDelete> data_;
  Index capacity_ = 0;
};

}  // namespace detail
LESSKV_END_NAMESPACE
