// SPDX-License-Identifier: MIT
// The one file that is compiled where LESSKV_COMPILED is defined (core/config.hpp); the CMake target
// lesskv::compiled does both.
#define LESSKV_IMPLEMENTATION
#include "any.hpp"
#include "codec/sparse/pursuit_kernels.hpp"
