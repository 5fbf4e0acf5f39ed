// SPDX-License-Identifier: MIT
// What figures were made with.
#pragma once

#include <fstream>
#include <lesskv/lesskv.hpp>
#include <string>

namespace compare {

inline std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name"))
      return line.substr(std::min(line.find(": ") + 2, line.size()));
  return "unknown CPU";
}

inline std::string version() {
  return std::to_string(LESSKV_VERSION_MAJOR) + "." + std::to_string(LESSKV_VERSION_MINOR) + "." +
         std::to_string(LESSKV_VERSION_PATCH);
}

}  // namespace compare
