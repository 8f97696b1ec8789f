// Reqs that hold no place yet, in the order of the policy. The order is total: tier, key, arrival.
#pragma once

#include <compare>
#include <cstdint>
#include <memory_resource>
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
    Req* req = nullptr;
    bool operator<(const Item& other) const {
      return (key <=> other.key) == std::partial_ordering::less;
    }
  };
  using Order = std::pmr::set<Item>;
  using iterator = Order::iterator;

  // Room for one req more, which may come and go until leave(): insert() and erase() allocate
  // nothing.
  void enroll(ReqId id);
  void leave() { spare_.pop_back(); }
  void insert(Req& req, const QueueKey& key);
  void erase(const Req& req);
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
  std::pmr::unsynchronized_pool_resource memory_;  // places lie together, and cost no malloc each
  Order items_{&memory_};
  std::vector<iterator> places_;         // by ReqId
  std::vector<Order::node_type> spare_;  // of the reqs that are enrolled and do not wait
};

}  // namespace stoker
