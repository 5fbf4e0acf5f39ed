// SPDX-License-Identifier: MIT
// expect: a Merger folds rows that leave, but nothing says which rows stay; add a Scorer, for example LagKV{}
#include <lesskv/lesskv.hpp>

#ifdef LESSKV_CONTROL
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::KeyDiff{},
                      lesskv::Centroids{});
#else
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::Centroids{});
#endif
