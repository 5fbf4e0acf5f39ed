// SPDX-License-Identifier: MIT
// What an error says.
#pragma once

#include <lesskv/core/error.hpp>
#include <string>

namespace support {

// The text of the error that f() ends in.
template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const lesskv::Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace support
