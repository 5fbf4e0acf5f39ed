// SPDX-License-Identifier: MIT
// Heads whose rows are deleted, and the heads that answer for them (UNComp, arXiv 2410.03090; its
// released code deletes the 2, 4 or 8 heads of lowest entropy in a layer).
//
// A deleted head gives the attention output of the kept head of its layer whose newest 8 keys,
// taken as one vector, have the largest cosine with its own. Rows leave by budget (UNComp{.weights
// = {0, 512}}); which head answers is asked once, after compress(), while the newest rows of the
// deleted heads are still there (SnapKV's window keeps them); then after every attend() the outputs
// are copied:
//
//   const std::vector<int> answers = stand_ins(cache, layer, deleted);
//   cache.attend(layer, queries, out);
//   copy_outputs(cache.shape(), answers, tokens, out);
//
// One stand-in a KV head here, all its query heads with it; the paper has one a query head.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "../core/head.hpp"
#include "../core/shape.hpp"

LESSKV_BEGIN_NAMESPACE

// The `count` KV heads of lowest entropy among those given (of one layer), ascending; equal ones:
// the earlier first.
inline std::vector<int> lowest_heads(std::span<const double> entropies, int count) {
  if (count < 0 || count >= static_cast<int>(entropies.size()))
    fail("lowest_heads::count is ", count, "; one of the ", entropies.size(),
         " heads at least must stay");
  std::vector<int> order(entropies.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return entropies[static_cast<std::size_t>(a)] < entropies[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

// For every KV head of a layer the head that answers for it: itself, unless it is deleted. Looks
// at the newest `window` keys that both heads of a pair hold. Works on any cache with shape() and
// keys(layer, head).
template <class Cache>
std::vector<int> stand_ins(const Cache& cache, int layer, std::span<const int> deleted,
                           Index window = 8) {
  using detail::uz;
  const int heads = cache.shape().kv_heads;
  if (window < 1) fail("stand_ins::window is ", window, "; it must be at least 1");
  std::vector<bool> gone(uz(heads), false);
  for (const int h : deleted) {
    if (h < 0 || h >= heads) fail("stand_ins::deleted: head ", h, " is not in [0, ", heads, ")");
    gone[uz(h)] = true;
  }
  if (std::find(gone.begin(), gone.end(), false) == gone.end())
    fail("stand_ins::deleted: no head is left to answer");
  std::vector<Matrix> newest;
  for (int h = 0; h < heads; ++h) {
    const Matrix keys = cache.keys(layer, h);
    newest.push_back(keys.bottomRows(std::min(window, keys.rows())));
    if (newest.back().rows() == 0)
      fail("stand_ins: head ", h, " of layer ", layer, " holds no rows to compare");
  }
  std::vector<int> out(uz(heads));
  for (int h = 0; h < heads; ++h) {
    out[uz(h)] = h;
    if (!gone[uz(h)]) continue;
    double best = -2;
    for (int o = 0; o < heads; ++o) {
      if (gone[uz(o)]) continue;
      const Index n = std::min(newest[uz(h)].rows(), newest[uz(o)].rows());
      double ab = 0, aa = 0, bb = 0;
      const float* a = newest[uz(h)].bottomRows(n).data();
      const float* b = newest[uz(o)].bottomRows(n).data();
      for (Index i = 0; i < n * cache.shape().head_dim; ++i) {
        ab += double{a[i]} * double{b[i]};
        aa += double{a[i]} * double{a[i]};
        bb += double{b[i]} * double{b[i]};
      }
      const double cosine = aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
      if (cosine > best) {
        best = cosine;
        out[uz(h)] = o;
      }
    }
  }
  return out;
}

// Outputs of attend(), [token][query head][value_dim]: deleted heads get those of their stand-ins.
inline void copy_outputs(const Shape& shape, std::span<const int> answers, Index tokens,
                         float* out) {
  if (static_cast<Index>(answers.size()) != shape.kv_heads)
    fail("copy_outputs::answers has ", answers.size(), " entries for ", shape.kv_heads,
         " KV heads");
  const Index width = Index{shape.group()} * shape.value_width();
  for (Index t = 0; t < tokens; ++t)
    for (Index h = 0; h < shape.kv_heads; ++h) {
      float* token = out + t * shape.kv_heads * width;
      if (const Index o = answers[detail::uz(h)]; o != h)
        std::copy_n(token + o * width, width, token + h * width);
    }
}

LESSKV_END_NAMESPACE
