// SPDX-License-Identifier: MIT
// The hot loops, chosen at run time by what the CPU has. One body (body.inc) in GCC/clang vector
// extensions is compiled once per instruction set under a target pragma, so that plain -O2 gives
// full speed; cpuid picks a table once. Kernels check nothing: the library does, before it calls
// them.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <span>

#include "../core/types.hpp"

#if defined(__x86_64__) && !LESSKV_DECLARE_ONLY
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && !LESSKV_DECLARE_ONLY
#include <arm_neon.h>
#endif

LESSKV_BEGIN_NAMESPACE

// Storage of up to 64 rows of one KV head. Keys: tokens in lanes, tiles of 16 rows, key (row r,
// channel c) at keys[(r / 16) * key_dim * 16 + c * 16 + r % 16]. Values: token-major, values[r *
// value_dim + c]. Keys are 64-byte aligned. Rows of the last tile that are not there must hold
// finite numbers; their keys are read, their values are not.
struct BlockRef {
  const void* keys;
  const void* values;
  Index rows;
  bool coded = false;  // what has a code in the task is stored as the code says, not as above
  const std::uint32_t* positions = nullptr;  // of the rows; only codes that ask for them read it
};

// How one side, keys or values, of a coded block is read. The functions are of one instruction set;
// `context` is theirs. Rows of queries come 4 at a time, padded with zeros, 8 at most.
struct SideCode {
  const void* context;
  Index dim;              // channels
  Index key_workspace;    // floats that prepare() and scores() need beside the queries
  Index value_workspace;  // floats that values() needs beside acc
  Index acc_width;  // floats per query row that values() adds up, in the code's own basis; 0: num
  // Keys, once a call of attend: whatever scores() wants of the queries, to `prepared`. coded_rows:
  // of all blocks together.
  void (*prepare)(const SideCode&, const float* queries, Index query_rows, Index coded_rows,
                  float* prepared);
  // out[i * 64 + r] = query i . key r; `prepared` is also its workspace. `ahead` and the bytes behind
  // it are read next.
  void (*scores)(const SideCode&, const BlockRef&, float* prepared, Index query_rows, float* out,
                 const char* ahead, Index ahead_bytes);
  // acc[i * width + c] += sum of weights[i * 64 + r] * value r.
  void (*values)(const SideCode&, const BlockRef&, const float* weights, Index query_rows,
                 float* acc, float* workspace, const char* ahead, Index ahead_bytes);
  // num[i * dim + c] += acc, out of the code's basis; acc is not read again. Null: acc is num.
  void (*finish)(const SideCode&, float* acc, Index query_rows, float* num);
  // Rows [first, first + count) of a block as f32, [count][dim].
  void (*decode)(const SideCode&, const void* block, const std::uint32_t* positions, Index first,
                 Index count, float* out);
};

// Attention of some query rows over one KV head, as a partial softmax: max, den and num go in and
// out, so that several calls (tail and blocks, or parts of a cache) add up. The caller starts with
// max = -inf, den = 0, num = 0 and divides num by den at the end; a query row that sees nothing
// keeps these.
struct AttendTask {
  const BlockRef* blocks;
  Index block_count;
  DType dtype;
  const SideCode* key_code;    // of coded blocks; null: their keys too are stored as dtype
  const SideCode* value_code;  // likewise
  int key_dim, value_dim;
  const float* queries;  // [query_rows][key_dim]
  Index query_rows;
  const Index* visible;  // query row i sees the first visible[i] rows of the head; null: all rows
  float scale;           // logit = scale * q.k,
  float softcap;         // then softcap * tanh(logit / softcap) if softcap > 0,
  const float*
      bias;  // then + bias[i * bias_stride + row], unless null; may be -inf, which hides the row
  Index bias_stride;
  float* max;        // [query_rows]
  float* den;        // [query_rows]
  float* num;        // [query_rows][value_dim]
  float* workspace;  // attend_workspace(task) floats, 64-byte aligned
  // Unless null: [query_rows][weight_stride], the weights of the rows of these blocks, which
  // finish_weights() completes when all parts are done: a block's weights refer to the maximum of its
  // time, block_max[query_rows][block_max_stride].
  float* weights = nullptr;
  Index weight_stride = 0;
  float* block_max = nullptr;
  Index block_max_stride = 0;
};

