// SPDX-License-Identifier: MIT
// One KV head stored as the kernels read it, with the f32 numbers that the storage type really
// holds.
#pragma once

#include <gtest/gtest.h>

#include <lesskv/core/scratch.hpp>
#include <lesskv/kernels/kernels.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace fixture {

using lesskv::AttendTask;
using lesskv::BlockRef;
using lesskv::DType;
using lesskv::Index;
using lesskv::KernelTable;
using lesskv::detail::Floats;
using lesskv::detail::round_up;
using lesskv::detail::uz;

inline float stored(float x, DType type) {
  if (type == DType::f16) return lesskv::to_float(lesskv::to_f16(x));
  if (type == DType::bf16) return lesskv::to_float(lesskv::to_bf16(x));
  return x;
}

inline std::vector<float> normal(Index n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> x(uz(n));
  for (float& v : x) v = distribution(random);
  return x;
}

// Writes element i of an array of the storage type, one number at a time: shares nothing with the
// kernels.
inline void put(void* data, Index i, float x, DType type) {
  if (type == DType::f32)
    static_cast<float*>(data)[i] = x;
  else if (type == DType::f16)
    static_cast<lesskv::f16*>(data)[i] = lesskv::to_f16(x);
  else
    static_cast<lesskv::bf16*>(data)[i] = lesskv::to_bf16(x);
}

inline std::string table_name(const testing::TestParamInfo<const KernelTable*>& table) {
  return table.param->name;
}

struct Head {
  Head(Index row_count, int key_width, int value_width, DType stored_type, unsigned seed)
      : type(stored_type), rows(row_count), key_dim(key_width), value_dim(value_width) {
    keys = normal(rows * key_dim, seed);
    values = normal(rows * value_dim, seed + 1);
    for (float& x : keys) x = stored(x, type);
    for (float& x : values) x = stored(x, type);
    for (Index first = 0; first < rows; first += 64) {
      // Exactly what the contract promises, so that a read past it is a heap error under ASan.
      const Index n = std::min<Index>(64, rows - first), size = lesskv::size_of(type);
      const Index key_bytes = round_up(n, 16) * key_dim * size, value_bytes = n * value_dim * size;
      float* k = memory.emplace_back(key_bytes / 4 + 1).data();
      float* v = memory.emplace_back(value_bytes / 4 + 1).data();
      std::memset(k, 0, uz(key_bytes));
      for (Index r = 0; r < n; ++r) {
        for (Index c = 0; c < key_dim; ++c)
          put(k, r / 16 * key_dim * 16 + c * 16 + r % 16, keys[uz((first + r) * key_dim + c)],
              type);
        for (Index c = 0; c < value_dim; ++c)
          put(v, r * value_dim + c, values[uz((first + r) * value_dim + c)], type);
      }
      blocks.push_back({k, v, n});
    }
  }

  DType type;
  Index rows;
  int key_dim, value_dim;
  std::vector<float> keys, values;
  std::vector<Floats> memory;
  std::vector<BlockRef> blocks;
};

// A task with its outputs.
struct Call {
  Call(const Head& head, const std::vector<float>& rows) : queries(rows) {
    const Index n = static_cast<Index>(queries.size()) / head.key_dim;
    max.assign(uz(n), -std::numeric_limits<float>::infinity());
    den.assign(uz(n), 0);
    num.assign(uz(n * head.value_dim), 0);
    task.blocks = head.blocks.data();
    task.block_count = static_cast<Index>(head.blocks.size());
    task.dtype = head.type;
    task.key_dim = head.key_dim;
    task.value_dim = head.value_dim;
    task.queries = queries.data();
    task.query_rows = n;
    task.scale = 1 / std::sqrt(static_cast<float>(head.key_dim));
    task.max = max.data();
    task.den = den.data();
    task.num = num.data();
    task.workspace = workspace.reserve(lesskv::attend_workspace(task));
    // Whatever is in there must not matter.
    std::fill_n(task.workspace, lesskv::attend_workspace(task),
                std::numeric_limits<float>::quiet_NaN());
  }
  Call(const Call&) = delete;

  std::vector<float> output() const {
    std::vector<float> out = num;
    const std::size_t dim = uz(task.value_dim);
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = den[i / dim] > 0 ? num[i] / den[i / dim] : num[i];
    return out;
  }

  std::vector<float> queries, max, den, num;
  Floats workspace;
  AttendTask task{};
};

}  // namespace fixture
