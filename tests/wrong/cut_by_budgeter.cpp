// SPDX-License-Identifier: MIT
// expect: GlobalCut counts the scores of a Scorer, for example GlobalCut<KeyDiff>
#include <lesskv/lesskv.hpp>

#ifdef LESSKV_CONTROL
using By = lesskv::KeyDiff;
#else
using By = lesskv::AdaKV;
#endif

lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::H2O{},
                      lesskv::GlobalCut<By>{});
