// The KV blocks of one group and tier: who holds each, and which may be handed out.
//
// Each block is in exactly one state, and the counts always add up:
//
//     null (block 0) + free + used + cached + draining = all
//
//     free      nobody holds it, nothing is in it
//     used      reference count >= 1
//     cached    count 0, its content is in the prefix cache: can be matched, can be evicted
//     draining  count 0, but a step or copy in flight still touches it: becomes cached or free when
//     that is over
//
// All operations are O(1); none allocates.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "sched/config.h"
#include "sched/eviction.h"
#include "sched/step_events.h"

namespace stoker {

using EntryId = int32_t;  // a position in the prefix cache
inline constexpr EntryId kNoEntry = -1;

class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);

  const std::vector<BlockId>& free_blocks() const { return free_; }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_cached() const { return counts_cached_; }
  int32_t num_draining() const { return counts_draining_; }
  int32_t num_used() const { return counts_used_; }
  int32_t total() const { return static_cast<int32_t>(blocks_.size()); }
  // What can be handed out now: free, and cached ones after eviction.
  int32_t num_available() const { return num_free() + counts_cached_; }
  BlockCounts counts() const;

  void prefetch(BlockId b) const { __builtin_prefetch(&blocks_[static_cast<size_t>(b)], 1); }
  // The block that goes after `b`, a cached one of its level; kNullBlock: none.
  BlockId next_cached(BlockId b) const { return blocks_[static_cast<size_t>(b)].next; }

  // Takes a free block, reference count 1. There must be one.
  BlockId allocate(ReqId owner) {
    const BlockId b = free_.back();
    free_.pop_back();
    Block& block = blocks_[static_cast<size_t>(b)];
    block.refs = 1;
    block.state = State::used;
    block.owner = owner;
    ++counts_used_;
    return b;
  }
  // One more holder of a used, cached or draining block.
  void retain(BlockId b) {
    Block& block = blocks_[static_cast<size_t>(b)];
    if (block.refs++ == 0) revive(b, block);
  }
  // One holder less. `last_step`: the newest step that touches the block for this holder.
  void release(BlockId b, BatchId last_step) {
    Block& block = blocks_[static_cast<size_t>(b)];
    if (last_step > block.busy_until) block.busy_until = last_step;
    if (--block.refs == 0) settle_or_drain(b, block);
  }
  // A transfer in flight touches the block: it stays draining until done() even if nobody holds it.
  void begin_transfer(BlockId b) { ++blocks_[static_cast<size_t>(b)].transfers; }
  void end_transfer(BlockId b);
  // Steps up to `step` were committed: what only they touched is free or cached now.
  void committed(BatchId step);

  // The cached block that goes first; kNullBlock if none: the one cached longest of the lowest
  // level.
  BlockId oldest_cached() const {
    for (const List& list : levels_) {
      if (list.head != kNullBlock) return list.head;
    }
    return kNullBlock;
  }
  // How dear the block is to the eviction strategy (eviction.h). Never lowered, and set from the
  // root of a path on, so that a block is never less dear than those that build on it.
  void raise_level(BlockId b, int32_t level) {
    Block& block = blocks_[static_cast<size_t>(b)];
    if (level <= block.level) return;
    const bool linked = block.state == State::cached;
    if (linked) unlink(level_of(block), block);
    block.level = static_cast<int8_t>(level);
    if (linked) link(level_of(block), b, block);
  }
  // The block's content leaves the prefix cache. A cached block becomes free.
  void forget_entry(BlockId b);
  void set_entry(BlockId b, EntryId entry) { blocks_[static_cast<size_t>(b)].entry = entry; }
  EntryId entry(BlockId b) const { return blocks_[static_cast<size_t>(b)].entry; }
  int32_t refs(BlockId b) const { return blocks_[static_cast<size_t>(b)].refs; }
  int32_t transfers(BlockId b) const { return blocks_[static_cast<size_t>(b)].transfers; }
  ReqId owner(BlockId b) const { return blocks_[static_cast<size_t>(b)].owner; }
  bool is_cached(BlockId b) const { return blocks_[static_cast<size_t>(b)].state == State::cached; }

  // Compares counts and states with the references that `holders[b]` names; throws InternalError
  // naming block and owner.
  void check_integrity(const std::vector<int32_t>& holders, const char* what) const;

 private:
  enum class State : int8_t { null, free, used, cached, draining };
  struct alignas(32) Block {  // two to a cache line, none across
    int32_t refs = 0;
    EntryId entry = kNoEntry;
    BlockId prev = kNullBlock, next = kNullBlock;  // in the list that it is on
    BatchId busy_until = 0;
    ReqId owner = -1;  // who took it last
    int16_t transfers = 0;
    State state = State::free;
    int8_t level = 0;
  };
  struct List {
    BlockId head = kNullBlock, tail = kNullBlock;
  };

  void revive(BlockId b, Block& block);
  void settle_or_drain(BlockId b, Block& block);
  void settle(BlockId b, Block& block);
  void link(List& list, BlockId b, Block& block);
  void unlink(List& list, const Block& block);
  List& level_of(const Block& block) { return levels_[static_cast<size_t>(block.level)]; }
  List& draining_with(BatchId step) {
    return draining_[static_cast<size_t>(step) % draining_.size()];
  }

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;  // a stack: the block freed last is warm and goes out first
  std::array<List, kEvictionLevels> levels_;  // the cached blocks of each level, oldest first
  int32_t counts_used_ = 0, counts_cached_ = 0, counts_draining_ = 0;
  BatchId committed_ = 0;
  // Blocks that drain until a step, by step modulo the ring, in the order in which they were given
  // back. What drains for a transfer alone is on no list.
  std::array<List, kMaxOverlapDepth + 1> draining_;
};

}  // namespace stoker
