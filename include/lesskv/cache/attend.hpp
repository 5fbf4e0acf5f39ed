// SPDX-License-Identifier: MIT
// What attend() may be told beside the queries.
#pragma once

#include <cstdint>
#include <span>

#include "../core/types.hpp"

LESSKV_BEGIN_NAMESPACE

struct AttendOptions {
  float scale = 0;    // of the logits; 0: 1 / sqrt(head_dim)
  float softcap = 0;  // logits become softcap * tanh(logit / softcap); 0: off
  // One logit per query head that joins the softmax but carries no value (gpt-oss); empty: none.
  std::span<const float> sink_logits = {};
  // bias[h]: one number per row held by KV head h, added to the logits of all its queries (log-mass
  // of merged rows); empty: none. -infinity hides a row.
  std::span<const std::span<const float>> bias = {};
  // [tokens][tokens], row = query, column = new row; nonzero: visible. Replaces the causal order
  // among the new rows (trees of drafts); all older rows stay visible. Null: causal.
  const std::uint8_t* mask = nullptr;
  // Positions of the queries; empty: those of the newest rows.
  std::span<const Position> positions = {};
};

LESSKV_END_NAMESPACE
