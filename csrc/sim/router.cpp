// The routing policies.
#include "sim/router.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "base/check.h"
#include "sim/token_hash.h"

namespace stoker::sim {
namespace {

constexpr std::array<std::pair<std::string_view, Routing>, 6> kNames{{
    {"round_robin", Routing::round_robin},
    {"random", Routing::random},
    {"least_loaded", Routing::least_loaded},
    {"two_choices", Routing::two_choices},
    {"prefix", Routing::prefix},
    {"session", Routing::session},
}};

// A cached prefix is worth this much more load than the least loaded replica has: half again, and
// a few.
constexpr int32_t kSlack = 8;
bool overloaded(int32_t load, int32_t least) { return load > least + least / 2 + kSlack; }

}  // namespace

std::string_view name_of(Routing value) {
  for (const auto& [name, known] : kNames) {
    if (known == value) return name;
  }
  return "?";
}

Routing routing_of(std::string_view name) {
  std::string allowed;
  for (const auto& [known, value] : kNames) {
    if (known == name) return value;
    allowed += (allowed.empty() ? "" : ", ") + std::string(known);
  }
  throw InvalidArgument("routing '" + std::string(name) + "' is not known; allowed are " + allowed);
}

uint64_t Router::draw() { return mix(seed_ + ++draws_); }

int32_t Router::pick(size_t number, std::span<const int32_t> up, const std::vector<int32_t>& load) {
  switch (routing_) {
    case Routing::round_robin:
      return up[picks_++ % up.size()];
    case Routing::random:
      return up[draw() % up.size()];
    case Routing::least_loaded:
      return least_loaded(up, load);
    case Routing::two_choices: {
      const int32_t a = up[draw() % up.size()], b = up[draw() % up.size()];
      return load[static_cast<size_t>(b)] < load[static_cast<size_t>(a)] ? b : a;
    }
    case Routing::prefix:
      return by_prefix(number, up, load);
    case Routing::session:
      return by_session(number, up, load);
  }
  return up.front();
}

// Looks from another place each time, so that equals take turns.
int32_t Router::least_loaded(std::span<const int32_t> up, const std::vector<int32_t>& load) {
  const size_t first = picks_++ % up.size();
  int32_t best = up[first];
  for (size_t i = 1; i < up.size(); ++i) {
    const int32_t at = up[first + i < up.size() ? first + i : first + i - up.size()];
    if (load[static_cast<size_t>(at)] < load[static_cast<size_t>(best)]) best = at;
  }
  return best;
}

int32_t Router::by_prefix(size_t number, std::span<const int32_t> up,
                          const std::vector<int32_t>& load) {
  const int32_t least = least_loaded(up, load);
  if (workload_.hash_indptr.empty()) return least;
  int32_t found = -1;
  const auto begin = workload_.hash_indptr[number], end = workload_.hash_indptr[number + 1];
  uint64_t run = 0;
  for (auto h = begin; h < end; ++h) {
    run = mix(run ^ static_cast<uint64_t>(workload_.hash_ids[static_cast<size_t>(h)]));
    const auto it = seen_.find(run);
    if (it == seen_.end()) break;
    // A system prompt that all share must not bring all to one replica.
    const bool enough = 2 * (h + 1 - begin) >= end - begin;
    if (enough && std::binary_search(up.begin(), up.end(), it->second)) found = it->second;
  }
  const auto of = [&](int32_t replica) { return load[static_cast<size_t>(replica)]; };
  if (found < 0 || overloaded(of(found), of(least))) found = least;
  run = 0;
  for (auto h = begin; h < end; ++h) {
    run = mix(run ^ static_cast<uint64_t>(workload_.hash_ids[static_cast<size_t>(h)]));
    seen_[run] = found;
  }
  return found;
}

int32_t Router::by_session(size_t number, std::span<const int32_t> up,
                           const std::vector<int32_t>& load) {
  if (workload_.sessions.empty()) return least_loaded(up, load);
  const auto session = static_cast<uint64_t>(workload_.sessions[number]);
  const auto [it, fresh] = seen_.try_emplace(session, -1);
  if (fresh || !std::binary_search(up.begin(), up.end(), it->second))
    it->second = least_loaded(up, load);
  return it->second;
}

void Router::forget(int32_t replica) {
  std::erase_if(seen_, [&](const auto& entry) { return entry.second == replica; });
}

}  // namespace stoker::sim
