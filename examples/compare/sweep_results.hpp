// SPDX-License-Identifier: MIT
// What a record of the sweep says about one unit of work.
#pragma once

#include <cmath>
#include <lesskv/budget/matrix_entropy.hpp>

#include "evaluate.hpp"
#include "kept.hpp"
#include "layers.hpp"
#include "records.hpp"

namespace compare {

// JSON has no NaN: a figure that does not exist is null.
inline Records::Json json_of(const Mean& mean) {
  if (mean.count() == 0) return nullptr;
  return {{"mean", mean.value()}, {"se", mean.standard_error()}, {"n", mean.count()}};
}

inline Records::Json json_of(const TokenScores& scores) {
  return {{"kld", json_of(scores.divergence)},
          {"top1", json_of(scores.same_argmax)},
          {"nll_delta", json_of(scores.loss_delta)},
          {"accuracy", json_of(scores.right)}};
}

inline Records::Json json_of(const DocumentResult& result, const Kept& kept) {
  const Footprint& footprint = result.footprint;
  return {{"fraction", result.fraction},
          {"bytes", footprint.bytes},
          {"bytes_shared", footprint.bytes_shared},
          {"bytes_exact", footprint.bytes_exact},
          {"peak_bytes", footprint.peak_bytes},
          {"kept_share", footprint.kept_share},
          {"running", json_of(result.running)},
          {"copy", json_of(result.copies)},
          {"kept_heads", kept.heads},
          {"kept_positions", kept.positions}};
}

// points: of every key that the exact cache finds; null for the others.
inline Records::Json json_of(const KeysFound& found) {
  Records::Json each = Records::Json::array();
  for (const Index points : found.of_each)
    each.push_back(points < 0 ? Records::Json(nullptr) : Records::Json(points));
  return {{"found", found.agnostic}, {"of", found.of}, {"points", std::move(each)}};
}

// Truncated matrix entropy of the queries of every query head, [layer][query head], in nats: what
// UNComp and EntropyWeight divide budgets by.
inline std::vector<double> query_entropies(const Pass& pass) {
  const lesskv::Shape& shape = pass.exact.shape();
  const Index tokens = pass.tensors.tokens(), dim = shape.head_dim;
  std::vector<float> rows(static_cast<std::size_t>(tokens * dim));
  std::vector<double> out;
  for (int layer = 0; layer < shape.layers; ++layer) {
    const View queries = pass.tensors.queries(layer);
    for (int head = 0; head < shape.query_heads; ++head) {
      for (Index t = 0; t < tokens; ++t)
        lesskv::detail::read_row(queries, t, head, dim, rows.data() + t * dim);
      lesskv::UnitMoments moments;
      moments.add(rows.data(), dim, tokens, dim);
      out.push_back(moments.entropy(lesskv::default_truncation(dim)));
    }
  }
  return out;
}

// What the layers of a text need, by every measure that budgets are made of.
inline Records::Json layers_json(const Pass& pass, double similarity) {
  const LayerNeeds needs = layer_needs(pass, similarity);
  double sum = 0;
  for (const double lmba : needs.lmba) sum += lmba;
  std::vector<double> uncertainty;
  for (const double lmba : needs.lmba) uncertainty.push_back(lmba / sum);
  return {{"query_entropy", query_entropies(pass)},
          {"query_heads", pass.exact.shape().query_heads},
          {"lmba", needs.lmba},
          {"uncertainty", uncertainty},
          {"lmbo", needs.lmbo}};
}

}  // namespace compare
