// The block-wide radix tree: matching, publishing, eviction.
#include "sched/prefix_cache.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/planted_bugs.h"

namespace stoker {
namespace {

uint64_t mix(uint64_t h) {
  h ^= h >> 32;
  h *= 0xd6e8feb86659fd93ULL;
  h ^= h >> 32;
  return h;
}

}  // namespace

PrefixCache::PrefixCache(std::vector<BlockPool>& pools, int32_t block_size,
                         std::vector<int32_t> windows, Eviction eviction)
    : pools_(pools),
      block_size_(block_size),
      num_groups_(static_cast<int32_t>(pools.size())),
      windows_(std::move(windows)),
      eviction_(eviction) {
  for (size_t g = 0; g < pools.size(); ++g) {
    most_blocks_ = std::max(most_blocks_, pools[g].total());
    (windows_[g] > 0 ? any_window_ : any_full_) = true;
  }
  runs_.reserve(pools.size());
  grow(static_cast<size_t>(most_blocks_) + 16);
}

void PrefixCache::grow(size_t entries) {
  const size_t old = entries_.size();
  size_t slots = 64;
  while (slots < 2 * entries) slots *= 2;
  std::vector<EntryId> table(slots, kNoEntry);
  entries_.reserve(entries);
  tokens_.reserve(entries * static_cast<size_t>(block_size_));
  blocks_.reserve(entries * static_cast<size_t>(num_groups_));
  free_.reserve(entries);  // the last memory that is asked for: nothing has changed before
  entries_.resize(entries);
  tokens_.resize(entries * static_cast<size_t>(block_size_));
  blocks_.resize(entries * static_cast<size_t>(num_groups_), kNullBlock);
  for (size_t e = entries; e > old; --e) free_.push_back(static_cast<EntryId>(e - 1));
  table_.swap(table);
  for (size_t e = 0; e < old; ++e) {
    if (entries_[e].live && entries_[e].in_table) table_add(static_cast<EntryId>(e));
  }
}

EntryId PrefixCache::new_entry() {
  if (free_.empty()) grow(entries_.size() * 2);
  const EntryId e = free_.back();
  free_.pop_back();
  entries_[static_cast<size_t>(e)] = Entry{};
  entries_[static_cast<size_t>(e)].live = true;
  return e;
}

EntryId PrefixCache::enter(const std::string& salt) {
  const std::string& name = planted(Bug::salt_ignored) ? std::string() : salt;
  auto [it, fresh] = roots_.try_emplace(name, kNoEntry);
  if (fresh) {
    it->second = new_entry();
    entries_[static_cast<size_t>(it->second)].root = true;
    roots_by_entry_[it->second].salt = name;
  }
  ++roots_by_entry_[it->second].users;
  return it->second;
}

EntryId PrefixCache::root_of(const std::string& salt) const {
  const auto it = roots_.find(salt);
  return it == roots_.end() ? kNoEntry : it->second;
}

void PrefixCache::leave(EntryId root) {
  --roots_by_entry_[root].users;
  drop_childless_up(root);
}

// A call of memcmp for each block would cost as much again.
inline bool PrefixCache::equal(EntryId e, const Token* tokens) const {
  const Token* const mine = tokens_of(e);
  uint64_t different = 0;
  for (int32_t i = 0; i + 2 <= block_size_; i += 2) {
    uint64_t a, b;
    std::memcpy(&a, mine + i, sizeof a);
    std::memcpy(&b, tokens + i, sizeof b);
    different |= a ^ b;
  }
  if (block_size_ % 2 != 0) different |= mine[block_size_ - 1] != tokens[block_size_ - 1];
  return different == 0;
}

uint32_t PrefixCache::hash_of(EntryId parent, const Token* tokens) const {
  uint64_t a = mix(static_cast<uint64_t>(parent) + 0x9e3779b97f4a7c15ULL),
           b = 0x2545f4914f6cdd1dULL;
  for (int32_t i = 0; i + 3 < block_size_; i += 4) {
    uint64_t x, y;
    std::memcpy(&x, tokens + i, 8);
    std::memcpy(&y, tokens + i + 2, 8);
    a = (a ^ x) * 0x9fb21c651e98df25ULL;
    b = (b ^ y) * 0xd6e8feb86659fd93ULL;
    a ^= a >> 29;
    b ^= b >> 31;
  }
  for (int32_t i = block_size_ / 4 * 4; i < block_size_; ++i) {
    a = (a ^ static_cast<uint64_t>(tokens[i])) * 0x9fb21c651e98df25ULL;
    a ^= a >> 29;
  }
  return static_cast<uint32_t>(mix(a + b));
}

EntryId PrefixCache::find(EntryId parent, const Token* tokens) const {
  const Entry& up = entries_[static_cast<size_t>(parent)];
  if (up.next != kNoEntry && equal(up.next, tokens)) return up.next;
  return up.children > (up.next != kNoEntry) ? find_hashed(parent, tokens) : kNoEntry;
}

EntryId PrefixCache::find_hashed(EntryId parent, const Token* tokens) const {
  const uint32_t hash = hash_of(parent, tokens);
  const size_t mask = table_.size() - 1;
  for (size_t i = hash & mask; table_[i] != kNoEntry; i = (i + 1) & mask) {
    const Entry& e = entries_[static_cast<size_t>(table_[i])];
    if (e.hash == hash && e.parent == parent && equal(table_[i], tokens)) return table_[i];
  }
  return kNoEntry;
}

template <typename Visit>
int32_t PrefixCache::walk(EntryId root, std::span<const Token> tokens, int32_t max_blocks,
                          Visit&& visit) const {
  const int32_t limit = std::min(max_blocks, static_cast<int32_t>(tokens.size()) / block_size_);
  const Token* at = tokens.data();
  EntryId e = root;
  for (int32_t i = 0; i < limit; ++i, at += block_size_) {
    __builtin_prefetch(at + kAhead);
    e = find(e, at);
    if (e == kNoEntry) return i;
    visit(e);
  }
  return limit;
}

void PrefixCache::match(EntryId root, std::span<const Token> tokens, int32_t max_blocks,
                        Match& out) const {
  out.path.clear();
  walk(root, tokens, max_blocks, [&](EntryId e) { out.path.push_back(e); });
  if (!any_window_) return;
  // The longest head whose last positions every window group still has.
  size_t best = 0;
  std::vector<int32_t>& run = runs_;
  run.assign(static_cast<size_t>(num_groups_), 0);
  for (size_t i = 0; i < out.path.size(); ++i) {
    bool ok = true;
    for (GroupId g = 0; g < num_groups_; ++g) {
      auto& have = run[static_cast<size_t>(g)];
      have = block(out.path[i], g) == kNullBlock ? 0 : have + 1;
      const int32_t need =
          windows_[static_cast<size_t>(g)] == 0
              ? static_cast<int32_t>(i) + 1
              : std::min(windows_[static_cast<size_t>(g)], static_cast<int32_t>(i) + 1);
      ok = ok && have >= need;
    }
    if (ok) best = i + 1;
  }
  out.path.resize(best);
}

int32_t PrefixCache::match_blocks(EntryId root, std::span<const Token> tokens,
                                  int32_t max_blocks) const {
  return walk(root, tokens, max_blocks, [](EntryId) {});
}

EntryId PrefixCache::insert(EntryId parent, const Token* tokens, int32_t count,
                            const PerGroup<const BlockId*>& blocks, BatchId pending,
                            double priority) {
  EntryId first = kNoEntry;
  for (int32_t k = 0; k < count; ++k, tokens += block_size_) {
    const EntryId e = new_entry();
    Entry& entry = entries_[static_cast<size_t>(e)];
    entry.parent = parent;
    entry.pending = pending;
    std::memcpy(tokens_.data() + static_cast<size_t>(e) * static_cast<size_t>(block_size_), tokens,
                static_cast<size_t>(block_size_) * sizeof(Token));
    for (GroupId g = 0; g < num_groups_; ++g) {
      const BlockId b = blocks[static_cast<size_t>(g)][k];
      blocks_[at(e, g)] = b;
      if (b != kNullBlock) pools_[static_cast<size_t>(g)].set_entry(b, e);
    }
    Entry& up = entries_[static_cast<size_t>(parent)];
    ++up.children;
    if (up.next == kNoEntry) {
      up.next = e;
    } else {
      entry.hash = hash_of(parent, tokens);
      entry.in_table = true;
      table_add(e);
    }
    touch(e, false, priority);
    if (k == 0) first = e;
    parent = e;
  }
  num_entries_ += count;
  return first;
}

void PrefixCache::set_block(EntryId e, GroupId group, BlockId b, BatchId pending) {
  blocks_[at(e, group)] = b;
  Entry& entry = entries_[static_cast<size_t>(e)];
  entry.pending = std::max(entry.pending, pending);
  pools_[static_cast<size_t>(group)].set_entry(b, e);
}

void PrefixCache::table_add(EntryId e) {
  const size_t mask = table_.size() - 1;
  size_t i = entries_[static_cast<size_t>(e)].hash & mask;
  while (table_[i] != kNoEntry) i = (i + 1) & mask;
  table_[i] = e;
}

void PrefixCache::table_remove(EntryId e) {
  const size_t mask = table_.size() - 1;
  size_t i = entries_[static_cast<size_t>(e)].hash & mask;
  while (table_[i] != e) i = (i + 1) & mask;
  // Close the gap: move back what probed over it.
  for (size_t j = (i + 1) & mask; table_[j] != kNoEntry; j = (j + 1) & mask) {
    const size_t home = entries_[static_cast<size_t>(table_[j])].hash & mask;
    if (((j - home) & mask) >= ((j - i) & mask)) {
      table_[i] = table_[j];
      i = j;
    }
  }
  table_[i] = kNoEntry;
}

void PrefixCache::drop(EntryId e) {
  Entry& entry = entries_[static_cast<size_t>(e)];
  for (GroupId g = 0; g < num_groups_; ++g) {
    const BlockId b = blocks_[at(e, g)];
    if (b != kNullBlock) pools_[static_cast<size_t>(g)].forget_entry(b);
    blocks_[at(e, g)] = kNullBlock;
  }
  if (entry.root) {
    const auto it = roots_by_entry_.find(e);
    roots_.erase(it->second.salt);
    roots_by_entry_.erase(it);
  } else {
    if (entry.in_table) table_remove(e);
    Entry& up = entries_[static_cast<size_t>(entry.parent)];
    if (up.parent != kNoEntry) prefetch(up.parent);  // mostly it goes after the next
    --up.children;
    if (up.next == e) up.next = kNoEntry;
    --num_entries_;
  }
  entry.live = false;
  free_.push_back(e);
  __builtin_prefetch(tokens_of(e), 1);  // it is the next to be taken
}

EntryId PrefixCache::remove(EntryId e) {
  check(entries_[static_cast<size_t>(e)].children == 0, "only leaves leave the prefix cache");
  const EntryId up = entries_[static_cast<size_t>(e)].parent;
  drop(e);
  return drop_childless_up(up);
}

// An entry without children and blocks is of no use; neither is a root without children and users.
EntryId PrefixCache::drop_childless_up(EntryId e) {
  while (e != kNoEntry && entries_[static_cast<size_t>(e)].children == 0) {
    const Entry& entry = entries_[static_cast<size_t>(e)];
    if (entry.root) {
      if (roots_by_entry_[e].users == 0) drop(e);
      return kNoEntry;
    }
    for (GroupId g = 0; g < num_groups_; ++g) {
      if (blocks_[at(e, g)] != kNullBlock) return e;
    }
    const EntryId up = entry.parent;
    drop(e);
    e = up;
  }
  return e;
}

void PrefixCache::mark(std::span<const EntryId> roots) {
  marks_.assign(entries_.size(), Mark::unknown);
  for (const EntryId e : roots) marks_[static_cast<size_t>(e)] = Mark::gone;
  std::vector<EntryId> path;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (!entries_[i].live) continue;
    path.clear();
    auto e = static_cast<EntryId>(i);
    while (e != kNoEntry && marks_[static_cast<size_t>(e)] == Mark::unknown) {
      path.push_back(e);
      e = entries_[static_cast<size_t>(e)].parent;
    }
    const Mark mark = e == kNoEntry ? Mark::stays : marks_[static_cast<size_t>(e)];
    for (const EntryId on : path) marks_[static_cast<size_t>(on)] = mark;
  }
}

