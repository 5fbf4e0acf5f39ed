// SPDX-License-Identifier: MIT
// expect: Bits says how many bits all rows get and codes them itself; name no other codec
#include <lesskv/lesskv.hpp>

#ifdef LESSKV_CONTROL
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Bits{});
#else
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Bits{}, lesskv::LloydMax{});
#endif
