// SPDX-License-Identifier: MIT
// lesskv: less KV cache, same answers. The one header; choosing policies by name at run time is in
// <lesskv/any.hpp>, sparse coding (CSR) in <lesskv/codec/csr.hpp>.
#pragma once

#include "budget/select_hidden.hpp"
#include "cache/kv_cache.hpp"
#include "methods.hpp"
