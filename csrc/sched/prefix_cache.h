// Which full blocks hold which tokens: a radix tree whose edges are one block of tokens wide.
//
// An entry is one block position of some token path; its parent is the position before it. A child
// is found by (parent, the block's tokens): first through the parent's `next` hint (the child made
// last; long private runs are walked without hashing), then through one hash table whose hits are
// compared token by token. Every path starts at the root of its namespace (cache_salt).
//
// An entry names one block of each KV group, or a hole where a window group's block was evicted.
// Eviction is by block, in the pool's order: holders give their blocks back from the tail, so
// children come before their parents and leaves go first (tests hold this).
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "sched/block_pool.h"
#include "sched/per_group.h"

namespace stoker {

class PrefixCache {
 public:
  // `windows[g]`: in blocks, how many of the last positions a match needs of group g; 0: all (a
  // full group).
  PrefixCache(std::vector<BlockPool>& pools, int32_t block_size, std::vector<int32_t> windows,
              Eviction eviction);

  // The root of a namespace, made when first asked for; one user more. leave() takes the user away
  // again.
  EntryId enter(const std::string& salt);
  void leave(EntryId root);

  struct Match {
    std::vector<EntryId> path;  // entries of blocks 0, 1, ...
  };
  // The longest run of cached blocks at the head of `tokens`, at most max_blocks, that every group
  // can serve.
  void match(EntryId root, std::span<const Token> tokens, int32_t max_blocks, Match& out) const;
  // The same, only counted.
  int32_t match_blocks(EntryId root, std::span<const Token> tokens, int32_t max_blocks) const;

  // Room for whatever insert() can be asked for before the next call: so that it allocates nothing.
  void make_room() {
    const int32_t most = any_full_ ? most_blocks_ - num_entries_ : most_blocks_;
    const auto have = static_cast<int32_t>(free_.size());
    if (have < most)
      grow(entries_.size() + std::max(entries_.size() / 8, static_cast<size_t>(most - have)));
  }
  size_t num_ids() const { return entries_.size(); }  // an EntryId is below it

  // Child of `parent` for one block of tokens, or kNoEntry.
  EntryId find(EntryId parent, const Token* tokens) const;
  // The head of a prompt that match() will read; the rest it fetches ahead of itself.
  static void prefetch(std::span<const Token> tokens) {
    for (size_t i = 0; i < std::min(tokens.size(), kAhead); i += 16)
      __builtin_prefetch(tokens.data() + i);
  }
  void prefetch(EntryId e) const { __builtin_prefetch(&entries_[static_cast<size_t>(e)], 1); }
  // The root of a namespace, or kNoEntry if nobody uses it.
  EntryId root_of(const std::string& salt) const;
  // Adds a child that does not exist yet, under it the next one, and so on for `count` blocks,
  // which `blocks[group]` lists; returns the first. `pending`: the step that computes them; they
  // are withdrawn if that fails.
  EntryId insert(EntryId parent, const Token* tokens, int32_t count,
                 const PerGroup<const BlockId*>& blocks, BatchId pending, double priority);
  // Takes an entry without children out of the tree, and who is of no use above it: its blocks are
  // forgotten. Returns the first above that stays, or none.
  EntryId remove(EntryId e);
  // The entry was matched, or published, for a req of this priority: what the eviction strategy
  // wants to know.
  void touch(EntryId e, bool hit, double priority) {
    if (eviction_ != Eviction::lru) weigh(e, hit, priority);  // lru wants to know nothing
  }
  // Takes out entries whose content cannot be trusted, with all that builds on them. O(entries): a
  // step or a row has failed. First mark() tells which these are, for who must know before they go.
  void mark(std::span<const EntryId> roots);
  bool marked(EntryId e) const { return marks_[static_cast<size_t>(e)] == Mark::gone; }
  void withdraw_marked();
  bool live(EntryId e) const { return entries_[static_cast<size_t>(e)].live; }
  // Frees the cached block of `group` that goes first. There must be one.
  void evict_one(GroupId group);
  // Everything that nobody holds leaves the cache. Returns how many entries went.
  int32_t flush();

  BlockId block(EntryId e, GroupId group) const { return blocks_[at(e, group)]; }
  // Fills a hole with what step `pending` computes.
  void set_block(EntryId e, GroupId group, BlockId b, BatchId pending);
  EntryId parent(EntryId e) const { return entries_[static_cast<size_t>(e)].parent; }
  BatchId pending_step(EntryId e) const { return entries_[static_cast<size_t>(e)].pending; }
  int32_t num_entries() const { return num_entries_; }
  int32_t block_size() const { return block_size_; }

  void check_integrity() const;

 private:
  // How many tokens ahead of itself a walk fetches a prompt, which nobody may have looked at yet.
  static constexpr size_t kAhead = 256;
  struct alignas(32) Entry {  // two to a cache line, none across
    EntryId parent = kNoEntry;
    EntryId next = kNoEntry;  // the child that is linked directly
    int32_t children = 0;     // that one included
    uint32_t hash = 0;        // of children in the table
    BatchId pending = 0;
    uint32_t hits = 0;  // how often it was matched
    bool root = false, live = false, in_table = false;
  };
  struct Root {
    std::string salt;
    int32_t users = 0;  // reqs of the namespace
  };

  size_t at(EntryId e, GroupId g) const {
    return static_cast<size_t>(e) * static_cast<size_t>(num_groups_) + static_cast<size_t>(g);
  }
  const Token* tokens_of(EntryId e) const {
    return tokens_.data() + static_cast<size_t>(e) * static_cast<size_t>(block_size_);
  }
  bool equal(EntryId e, const Token* tokens) const;
  // Calls visit(entry) down the path of `tokens` as far as it is there; returns how far that is.
  template <typename Visit>
  int32_t walk(EntryId root, std::span<const Token> tokens, int32_t max_blocks,
               Visit&& visit) const;
  uint32_t hash_of(EntryId parent, const Token* tokens) const;
  EntryId find_hashed(EntryId parent, const Token* tokens) const;
  void weigh(EntryId e, bool hit, double priority);
  EntryId new_entry();
  void drop(EntryId e);
  EntryId drop_childless_up(EntryId e);
  void table_add(EntryId e);
  void table_remove(EntryId e);
  void grow(size_t entries);
  bool served(EntryId e) const;

  std::vector<BlockPool>& pools_;
  int32_t block_size_;
  int32_t num_groups_;
  std::vector<int32_t> windows_;
  Eviction eviction_;
  mutable std::vector<int32_t> runs_;  // scratch of match()
  enum class Mark : int8_t { unknown, stays, gone };
  std::vector<Mark> marks_;  // by entry, between mark() and withdraw_marked()
  bool any_window_ = false, any_full_ = false;
  int32_t num_entries_ = 0;
  int32_t most_blocks_ = 0;  // of a pool: an entry of a full group holds one
  std::vector<Entry> entries_;
  std::vector<Token> tokens_;    // [entry][block_size]
  std::vector<BlockId> blocks_;  // [entry][group]
  std::vector<EntryId> free_;
  std::vector<EntryId> table_;  // open addressing, linear probing: 2^k places, half full at most
  std::unordered_map<std::string, EntryId> roots_;
  std::unordered_map<EntryId, Root> roots_by_entry_;
};

}  // namespace stoker
