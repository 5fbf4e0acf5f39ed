// SPDX-License-Identifier: MIT
// Which layers may share a dictionary (CSR, arXiv 2412.11741): those whose vectors are distributed
// alike. Vectors at unit length, two layers projected together on their first two principal
// components, a 200 x 200 histogram each, Jensen-Shannon divergence of the two (in bits, 0 to 1).
// A group of consecutive layers is admissible if every pair in it is within `pair` and the sum over
// neighbours within `chain`. The paper does not publish these two, nor how it searches; here layers
// join from the first on as long as the group stays admissible.
#pragma once

#include <lesskv/core/types.hpp>
#include <vector>

namespace training {

using lesskv::Index;

// [layer][layer], symmetric, zeros on the diagonal. `rows` holds for every layer some vectors
// [count][dim].
std::vector<std::vector<double>> layer_divergence(const std::vector<std::vector<float>>& rows,
                                                  int dim);

// The group of every layer: 0, 0, 1, 1, 1, 2, ...
std::vector<int> group_layers(const std::vector<std::vector<double>>& divergence, double pair,
                              double chain);

// The smallest `pair` (with chain = 3 pair) that gives at most `groups` groups.
std::vector<int> group_layers_into(const std::vector<std::vector<double>>& divergence, int groups);

// Of two histograms of counts.
double jensen_shannon(const std::vector<double>& p, const std::vector<double>& q);

}  // namespace training
