// SPDX-License-Identifier: MIT
// All methods, and the one list of them. A new method is one header and one line in each half of
// this file.
#pragma once

#include "budget/table.hpp"
#include "codec/int_code.hpp"
#include "codec/lloyd_max.hpp"
#include "score/h2o.hpp"
#include "score/key_norm.hpp"
#include "score/keydiff.hpp"
#include "score/lagkv.hpp"
#include "score/random.hpp"
#include "score/snapkv.hpp"
#include "score/streaming_llm.hpp"
#include "score/tova.hpp"

LESSKV_BEGIN_NAMESPACE

template <class... Ps>
struct MethodList {};

using Methods = MethodList<H2O, IntCode, KeyDiff, KeyNorm, LagKV, LloydMax, Random, SnapKV,
                           StreamingLLM, TableBudget, TOVA>;

LESSKV_END_NAMESPACE
