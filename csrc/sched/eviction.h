// What the prefix cache gives up first: strategies, each a rule that puts a block on one of a few
// levels. Eviction takes the block cached longest of the lowest level, so every strategy costs
// O(1).
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "sched/config.h"

namespace stoker {

// hits: how often the block was matched; priority: of the req that uses it (lower is sooner, so
// dearer).
inline int32_t eviction_level(Eviction strategy, uint32_t hits, double priority) {
  constexpr int32_t top = kEvictionLevels - 1;
  switch (strategy) {
    case Eviction::lru:
      return 0;
    case Eviction::slru:  // matched twice: protected
      return hits >= 2 ? 1 : 0;
    case Eviction::lfu:  // by the order of magnitude of its hits, oldest first within one
      return std::min<int32_t>(top, static_cast<int32_t>(std::bit_width(hits)));
    case Eviction::priority:
      return std::clamp(top / 2 - static_cast<int32_t>(std::clamp(priority, -100.0, 100.0)), 0,
                        top);
  }
  return 0;
}

}  // namespace stoker
