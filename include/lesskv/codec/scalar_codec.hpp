// SPDX-License-Identifier: MIT
// ScalarCodec: a scalar code as the store takes it.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "../core/error.hpp"
#include "../core/side_codec.hpp"
#include "scalar_code.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

class ScalarCodec final : public SideCodec {
 public:
  explicit ScalarCodec(const ScalarFormat& format, const ScalarKernels& kernels = scalar_kernels())
      : format_(format), kernels_(kernels), code_(side_code(format_, kernels)) {}
  ScalarCodec(const ScalarCodec&) = delete;

  std::size_t bytes(Index rows) const override { return uz(format_.bytes(rows)); }
  void encode(const float* rows, const std::uint32_t*, Index n, void* block) const override {
    kernels_.encode(format_, rows, n, block);
  }
  const SideCode& code() const override { return code_; }
  const ScalarFormat& format() const { return format_; }

 private:
  ScalarFormat format_;
  const ScalarKernels& kernels_;
  SideCode code_;
};

}  // namespace detail
LESSKV_END_NAMESPACE