void PrefixCache::withdraw_marked() {
  // Leaves first: what loses its last child is looked at again.
  std::vector<EntryId> leaves;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].live && marks_[i] == Mark::gone && entries_[i].children == 0)
      leaves.push_back(static_cast<EntryId>(i));
  }
  while (!leaves.empty()) {
    const EntryId e = leaves.back();
    leaves.pop_back();
    if (!entries_[static_cast<size_t>(e)].live) continue;
    const EntryId up = remove(e);
    if (up != kNoEntry && marked(up) && entries_[static_cast<size_t>(up)].children == 0)
      leaves.push_back(up);
  }
}

void PrefixCache::evict_one(GroupId group) {
  BlockPool& pool = pools_[static_cast<size_t>(group)];
  const BlockId b = pool.oldest_cached();
  check(b != kNullBlock, "nothing to evict");
  const EntryId e = pool.entry(b);
  // Evictions come one after another: what the next one reads, and the one after it.
  if (const BlockId next = pool.next_cached(b); next != kNullBlock) {
    prefetch(pool.entry(next));
    pool.prefetch(pool.next_cached(next));
  }
  if (windows_[static_cast<size_t>(group)] == 0) {
    remove(e);
    return;
  }
  pool.forget_entry(b);
  blocks_[at(e, group)] = kNullBlock;
  drop_childless_up(e);
}

