// SPDX-License-Identifier: MIT
// DecodedCodec: a codec that attention reads by decoding a block at a time into scratch. Its author
// writes bytes(), encode() and decode_rows() and nothing else; the price is 8 bytes of first-level
// cache traffic a number, so codecs that are meant for speed bring kernels (scalar_code.hpp).
#pragma once

#include <algorithm>
#include <cstring>

#include "../core/scratch.hpp"
#include "../core/side_codec.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

class DecodedCodec : public SideCodec {
 public:
  explicit DecodedCodec(int dim) {
    code_.context = this;
    code_.dim = dim;
    code_.key_workspace = few_query_rows * dim;
    code_.acc_width = dim;
    code_.prepare = &prepare;
    code_.scores = &scores;
    code_.values = &values;
    code_.finish = &finish;
    code_.decode = [](const SideCode& code, const void* block, const std::uint32_t*, Index first,
                      Index count,
                      float* out) { self(code).decode_rows(block, first, count, out); };
  }
  DecodedCodec(const DecodedCodec&) = delete;
  const SideCode& code() const final { return code_; }

  // Rows [first, first + count) of a block, [count][dim].
  virtual void decode_rows(const void* block, Index first, Index count, float* out) const = 0;

 private:
  static const DecodedCodec& self(const SideCode& code) {
    return *static_cast<const DecodedCodec*>(code.context);
  }
  static const float* rows_of(const SideCode& code, const void* block, Index rows) {
    thread_local Floats scratch;
    float* out = scratch.reserve(kernel_block * code.dim);
    self(code).decode_rows(block, 0, rows, out);
    return out;
  }
  static void prepare(const SideCode& code, const float* queries, Index query_rows, Index,
                      float* prepared) {
    std::memcpy(prepared, queries, uz(query_rows * code.dim) * sizeof(float));
  }
  static void scores(const SideCode& code, const BlockRef& block, float* prepared, Index query_rows,
                     float* out, const char*, Index) {
    const float* keys = rows_of(code, block.keys, block.rows);
    for (Index i = 0; i < query_rows; ++i) {
      const float* q = prepared + i * code.dim;
      float* to = out + i * kernel_block;
      for (Index r = 0; r < block.rows; ++r) {
        const float* key = keys + r * code.dim;
        float sum[8] = {};
        Index c = 0;
        for (; c + 8 <= code.dim; c += 8)
          for (Index k = 0; k < 8; ++k) sum[k] += q[c + k] * key[c + k];
        for (; c < code.dim; ++c) sum[0] += q[c] * key[c];
        to[r] = (sum[0] + sum[4]) + (sum[1] + sum[5]) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
      }
      std::fill(to + block.rows, to + kernel_block, 0.f);
    }
  }
  static void values(const SideCode& code, const BlockRef& block, const float* weights,
                     Index query_rows, float* acc, float*, const char*, Index) {
    const float* rows = rows_of(code, block.values, block.rows);
    for (Index i = 0; i < query_rows; ++i)
      for (Index r = 0; r < block.rows; ++r) {
        const float weight = weights[i * kernel_block + r];
        for (Index c = 0; c < code.dim; ++c)
          acc[i * code.dim + c] += weight * rows[r * code.dim + c];
      }
  }
  static void finish(const SideCode& code, float* acc, Index query_rows, float* num) {
    for (Index i = 0; i < query_rows * code.dim; ++i) num[i] += acc[i];
  }

  SideCode code_{};
};

}  // namespace detail
LESSKV_END_NAMESPACE
