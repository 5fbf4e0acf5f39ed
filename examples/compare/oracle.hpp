// SPDX-License-Identifier: MIT
// A bound for eviction by attention: rows stay by the attention that what is fed behind the context
// really pays them, times the norm of their value. No method: it sees the future.
#pragma once

#include <memory>
#include <vector>

#include "evaluate.hpp"

namespace compare {

// A number for every row of the context, [layer][kv head][row].
using Future = std::vector<float>;

inline std::shared_ptr<const Future> future_of(engine::Run& run, const Pass& pass,
                                               std::span<const Continuation> tasks) {
  const lesskv::Shape& shape = pass.exact.shape();
  const Index context = pass.tensors.tokens();
  auto out = std::make_shared<Future>(static_cast<std::size_t>(shape.heads() * context), 0.f);
  const auto of_head = [&](int layer, int head) {
    return Eigen::Map<Eigen::ArrayXf>(
        out->data() + (Index{layer} * shape.kv_heads + head) * context, context);
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

struct SeesFuture {
  std::shared_ptr<const Future> future;
  Index context = 0;
  int kv_heads = 0;

  static constexpr lesskv::Need needs = lesskv::Need::nothing;
  void score(const lesskv::Head& head, std::span<float> out) const {
    const float* own = future->data() + (Index{head.layer} * kv_heads + head.head) * context;
    for (Index r = head.first; r < head.last; ++r)
      out[static_cast<std::size_t>(r)] =
          own[lesskv::to_int(head.positions[static_cast<std::size_t>(r)])];
  }
};

// The policy with its scorer replaced. Each task is judged behind a cache that was made for it.
template <class Look>
DocumentResult evaluate_oracle(engine::Run& run, const Variant& variant, const Pass& pass,
                               const DocumentTasks& tasks, const std::string& name,
                               const Look& look, Solved& solved) {
  const auto judge = [&](std::span<const Continuation> of, const auto& see) {
    Policy policy = *variant.policy;
    policy.spec.scorer.emplace(
        SeesFuture{future_of(run, pass, of), pass.tensors.tokens(), pass.exact.shape().kv_heads});
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
