// SPDX-License-Identifier: MIT
// One way to say that an argument is wrong. With exceptions: lesskv::Error. Without: a handler that must not return.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "config.hpp"

#if !defined(LESSKV_EXCEPTIONS)
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS)
#define LESSKV_EXCEPTIONS 1
#else
#define LESSKV_EXCEPTIONS 0
#endif
#endif

LESSKV_BEGIN_NAMESPACE

// Every error of the library. what() starts with the argument or the place that is wrong.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Called instead of a throw when exceptions are off. It must not return; if it does, the program is aborted.
using FailureHandler = void (*)(const char* message);

inline std::atomic<FailureHandler>& failure_handler() {
  static std::atomic<FailureHandler> handler{nullptr};
  return handler;
}

// Throws lesskv::Error, or calls the handler when the file is compiled without exceptions.
// noinline keeps the string work out of the functions that check.
[[noreturn, gnu::noinline]] inline void fail(const std::string& message) {
  const std::string text = "lesskv: " + message;
#if LESSKV_EXCEPTIONS
  throw Error(text);
#else
  if (const FailureHandler handler = failure_handler().load()) handler(text.c_str());
  std::fprintf(stderr, "%s\n", text.c_str());
  std::abort();
#endif
}

LESSKV_END_NAMESPACE
