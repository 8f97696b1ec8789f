// Block states and their transitions; see block_pool.h for the sum that must always hold.
#include "sched/block_pool.h"

#include <utility>

#include "base/check.h"
#include "base/planted_bugs.h"

namespace stoker {

BlockPool::BlockPool(int32_t num_blocks) : blocks_(static_cast<size_t>(num_blocks)) {
  check(num_blocks >= 1, "a pool has at least the null block");
  blocks_[0].state = State::null;
  free_.reserve(blocks_.size());
  for (BlockId b = num_blocks - 1; b >= 1; --b) free_.push_back(b);
}

BlockCounts BlockPool::counts() const {
  return {.total = total(),
          .free = num_free(),
          .used = counts_used_,
          .cached = counts_cached_,
          .draining = counts_draining_};
}

void BlockPool::revive(BlockId, Block& block) {
  if (block.state == State::cached) {
    unlink(level_of(block), block);
    --counts_cached_;
  } else {
    check(block.state == State::draining, "only cached or draining blocks come back");
    --counts_draining_;
    if (block.busy_until > committed_) unlink(draining_with(block.busy_until), block);
  }
  block.state = State::used;
  ++counts_used_;
}

void BlockPool::settle_or_drain(BlockId b, Block& block) {
  --counts_used_;
  if ((block.busy_until > committed_ || block.transfers > 0) && !planted(Bug::early_free)) {
    block.state = State::draining;
    ++counts_draining_;
    if (block.busy_until > committed_) link(draining_with(block.busy_until), b, block);
  } else {
    settle(b, block);
  }
}

void BlockPool::settle(BlockId b, Block& block) {
  if (block.entry != kNoEntry && !planted(Bug::double_publish)) {
    block.state = State::cached;
    ++counts_cached_;
    link(level_of(block), b, block);
  } else {
    block.state = State::free;
    free_.push_back(b);
  }
}

void BlockPool::committed(BatchId step) {
  committed_ = step;
  const List list = std::exchange(draining_with(step), {});
  for (BlockId b = list.head, next = b; b != kNullBlock; b = next) {
    Block& block = blocks_[static_cast<size_t>(b)];
    next = block.next;
    if (block.transfers > 0) continue;
    --counts_draining_;
    settle(b, block);
  }
}

void BlockPool::end_transfer(BlockId b) {
  Block& block = blocks_[static_cast<size_t>(b)];
  --block.transfers;
  if (block.state == State::draining && block.transfers == 0 && block.busy_until <= committed_) {
    --counts_draining_;
    settle(b, block);
  }
}

void BlockPool::forget_entry(BlockId b) {
  Block& block = blocks_[static_cast<size_t>(b)];
  block.entry = kNoEntry;
  if (block.state == State::cached) {
    unlink(level_of(block), block);
    --counts_cached_;
    block.state = State::free;
    free_.push_back(b);
  }
  block.level = 0;
}

void BlockPool::link(List& list, BlockId b, Block& block) {
  block.prev = list.tail;
  block.next = kNullBlock;
  (list.tail == kNullBlock ? list.head : blocks_[static_cast<size_t>(list.tail)].next) = b;
  list.tail = b;
}

void BlockPool::unlink(List& list, const Block& block) {
  (block.prev == kNullBlock ? list.head : blocks_[static_cast<size_t>(block.prev)].next) =
      block.next;
  (block.next == kNullBlock ? list.tail : blocks_[static_cast<size_t>(block.next)].prev) =
      block.prev;
}

void BlockPool::check_integrity(const std::vector<int32_t>& holders, const char* what) const {
  BlockCounts seen;
  for (BlockId b = 1; b < total(); ++b) {
    const Block& block = blocks_[static_cast<size_t>(b)];
    const std::string who = std::string(what) + ": block " + std::to_string(b) + " (owner req " +
                            std::to_string(block.owner) + ")";
    if (block.refs != holders[static_cast<size_t>(b)]) {
      throw InternalError(who + " has reference count " + std::to_string(block.refs) + ", but " +
                          std::to_string(holders[static_cast<size_t>(b)]) + " hold it");
    }
    const bool idle = block.state == State::free || block.state == State::cached;
    if (idle && (block.busy_until > committed_ || block.transfers > 0)) {
      throw InternalError(who + " can be handed out while step " +
                          std::to_string(block.busy_until) + " still touches it");
    }
    switch (block.state) {
      case State::null:
        throw InternalError(who + " is marked as the null block");
      case State::free:
        ++seen.free;
        if (block.refs != 0 || block.entry != kNoEntry)
          throw InternalError(who + " is free but held or cached");
        break;
      case State::used:
        ++seen.used;
        if (block.refs < 1) throw InternalError(who + " is used by nobody");
        break;
      case State::cached:
        ++seen.cached;
        if (block.refs != 0 || block.entry == kNoEntry)
          throw InternalError(who + " is cached but held or unknown");
        break;
      case State::draining:
        ++seen.draining;
        if (block.refs != 0 || (block.busy_until <= committed_ && block.transfers == 0)) {
          throw InternalError(who + " drains for nothing");
        }
        break;
    }
  }
  if (seen.free != num_free() || seen.used != counts_used_ || seen.cached != counts_cached_ ||
      seen.draining != counts_draining_) {
    throw InternalError(std::string(what) +
                        ": the counts of free, used, cached and draining blocks are wrong");
  }
  int32_t linked = 0;
  for (const List& list : levels_) {
    for (BlockId b = list.head; b != kNullBlock; b = blocks_[static_cast<size_t>(b)].next) {
      if (++linked > counts_cached_) break;
    }
  }
  if (linked != counts_cached_)
    throw InternalError(std::string(what) + ": the eviction order is broken");
  if (num_free() + counts_used_ + counts_cached_ + counts_draining_ + 1 != total()) {
    throw InternalError(std::string(what) + ": blocks do not add up");
  }
}

}  // namespace stoker
