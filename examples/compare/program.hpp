// SPDX-License-Identifier: MIT
#pragma once

namespace compare {

// The command line. Returns the exit code: 1 for every error.
int program(int argc, const char* const* argv);

}  // namespace compare
