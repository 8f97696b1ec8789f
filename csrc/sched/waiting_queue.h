// Reqs that hold no place yet, in the order of the policy. The order is total: tier, key, arrival.
#pragma once

#include <compare>
#include <cstdint>
#include <set>
#include <vector>

#include "base/ids.h"
#include "sched/req.h"

namespace stoker {

struct QueueKey {
  double rank = 0;  // reqs of a lower rank outrank the others (priority)
  int32_t tier =
      1;  // 0: preempted, in front of those it is not outranked by; -1: has waited too long
  double key = 0;     // the policy's value, lower is sooner
  int32_t group = 0;  // keeps those of one branch together
  int64_t seq = 0;    // arrival
  auto operator<=>(const QueueKey&) const = default;
};

class WaitingQueue {
 public:
  struct Item {
    QueueKey key;
    Req* req;
    bool operator<(const Item& other) const {
      return (key <=> other.key) == std::partial_ordering::less;
    }
  };
  using Order = std::set<Item>;
  using iterator = Order::iterator;

  void insert(Req& req, const QueueKey& key);
  void erase(const Req& req);
  iterator erase(iterator it) {
    places_[static_cast<size_t>(it->req->id)] = items_.end();
    return items_.erase(it);
  }
  // Moves a waiting req to where its new key belongs. Allocates nothing.
  void rekey(const Req& req, const QueueKey& key);
  const QueueKey& key_of(const Req& req) const { return places_[static_cast<size_t>(req.id)]->key; }
  bool contains(const Req& req) const;

  iterator begin() { return items_.begin(); }
  iterator end() { return items_.end(); }
  iterator first_of_rank(double rank) {
    return items_.lower_bound(
        {{.rank = rank, .tier = -2, .key = 0, .group = 0, .seq = 0}, nullptr});
  }
  const Order& items() const { return items_; }
  bool empty() const { return items_.empty(); }
  int32_t size() const { return static_cast<int32_t>(items_.size()); }

 private:
  Order items_;
  std::vector<iterator> places_;  // by ReqId
};

}  // namespace stoker
