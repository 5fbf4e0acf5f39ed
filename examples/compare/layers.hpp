// SPDX-License-Identifier: MIT
// What every layer of a text needs, by the two measures of ZigZagKV: LMBA, the keys that hold a
// share of its attention, by which budgets are divided; and LMBO, the keys that keep its output.
#pragma once

#include <lesskv/budget/rows_for_output.hpp>
#include <lesskv/budget/zigzag.hpp>
#include <vector>

#include "pass.hpp"

namespace compare {

struct LayerNeeds {
  std::vector<double> lmba, lmbo;  // of every layer
};

// Of an exact pass. LMBA as ZigZagKV measures it by default; LMBO is the mean over the queries of
// the same window, each with the cosine `similarity` between its outputs.
inline LayerNeeds layer_needs(const Pass& pass, double similarity) {
  using lesskv::Matrix;
  const lesskv::ZigZagKV zigzag;
  const lesskv::Shape& shape = pass.exact.shape();
  const Index group = shape.group(), tokens = pass.tensors.tokens(),
              window = std::min(zigzag.window, tokens);
  std::vector<lesskv::ZigZagKV::State> measured(static_cast<std::size_t>(shape.heads()));
  LayerNeeds out;
  for (int layer = 0; layer < shape.layers; ++layer) {
    const View queries = pass.tensors.queries(layer).tokens_from(tokens - window, window);
    std::vector<Matrix> attention, values;
    for (int h = 0; h < shape.kv_heads; ++h) {
      attention.push_back(pass.exact.attention(layer, h, queries));
      values.push_back(pass.exact.values(layer, h));
      lesskv::Head head;
      head.group = shape.group();
      head.last = tokens;
      lesskv::detail::point(head.attention, attention.back().data(), window * group, tokens,
                            tokens);
      zigzag.measure(head, measured[static_cast<std::size_t>(layer * shape.kv_heads + h)]);
    }
    double keys = 0;
    for (Index t = 0; t < window; ++t) {
      std::vector<lesskv::AttendedValues> seen;
      for (std::size_t h = 0; h < attention.size(); ++h)
        seen.push_back(
            {lesskv::make_rows(attention[h].data() + t * group * tokens, group, tokens, tokens),
             lesskv::make_rows(values[h])});
      keys += static_cast<double>(lesskv::rows_for_output(seen, similarity));
    }
    out.lmbo.push_back(keys / static_cast<double>(window));
  }
  out.lmba = zigzag.lmba(shape, measured);
  return out;
}

}  // namespace compare
