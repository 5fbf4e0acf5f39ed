// SPDX-License-Identifier: MIT
// One way to say that an argument is wrong. With exceptions: lesskv::Error. Without: a handler that
// must not return.
#pragma once

#include <atomic>
#include <concepts>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

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

// Called instead of a throw when exceptions are off. It must not return; if it does, the program is
// aborted.
using FailureHandler = void (*)(const char* message);

inline std::atomic<FailureHandler>& failure_handler() {
  static std::atomic<FailureHandler> handler{nullptr};
  return handler;
}

namespace detail {
// A piece of a message: text or a number. Keeps the string work in one function that is never
// inlined, so that code which checks its arguments stays small and compiles fast.
class Word {
 public:
  Word(const char* text) : text_(text) {}
  Word(std::string_view text) : text_(text) {}
  Word(const std::string& text) : text_(text) {}
  template <std::integral T>
  Word(T number) : number_(static_cast<long long>(number)), is_number_(true) {}
  void append_to(std::string& out) const {
    if (is_number_)
      out += std::to_string(number_);
    else
      out += text_;
  }

 private:
  std::string_view text_;
  long long number_ = 0;
  bool is_number_ = false;
};

[[noreturn, gnu::noinline, gnu::cold]] inline void fail_with(std::initializer_list<Word> words) {
  std::string text = "lesskv: ";
  for (const Word& word : words) word.append_to(text);
#if LESSKV_EXCEPTIONS
  throw Error(text);
#else
  if (const FailureHandler handler = failure_handler().load()) handler(text.c_str());
  std::fprintf(stderr, "%s\n", text.c_str());
  std::abort();
#endif
}
}  // namespace detail

// fail("name: what is wrong, ", number, " is too large"): throws lesskv::Error, or calls the
// handler when the file is compiled without exceptions.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  detail::fail_with({detail::Word(parts)...});
}

LESSKV_END_NAMESPACE