struct KernelTable {
  const char* name;
  int lanes;  // floats per vector
  void (*attend)(const AttendTask&);
  // The logits alone, [query_rows][out_stride], all rows of the head; `visible`, max, den, num and
  // values are not read.
  void (*logits)(const AttendTask&, float* out, Index out_stride);
  // weights of all blocks, in place to softmax weights: divided by the final den, referred to the final
  // max, [query_rows] each; 0 where a query row sees nothing.
  void (*finish_weights)(const AttendTask&, const float* max, const float* den);
  // In place, `count` rows of n: row i becomes the softmax over its first visible[i] numbers (null:
  // n) and 0 after. A row that sees nothing but -inf becomes 0.
  void (*softmax_rows)(float* rows, Index count, Index stride, const Index* visible, Index n);
  // f32 rows into and out of the key layout of a block, rows [row, row + n).
  void (*pack_keys)(DType, void* block_keys, int dim, Index row, const float* src, Index src_stride,
                    Index n);
  void (*unpack_keys)(DType, const void* block_keys, int dim, Index row, Index n, float* dst,
                      Index dst_stride);
  // n contiguous numbers. Rounds to nearest, ties to even; NaN stays NaN; too large becomes
  // infinite.
  void (*to_f32)(DType, const void* src, float* dst, Index n);
  void (*from_f32)(DType, const float* src, void* dst, Index n);
};

namespace detail {
inline constexpr Index kernel_block = 64;  // rows of a block
inline constexpr Index kernel_tile = 16;   // rows whose keys lie side by side
inline constexpr Index few_query_rows =
    8;  // up to here a pass is bound by memory and converts in registers
inline constexpr Index few_query_tile = 4;   // query rows that share the loads there
inline constexpr Index many_query_tile = 6;  // query rows of the register tile above that

// Where a kernel keeps what, in floats from the start of the workspace. One layout for all calls.
struct Workspace {
  Index den, logits, queries, num, prepared, acc, value_scratch, keys, values, plain, size;

  explicit Workspace(const AttendTask& task) {
    Index at = 0;
    const auto take = [&](Index floats) {
      const Index start = at;
      at += round_up(floats, kernel_tile);
      return start;
    };
    const Index rows = task.query_rows, value_pad = round_up(task.value_dim, kernel_tile);
    den = take(round_up(rows, many_query_tile) * kernel_tile);  // by lanes
    logits = take((few_query_rows + 1) * kernel_block);         // of a tile of query rows
    // Few rows: padded copies, and what codes want.
    const Index padded = rows <= few_query_rows ? round_up(rows, few_query_tile) : 0;
    queries = take(padded * task.key_dim);
    num = take(std::max(padded * task.value_dim, value_pad));
    prepared = take(task.key_code ? task.key_code->key_workspace : 0);
    acc = take(task.value_code ? padded * task.value_code->acc_width : 0);
    value_scratch = take(task.value_code ? task.value_code->value_workspace : 0);
    // Many rows: a block, widened, and a coded one before it is laid out.
    keys = take(kernel_block * task.key_dim);
    values = take(kernel_block * value_pad);
    plain = take(kernel_block * std::max(task.key_dim, task.value_dim));
    size = at;
  }
};
}  // namespace detail

// Floats of workspace that attend and logits need.
inline Index attend_workspace(const AttendTask& task) { return detail::Workspace(task).size; }

LESSKV_END_NAMESPACE

#if LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE
// Every table that this CPU can run, slowest first.
std::span<const KernelTable* const> kernel_tables();
LESSKV_END_NAMESPACE

#else

#define LESSKV_BODY "body.inc"
#include "each_isa.inc"
#undef LESSKV_BODY

LESSKV_BEGIN_NAMESPACE

// Every table that this CPU can run, slowest first.
LESSKV_FUNCTION std::span<const KernelTable* const> kernel_tables() {
  struct List {
    const KernelTable* tables[3] = {&detail::base::table};
    std::size_t count = 1;
    List() {
#if defined(__x86_64__)
      __builtin_cpu_init();
      unsigned a = 0, b = 0, c = 0, d = 0;
      const bool converts = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
      if (!converts || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
      tables[count++] = &detail::avx2::table;
      if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
          !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
          !__builtin_cpu_supports("avx512vnni"))
        return;
      tables[count++] = &detail::avx512::table;
#endif
    }
  };
  static const List list;
  return {list.tables, list.count};
}

LESSKV_END_NAMESPACE

#endif  // LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE

// The best table, chosen at the first call. The environment variable LESSKV_ISA (base, avx2,
// avx512) caps the choice.
inline const KernelTable& kernels() {
  static const KernelTable& chosen = []() -> const KernelTable& {
    const std::span<const KernelTable* const> tables = kernel_tables();
    const KernelTable* best = tables.back();
    if (const char* cap = std::getenv("LESSKV_ISA"))
      for (const KernelTable* table : tables)
        if (std::strcmp(table->name, cap) == 0) best = table;
    return *best;
  }();
  return chosen;
}

LESSKV_END_NAMESPACE
