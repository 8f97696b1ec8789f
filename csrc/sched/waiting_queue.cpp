// The ordered set behind the waiting queue.
#include "sched/waiting_queue.h"

#include "base/check.h"

namespace stoker {

void WaitingQueue::insert(Req& req, const QueueKey& key) {
  if (static_cast<size_t>(req.id) >= places_.size())
    places_.resize(static_cast<size_t>(req.id) + 1, items_.end());
  const auto [it, fresh] = items_.insert({key, &req});
  check(fresh, "a req is in the waiting queue once");
  places_[static_cast<size_t>(req.id)] = it;
}

bool WaitingQueue::contains(const Req& req) const {
  return req.id >= 0 && static_cast<size_t>(req.id) < places_.size() &&
         places_[static_cast<size_t>(req.id)] != items_.end();
}

void WaitingQueue::erase(const Req& req) { erase(places_[static_cast<size_t>(req.id)]); }

void WaitingQueue::rekey(const Req& req, const QueueKey& key) {
  auto& place = places_[static_cast<size_t>(req.id)];
  if ((place->key <=> key) == std::partial_ordering::equivalent) return;
  auto node = items_.extract(place);
  node.value().key = key;
  place = items_.insert(std::move(node)).position;
}

}  // namespace stoker
