// SPDX-License-Identifier: MIT
// A program's command line as a call.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace support {

struct Outcome {
  int code;
  std::string out, error;
};

// program(argc, argv), with what it writes to stdout and stderr.
template <class Program>
Outcome call(const Program& program, const std::vector<std::string>& arguments) {
  std::vector<const char*> argv{"program"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = program(static_cast<int>(argv.size()), argv.data());
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.error = testing::internal::GetCapturedStderr();
  return outcome;
}

}  // namespace support
