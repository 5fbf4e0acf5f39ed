// SPDX-License-Identifier: MIT
#pragma once

namespace plan {

// The command line. Returns the exit code: 1 for every error, and then nothing was written.
int program(int argc, const char* const* argv);

}  // namespace plan
