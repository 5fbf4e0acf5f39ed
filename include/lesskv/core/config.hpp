// SPDX-License-Identifier: MIT
// The inline namespace. It carries the version, so that two versions can meet in one program, and
// the instruction set this file is compiled for: Eigen's inline code depends on -m flags, and
// without the tag the linker would merge an AVX-512 copy of a function into a program part that was
// built for plain x86-64.
#pragma once

#include "version.hpp"

#define LESSKV_CONCAT_(a, b) a##b
#define LESSKV_CONCAT(a, b) LESSKV_CONCAT_(a, b)

#if defined(__AVX512F__)
#define LESSKV_ISA_TAG avx512
#elif defined(__AVX2__)
#define LESSKV_ISA_TAG avx2
#elif defined(__AVX__)
#define LESSKV_ISA_TAG avx
#elif defined(__SSE4_1__)
#define LESSKV_ISA_TAG sse4
#else
#define LESSKV_ISA_TAG base
#endif

// v<major>_<minor>_<patch>_<instruction set>
#define LESSKV_NAMESPACE_TAG                                 \
  LESSKV_CONCAT(                                             \
      LESSKV_CONCAT(LESSKV_CONCAT(v, LESSKV_VERSION_MAJOR),  \
                    LESSKV_CONCAT(_, LESSKV_VERSION_MINOR)), \
      LESSKV_CONCAT(LESSKV_CONCAT(_, LESSKV_VERSION_PATCH), LESSKV_CONCAT(_, LESSKV_ISA_TAG)))

// Header-only as it is. A project of many files compiles faster if it links the CMake target
// lesskv::compiled; without CMake: if it defines LESSKV_COMPILED for all of its files (with the same
// -m flags) and adds lesskv/compiled.cpp to them.
#if defined(LESSKV_COMPILED) && !defined(LESSKV_IMPLEMENTATION)
#define LESSKV_DECLARE_ONLY 1
#else
#define LESSKV_DECLARE_ONLY 0
#endif
// Large functions that run once a head or pass: copies of them inside others cost compile time and
// gain nothing.
#define LESSKV_OUT_OF_LINE __attribute__((noinline))
#if defined(LESSKV_COMPILED)
#define LESSKV_FUNCTION
#define LESSKV_DEFAULTED
#else
#define LESSKV_FUNCTION inline LESSKV_OUT_OF_LINE
#define LESSKV_DEFAULTED inline
#endif

#define LESSKV_BEGIN_NAMESPACE \
  namespace lesskv {           \
  inline namespace LESSKV_NAMESPACE_TAG {
#define LESSKV_END_NAMESPACE \
  }                          \
  }
