// What of reqs' blocks the prefix cache knows: their publication, and its withdrawal where a step
// or a row has failed.
#include <algorithm>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "sched/scheduler.h"

namespace stoker {

// Puts the full blocks of the req's first `num_tokens` tokens into the prefix cache.
void Scheduler::publish(Req& req, int32_t num_tokens, BatchId pending) {
  if (!prefix_) return;
  const int32_t full = num_tokens / block_size_;
  EntryId parent = req.published == 0 ? req.prefix_root : kNoEntry;
  if (req.published > 0 && req.published < full)
    parent = pools_[0].entry(req.tables[0][static_cast<size_t>(req.published - 1)]);
  auto& made = steps_[static_cast<size_t>(pending) % steps_.size()].published;
  const Token* tokens = req.tokens.data() + int64_t{req.published} * block_size_;
  for (; req.published < full; ++req.published, tokens += block_size_) {
    check(parent != kNoEntry, "a published block is in the prefix cache");
    const EntryId entry = prefix_->find(parent, tokens);
    if (entry == kNoEntry) {  // nor are those that build on it
      if (pending > committed_ && made.size() == made.capacity()) break;  // at commit there is room
      PerGroup<const BlockId*> blocks;
      blocks.assign(static_cast<size_t>(num_groups_), nullptr);
      for (GroupId g = 0; g < num_groups_; ++g)
        blocks[static_cast<size_t>(g)] = req.tables[static_cast<size_t>(g)].data() + req.published;
      const EntryId first =
          prefix_->insert(parent, tokens, full - req.published, blocks, pending, req.priority);
      if (pending > committed_) made.push_back({first, req.id});
      req.published = full;
      break;
    }
    if (!merge_duplicate(req, req.published, entry, pending)) break;  // tried again at commit
    prefix_->touch(entry, false, req.priority);
    parent = entry;
  }
  req.publish_at = (req.published + 1) * block_size_;
}

// Publishes what the committed rows of due_ have filled. A step brings many, and what is read of
// them lies far apart: it is fetched for all of them first.
void Scheduler::publish_due(BatchId step) {
  if (due_.size() > 1) {
    const auto last_published = [](const Due& due) {
      return due.req->tables[0].data() + std::max(due.req->published - 1, 0);
    };
    for (const Due& due : due_) __builtin_prefetch(last_published(due));
    for (const Due& due : due_) {
      pools_[0].prefetch(*last_published(due));
      pools_[0].prefetch(due.req->tables[0][static_cast<size_t>(due.req->published)]);
    }
    for (const Due& due : due_) {
      const EntryId parent = pools_[0].entry(*last_published(due));
      if (parent != kNoEntry) prefix_->prefetch(parent);
    }
  }
  for (const Due& due : due_) publish(*due.req, due.committed, step);
  due_.clear();
}

// The cache holds this block already: use its copy and give ours back; where a window's copy has
// left, ours takes its place. False if that has to wait.
bool Scheduler::merge_duplicate(Req& req, int32_t index, EntryId entry, BatchId pending) {
  if (prefix_->pending_step(entry) > committed_ && !planted(Bug::merge_pending)) return false;
  if (late_changes_.size() + static_cast<size_t>(num_groups_) > late_changes_.capacity())
    return false;
  auto& made = steps_[static_cast<size_t>(pending) % steps_.size()].published;
  if (any_window_ && pending > committed_ && made.size() == made.capacity()) return false;
  bool filled = false;
  for (GroupId g = 0; g < num_groups_; ++g) {
    auto& mine = req.tables[static_cast<size_t>(g)][static_cast<size_t>(index)];
    const BlockId theirs = prefix_->block(entry, g);
    BlockPool& pool = pools_[static_cast<size_t>(g)];
    if (mine == kNullBlock) continue;
    if (theirs == kNullBlock) {
      prefix_->set_block(entry, g, mine, pending);
      filled = true;
      continue;
    }
    pool.retain(theirs);
    pool.release(mine, req.last_step);
    mine = theirs;
    late_changes_.push_back({g, req.seat, index, theirs});
    if (g == 0 && index == req.computed / block_size_) set_tail(req);
  }
  if (filled && pending > committed_) made.push_back({entry, req.id});
  return true;
}

// Takes out of the prefix cache what the failed step was to put there.
void Scheduler::withdraw_step(BatchId failed) {
  if (!prefix_) return;
  // A block may be begun in the failed step and published by a later one that fills it.
  const auto rows = steps_[static_cast<size_t>(failed) % steps_.size()].rows();
  const auto ran = [&](ReqId id) {
    return !planted(Bug::half_withdrawal) &&
           std::any_of(rows.begin(), rows.end(),
                       [&](const RowRecord& row) { return row.req->id == id; });
  };
  std::vector<EntryId> roots;
  for (BatchId id = failed; id < next_batch_; ++id) {
    for (const Published& p : steps_[static_cast<size_t>(id) % steps_.size()].published) {
      if (id == failed || ran(p.by)) roots.push_back(p.entry);
    }
  }
  withdraw(roots);
}

// Takes entries out of the prefix cache with all that builds on them. Who has read such blocks does
// its work again: a running req is retracted, and whatever was launched on them is discarded, also
// of a req that has been retracted since.
void Scheduler::withdraw(std::span<const EntryId> roots) {
  if (roots.empty()) return;
  prefix_->mark(roots);
  std::vector<Req*> misled;
  for (const ReqPtr& ptr : reqs_) {
    if (ptr && !ptr->finished() && builds_on_marked(*ptr)) misled.push_back(ptr.get());
  }
  prefix_->withdraw_marked();
  for (BatchId id = committed_; id < next_batch_; ++id) {
    auto& published = steps_[static_cast<size_t>(id) % steps_.size()].published;
    std::erase_if(published, [&](const Published& p) { return !prefix_->live(p.entry); });
  }
  for (Req* const req : misled) redo(*req);
}

// Whether what a req has computed stands on marked entries. A req without tables is judged by its
// tokens: what it read is still in the tree, under the same path.
bool Scheduler::builds_on_marked(const Req& req) const {
  if (req.state == ReqState::running) {  // the last block of a table never leaves with a window
    const auto& table = req.tables[0];
    for (int32_t i = 0; i < req.published; ++i) {
      const BlockId block = table[static_cast<size_t>(i)];
      if (block == kNullBlock) continue;
      const EntryId e = pools_[0].entry(block);
      if (e != kNoEntry && prefix_->marked(e)) return true;
    }
    return false;
  }
  const bool swapped = req.swapped_out() || req.state == ReqState::swapping_in;
  if ((req.rows_in_flight == 0 && !swapped) || planted(Bug::retracted_misled)) return false;
  EntryId at = req.prefix_root;
  for (int32_t i = 0; (i + 1) * block_size_ <= req.known(); ++i) {
    at = prefix_->find(
        at, req.tokens.data() + static_cast<size_t>(i) * static_cast<size_t>(block_size_));
    if (at == kNoEntry) return false;
    if (prefix_->marked(at)) return true;
  }
  return false;
}

// What was computed for a req is worth nothing, nor are its rows in flight: all is to be done
// again.
void Scheduler::redo(Req& req) {
  ++req.epoch;
  req.forked_in = 0;
  req.next_score = std::min(req.next_score, req.scored);
  req.known_ahead = req.known();
  if (req.state == ReqState::running) {
    preempts_for_ = PreemptionReason::failure;
    retract(req);
    preempts_for_ = PreemptionReason::blocks;
  } else if (req.state != ReqState::retracted) {
    lose_swap(req);
  }
}

}  // namespace stoker
