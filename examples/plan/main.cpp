// SPDX-License-Identifier: MIT
// plan: which rows a policy keeps of your own keys and values. Nothing is moved; the kept positions
// are written as .npy files, so that they can be compared with another implementation.
#include "program.hpp"

int main(int argc, char** argv) { return plan::program(argc, argv); }
