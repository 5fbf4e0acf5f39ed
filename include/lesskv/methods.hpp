// SPDX-License-Identifier: MIT
// All methods, and the one list of them. A new method is one header and one line in each half of
// this file.
#pragma once

#include "budget/adakv.hpp"
#include "budget/entropy_weight.hpp"
#include "budget/global_cut.hpp"
#include "budget/pyramid.hpp"
#include "budget/rows_for_output.hpp"
#include "budget/table.hpp"
#include "budget/uncomp.hpp"
#include "budget/zigzag.hpp"
#include "codec/bits.hpp"
#include "codec/int_code.hpp"
#include "codec/kivi.hpp"
#include "codec/lloyd_max.hpp"
#include "fold/centroids.hpp"
#include "score/expected_attention.hpp"
#include "score/h2o.hpp"
#include "score/key_norm.hpp"
#include "score/keydiff.hpp"
#include "score/kvzip.hpp"
#include "score/lagkv.hpp"
#include "score/random.hpp"
#include "score/rank.hpp"
#include "score/snapkv.hpp"
#include "score/streaming_llm.hpp"
#include "score/tova.hpp"
#include "score/weighted.hpp"

LESSKV_BEGIN_NAMESPACE

struct CSR;  // the one method that lesskv.hpp leaves out, for its size: codec/csr.hpp

template <class... Ps>
struct MethodList {};

using Methods =
    MethodList<AdaKV, Bits, Centroids, CSR, EntropyWeight, ExpectedAttention, GlobalCut<>, H2O,
               IntCode, KeyDiff, KeyNorm, KIVI, KVzip, LagKV, LloydMax, PyramidKV, Random, SnapKV,
               StreamingLLM, TableBudget, TOVA, UNComp, ZigZagKV>;

// Scorers made of Scorers, and of how many at least and at most.
template <template <class...> class C, int least, int most>
struct Combinator {};
template <class... Cs>
struct CombinatorList {};

using Combinators = CombinatorList<Combinator<MaxRank, 2, 4>, Combinator<MeanRank, 2, 4>,
                                   Combinator<ValueWeighted, 1, 1>, Combinator<AgeWeighted, 1, 1>>;

LESSKV_END_NAMESPACE
