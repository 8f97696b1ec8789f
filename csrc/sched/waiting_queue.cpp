// The ordered set behind the waiting queue.
#include "sched/waiting_queue.h"

#include <utility>

#include "base/check.h"

namespace stoker {

void WaitingQueue::enroll(ReqId id) {
  if (static_cast<size_t>(id) >= places_.size())
    places_.resize(static_cast<size_t>(id) + 1, items_.end());
  const size_t all = items_.size() + spare_.size() + 1;
  if (spare_.capacity() < all) spare_.reserve(2 * all);
  Order fresh(&memory_);
  spare_.push_back(fresh.extract(fresh.insert(Item{}).first));
}

void WaitingQueue::insert(Req& req, const QueueKey& key) {
  spare_.back().value() = {key, &req};
  // Whoever comes last mostly stands last.
  const iterator place = items_.insert(items_.end(), std::move(spare_.back()));
  check(place->req == &req, "a req is in the waiting queue once");
  spare_.pop_back();
  places_[static_cast<size_t>(req.id)] = place;
}

bool WaitingQueue::contains(const Req& req) const {
  return req.id >= 0 && static_cast<size_t>(req.id) < places_.size() &&
         places_[static_cast<size_t>(req.id)] != items_.end();
}

void WaitingQueue::erase(const Req& req) {
  auto& place = places_[static_cast<size_t>(req.id)];
  spare_.push_back(items_.extract(place));
  place = items_.end();
}

void WaitingQueue::rekey(const Req& req, const QueueKey& key) {
  auto& place = places_[static_cast<size_t>(req.id)];
  if ((place->key <=> key) == std::partial_ordering::equivalent) return;
  auto node = items_.extract(place);
  node.value().key = key;
  place = items_.insert(std::move(node)).position;
}

}  // namespace stoker
