// Which replica gets a req: what stands in front of a fleet.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "sim/workload.h"

namespace stoker::sim {

enum class Routing : int32_t {
  round_robin,
  random,
  least_loaded,  // fewest reqs not answered yet
  two_choices,   // the less loaded of two at random
  prefix,   // where at least half of the prompt's blocks went last, while that is not overloaded
  session,  // each session stays where it began, as long as that is up
};

std::string_view name_of(Routing value);
Routing routing_of(std::string_view name);  // throws InvalidArgument naming what is allowed

class Router {
 public:
  Router(Routing routing, const Workload& workload, uint64_t seed)
      : routing_(routing), workload_(workload), seed_(seed) {}

  // `up`: the replicas that take reqs, at least one; `load` by replica: reqs given and not ended.
  int32_t pick(size_t number, std::span<const int32_t> up, const std::vector<int32_t>& load);
  // A replica lost what it had cached.
  void forget(int32_t replica);

 private:
  int32_t least_loaded(std::span<const int32_t> up, const std::vector<int32_t>& load);
  int32_t by_prefix(size_t number, std::span<const int32_t> up, const std::vector<int32_t>& load);
  int32_t by_session(size_t number, std::span<const int32_t> up, const std::vector<int32_t>& load);
  uint64_t draw();

  const Routing routing_;
  const Workload& workload_;
  const uint64_t seed_;
  uint64_t picks_ = 0, draws_ = 0;
  std::unordered_map<uint64_t, int32_t> seen_;  // run of prompt blocks, or session -> replica
};

}  // namespace stoker::sim
