// SPDX-License-Identifier: MIT
// A compressed cache in which heads are deleted, as UNComp deletes them: a head that holds nothing
// but pins answers with the output of the head of its layer that is most like it.
#pragma once

#include <algorithm>
#include <lesskv/any.hpp>
#include <lesskv/budget/head_deletion.hpp>
#include <memory>
#include <vector>

namespace compare {

class DeletedHeads {
 public:
  // Right after compress(). Pins are those of the spec that the cache was made of.
  DeletedHeads(lesskv::AnyCache compressed, const lesskv::PolicySpec& spec)
      : cache_(std::move(compressed)) {
    const lesskv::Index newest =
        std::max(spec.keep.recent, spec.scorer ? spec.scorer->reach().ahead : 0);
    std::vector<std::vector<int>> answers;
    for (int layer = 0; layer < shape().layers; ++layer) {
      const auto next = lesskv::to_int(cache_.next_position(layer));
      std::vector<int> deleted;
      for (int h = 0; h < shape().kv_heads; ++h) {
        const std::vector<lesskv::Position> held = cache_.positions(layer, h);
        if (std::all_of(held.begin(), held.end(), [&](lesskv::Position position) {
              const auto at = lesskv::to_int(position);
              return at < spec.keep.sinks || at >= next - newest;
            }))
          deleted.push_back(h);
      }
      answers.push_back(lesskv::stand_ins(cache_, layer, deleted));
    }
    answers_ = std::make_shared<const std::vector<std::vector<int>>>(std::move(answers));
  }

  // Which head of a layer answers for each.
  const std::vector<int>& answers(int layer) const {
    return (*answers_)[static_cast<std::size_t>(layer)];
  }

  const lesskv::Shape& shape() const { return cache_.shape(); }
  void append(int layer, const lesskv::View& keys, const lesskv::View& values,
              std::span<const lesskv::Position> positions) {
    cache_.append(layer, keys, values, positions);
  }
  void attend(int layer, const lesskv::View& queries, float* out) {
    cache_.attend(layer, queries, out);
    lesskv::copy_outputs(shape(), answers(layer), queries.tokens, out);
  }
  void compress() { cache_.compress(); }
  DeletedHeads fork() const { return *this; }

 private:
  lesskv::AnyCache cache_;
  std::shared_ptr<const std::vector<std::vector<int>>> answers_;
};

}  // namespace compare
