// SPDX-License-Identifier: MIT
#include "attention.hpp"

float sum_with_plain_flags() { return attention_sum(); }
