// What an operator can do: pause and resume, flush the prefix cache, pin a prefix in it.
#include "base/check.h"
#include "sched/scheduler.h"

namespace stoker {

void Scheduler::pause(Pause how) {
  if (log_ != nullptr) log_->pause(static_cast<int32_t>(how));
  pause_ = how;
}

int32_t Scheduler::flush_cache() {
  if (log_ != nullptr) log_->flush();
  return prefix_ ? prefix_->flush() : 0;
}

int64_t Scheduler::pin_prefix(std::span<const Token> tokens, const std::string& salt) {
  const EntryId root = prefix_ ? prefix_->root_of(salt) : kNoEntry;
  if (root == kNoEntry)
    throw InvalidArgument("nothing of this prefix is cached: run a req with it first");
  PrefixCache::Match found;
  prefix_->match(root, tokens, static_cast<int32_t>(tokens.size()) / block_size_, found);
  while (!found.path.empty() && prefix_->pending_step(found.path.back()) > committed_)
    found.path.pop_back();
  if (found.path.empty())
    throw InvalidArgument("nothing of this prefix is cached: run a req with it first");
  const auto count = static_cast<int64_t>(found.path.size());
  for (GroupId g = 0; g < num_groups_; ++g) {
    const int64_t half = (pools_[static_cast<size_t>(g)].total() - 1) / 2;
    if (num_pinned_ + count > half) {
      throw InvalidArgument(
          "pinning " + std::to_string(count) + " more blocks would hold over half of the pool (" +
          std::to_string(num_pinned_) + " are pinned, at most " + std::to_string(half) + ")");
    }
  }
  if (log_ != nullptr) log_->pin(tokens, salt);
  Pin pin{.id = ++last_pin_, .root = prefix_->enter(salt), .count = count, .blocks = {}};
  pin.blocks.resize(static_cast<size_t>(num_groups_));
  for (GroupId g = 0; g < num_groups_; ++g) {
    for (const EntryId e : found.path) {
      const BlockId block = prefix_->block(e, g);
      if (block == kNullBlock) continue;
      pools_[static_cast<size_t>(g)].retain(block);
      pin.blocks[static_cast<size_t>(g)].push_back(block);
    }
  }
  num_pinned_ += count;
  pins_.push_back(std::move(pin));
  return last_pin_;
}

bool Scheduler::unpin_prefix(int64_t id) {
  for (size_t i = 0; i < pins_.size(); ++i) {
    if (pins_[i].id != id) continue;
    if (log_ != nullptr) log_->unpin(id);
    for (GroupId g = 0; g < num_groups_; ++g) {
      const auto& blocks = pins_[i].blocks[static_cast<size_t>(g)];
      for (size_t k = blocks.size(); k > 0; --k)
        pools_[static_cast<size_t>(g)].release(blocks[k - 1], 0);
    }
    num_pinned_ -= pins_[i].count;
    prefix_->leave(pins_[i].root);
    pins_.erase(pins_.begin() + static_cast<std::ptrdiff_t>(i));
    return true;
  }
  return false;
}

}  // namespace stoker
