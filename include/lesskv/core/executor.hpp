// SPDX-License-Identifier: MIT
// The library starts no thread. Loops over heads go through an executor that the user may replace
// by his own pool.
#pragma once

#include <functional>

#include "types.hpp"

LESSKV_BEGIN_NAMESPACE

// Runs task(0) ... task(count - 1), in any order and on any threads, and returns when all have
// returned.
using Executor = std::function<void(Index count, const std::function<void(Index)>& task)>;

namespace detail {
// Without an executor the task is called directly: no std::function is built, nothing is allocated.
template <class Task>
void run(const Executor& executor, Index count, Task&& task) {
  if (executor && count > 1)
    executor(count, [&task](Index i) { task(i); });
  else
    for (Index i = 0; i < count; ++i) task(i);
}
}  // namespace detail

LESSKV_END_NAMESPACE
