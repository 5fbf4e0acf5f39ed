// SPDX-License-Identifier: MIT
// Which rows of given keys and values a policy keeps: the plan-only path of the library on tensors
// from anywhere.
#pragma once

#include <lesskv/any.hpp>
#include <string>
#include <vector>

#include "tensors.hpp"

namespace plan {

struct HeadResult {
  int layer = 0, head = 0;         // head: KV head
  std::vector<std::int32_t> kept;  // positions, ascending
  // What storing the kept rows as Shape::dtype costs: sum of squared errors / sum of squares.
  double key_error = 0, value_error = 0;
};

struct Result {
  lesskv::Shape shape;
  lesskv::Index tokens = 0;
  std::string policy;  // with all that was filled in
  bool judged = false;
  std::vector<HeadResult> heads;  // [layer * kv_heads + head]

  // Bytes of keys and values of so many rows of one head.
  std::size_t bytes(std::size_t rows) const;
};

// The whole sequence at once, as after a prompt. scale: of the attention logits of the queries; 0
// for 1 / sqrt(head_dim). Throws std::runtime_error naming the argument.
Result run(const Tensors& tensors, const lesskv::PolicySpec& spec, float scale = 0);

// The text form of a policy; errors start with --policy.
lesskv::PolicySpec parse_policy(const std::string& text);

// A line per head, and sums.
std::string table(const Result& result);

// Names, parameters with defaults, and published pins of all methods.
std::string list_policies();

// kept_lNN_hM.npy for every layer NN and KV head M. All of the files, or none.
void write(const Result& result, const std::string& folder);

}  // namespace plan
