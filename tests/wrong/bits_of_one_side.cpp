// SPDX-License-Identifier: MIT
// expect: Bits divides bits between keys and values; it cannot have one side of them
#include <lesskv/lesskv.hpp>

#ifdef LESSKV_CONTROL
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keys{lesskv::LloydMax{}});
#else
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keys{lesskv::Bits{}});
#endif
