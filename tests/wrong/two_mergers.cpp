// SPDX-License-Identifier: MIT
// expect: two policies say what becomes of rows that leave; name one Merger
#include <lesskv/lesskv.hpp>

struct Other : lesskv::Centroids {};

#ifdef LESSKV_CONTROL
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::KeyDiff{}, Other{});
#else
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::KeyDiff{}, Other{},
                      lesskv::Centroids{});
#endif