void PrefixCache::weigh(EntryId e, bool hit, double priority) {
  Entry& entry = entries_[static_cast<size_t>(e)];
  entry.hits += hit;
  const int32_t level = eviction_level(eviction_, entry.hits, priority);
  for (GroupId g = 0; g < num_groups_; ++g) {
    if (block(e, g) != kNullBlock) pools_[static_cast<size_t>(g)].raise_level(block(e, g), level);
  }
}

int32_t PrefixCache::flush() {
  const int32_t before = num_entries_;
  for (GroupId g = 0; g < num_groups_; ++g) {
    while (pools_[static_cast<size_t>(g)].oldest_cached() != kNullBlock) evict_one(g);
  }
  return before - num_entries_;
}

void PrefixCache::check_integrity() const {
  std::vector<int32_t> children(entries_.size(), 0);
  int32_t count = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    if (!entry.live || entry.root) continue;
    ++count;
    const auto e = static_cast<EntryId>(i);
    if (!entries_[static_cast<size_t>(entry.parent)].live)
      throw InternalError("prefix cache: an entry lost its parent");
    ++children[static_cast<size_t>(entry.parent)];
    if (find(entry.parent, tokens_of(e)) != e)
      throw InternalError("prefix cache: an entry cannot be found, or is there twice");
    for (GroupId g = 0; g < num_groups_; ++g) {
      const BlockId b = block(e, g);
      if (b != kNullBlock && pools_[static_cast<size_t>(g)].entry(b) != e) {
        throw InternalError("prefix cache: block " + std::to_string(b) +
                            " does not know its entry");
      }
      if (b == kNullBlock && windows_[static_cast<size_t>(g)] == 0) {
        throw InternalError("prefix cache: a hole in a full group");
      }
    }
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].live && entries_[i].children != children[i]) {
      throw InternalError("prefix cache: an entry miscounts its children");
    }
  }
  if (count != num_entries_) throw InternalError("prefix cache: the number of entries is wrong");
}

}  // namespace stoker
