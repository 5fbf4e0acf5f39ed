// SPDX-License-Identifier: MIT
// Working memory that is kept by the thread, so that a steady step allocates nothing. It belongs to
// no cache and is not part of bytes().
#pragma once

#include <cstring>
#include <memory>
#include <new>

#include "types.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

inline constexpr std::align_val_t alignment{64};

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete(p, alignment); }
};

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
