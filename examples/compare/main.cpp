// SPDX-License-Identifier: MIT
// compare: what compressing the cache of a real model costs and saves, one row a policy and
// compression. examples/run.sh builds it, fetches a model and texts, and runs it.
#include "program.hpp"

int main(int argc, char** argv) { return compare::program(argc, argv); }
