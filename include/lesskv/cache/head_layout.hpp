// SPDX-License-Identifier: MIT
// HeadLayout: how the rows of a head lie, as far as it decides what the head will hold a few steps
// later. Exact rows and coded blocks in between, then exact rows that grow.
#pragma once

#include <cstddef>

#include "../core/types.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

struct HeadLayout {
  std::size_t fixed = 0;  // bytes that stay: coded blocks, codecs of this head alone
  Index coded_blocks = 0;
  Index front = 0;     // exact rows before the coded blocks
  Index tail = 0;      // and behind them; none coded: all others
  Index open = 0;      // rows of the tail that are not closed
  bool closes = true;  // one of them, with every row that comes
  Index listed = 0;    // blocks that the list of blocks has room for
};

}  // namespace detail
LESSKV_END_NAMESPACE
