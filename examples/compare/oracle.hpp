// SPDX-License-Identifier: MIT
// A bound for eviction by attention: rows stay by the attention that what is fed behind the context
// really pays them, times the norm of their value. No method: it sees the future.
#pragma once

#include <memory>

#include "evaluate.hpp"
#include "row_scores.hpp"

namespace compare {

inline std::shared_ptr<const RowNumbers> future_of(engine::Run& run, const Pass& pass,
                                                   std::span<const Continuation> tasks) {
  const lesskv::Shape& shape = pass.exact.shape();
  const Index context = pass.tensors.tokens();
  auto out = std::make_shared<RowNumbers>(shape, context);
  const auto of_head = [&](int layer, int head) {
    return Eigen::Map<Eigen::ArrayXf>(out->of(layer, head), context);
  };
  for (const Continuation& task : tasks) {
    lesskv::KVCache<> cache = pass.exact.fork();
    Tensors fed(shape);
    forward_and_keep(run, cache, fed, task.fed, context);
    for (int layer = 0; layer < shape.layers; ++layer)
      for (int head = 0; head < shape.kv_heads; ++head)
        of_head(layer, head) += cache.attention(layer, head, fed.queries(layer))
                                    .leftCols(context)
                                    .colwise()
                                    .sum()
                                    .transpose()
                                    .array();
  }
  for (int layer = 0; layer < shape.layers; ++layer)
    for (int head = 0; head < shape.kv_heads; ++head)
      of_head(layer, head) *= pass.exact.values(layer, head).rowwise().norm().array();
  return out;
}

// The policy with its scorer replaced. Each task is judged behind a cache that was made for it.
template <class Look>
DocumentResult evaluate_oracle(engine::Run& run, const Variant& variant, const Pass& pass,
                               const DocumentTasks& tasks, const std::string& name,
                               const Look& look, Solved& solved) {
  const auto judge = [&](std::span<const Continuation> of, const auto& see) {
    Policy policy = *variant.policy;
    policy.spec.scorer.emplace(RowScores{future_of(run, pass, of)});
    solved = solve({&policy, variant.target}, pass);
    return solved.fits ? evaluate_document(run, solved, pass, tasks, name, see) : DocumentResult{};
  };
  DocumentResult copied = judge(tasks.copies, [](const lesskv::AnyCache&) {});
  if (!solved.fits) return copied;
  DocumentResult out = judge({&tasks.running, 1}, look);
  out.copies = std::move(copied.copies);
  return out;
}

}  // namespace compare
