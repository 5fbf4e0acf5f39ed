// SPDX-License-Identifier: MIT
#include "attention.hpp"

float sum_with_wide_flags() { return attention_sum(); }
