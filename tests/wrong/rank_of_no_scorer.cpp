// SPDX-License-Identifier: MIT
// expect: MaxRank, MeanRank, ValueWeighted and AgeWeighted are made of Scorers, for example MaxRank<H2O, KeyDiff>
#include <lesskv/lesskv.hpp>

#ifdef LESSKV_CONTROL
using Second = lesskv::KeyDiff;
#else
using Second = lesskv::PyramidKV;
#endif

lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5},
                      lesskv::MaxRank<lesskv::H2O, Second>{});
