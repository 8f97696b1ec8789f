// What happens to a fleet besides reqs: failures and repairs, scaling up and down.
#include <algorithm>
#include <cmath>

#include "sim/simulation.h"
#include "sim/token_hash.h"

namespace stoker::sim {

// Without reqs to come or to answer nothing that happens matters.
bool Simulation::fleet_can_change() const { return num_ended_ < workload_.size(); }

void Simulation::happen(const Control& control) {
  const auto [now, event, index] = control;
  Replica& replica = *replicas_[static_cast<size_t>(index)];
  switch (event) {
    case Event::fail:
      if (now != replica.fails_at || !replica.running()) break;
      if (replica.scheduled) {
        replica.doomed = true;  // when the step is over that it is in
      } else {
        fail(index, now);
      }
      break;
    case Event::ready:
      set_state(index, Replica::State::up, now);
      send_waiting(now);
      break;
    case Event::tick:
      scale(now);
      controls_.push({now + config_.fleet.scale_interval, Event::tick, 0});
      break;
  }
}

void Simulation::set_state(int32_t index, Replica::State state, TimeNs now) {
  using State = Replica::State;
  Replica& replica = *replicas_[static_cast<size_t>(index)];
  hold(replica, now);
  if (replica.state != State::off) replica.paid += now - replica.since;
  replica.since = now;
  replica.state = state;
  if (state == State::up && !replica.running()) {
    replica.start(now);
    plan_failure(index, now);
  }
  if (state != State::up && state != State::draining && replica.running()) {
    replica.stop();
    router_.forget(index);
  }
  const auto at = std::lower_bound(up_.begin(), up_.end(), index);
  const bool listed = at != up_.end() && *at == index;
  if (state == State::up && !listed) up_.insert(at, index);
  if (state != State::up && listed) up_.erase(at);
}

// The time to the next failure is drawn from an exponential distribution.
void Simulation::plan_failure(int32_t index, TimeNs now) {
  const auto mean = static_cast<double>(config_.fleet.mean_time_between_failures);
  if (mean <= 0) return;
  const double u =
      (static_cast<double>(mix(config_.seed ^ mix(0xFA11 + ++draws_)) >> 11) + 0.5) * 0x1p-53;
  TimeNs& at = replicas_[static_cast<size_t>(index)]->fails_at;
  at = now + static_cast<TimeNs>(-mean * std::log(u));
  controls_.push({at, Event::fail, index});
}

// Its reqs are lost and sent again, from their beginning; its cache is empty when it comes back.
void Simulation::fail(int32_t index, TimeNs now) {
  Replica& replica = *replicas_[static_cast<size_t>(index)];
  const auto i = static_cast<size_t>(index);
  replica.doomed = false;
  ++replica.num_failures;
  ++totals_.failures;
  const std::vector<int32_t> lost = replica.unfinished(reqs_.reason, reqs_.replica, index);
  load_[i] = 0;
  unseen_ends_[i].clear();
  set_state(index, Replica::State::failed, now);
  controls_.push({now + config_.fleet.repair_time, Event::ready, index});
  for (const int32_t number : lost) {
    const auto n = static_cast<size_t>(number);
    reqs_.num_tokens[n] = 0;
    reqs_.first_token[n] = reqs_.last_token[n] = -1;
    ++totals_.resent;
    route(now, number);
  }
}

void Simulation::scale(TimeNs now) {
  using State = Replica::State;
  const FleetConfig& fleet = config_.fleet;
  int64_t unanswered = static_cast<int64_t>(homeless_.size());
  int32_t have = 0;
  for (size_t i = 0; i < replicas_.size(); ++i) {
    unanswered += load_[i];
    have += replicas_[i]->state == State::up || replicas_[i]->state == State::starting;
  }
  const auto wanted = static_cast<int32_t>(
      std::clamp<double>(std::ceil(static_cast<double>(unanswered) / fleet.target_load),
                         fleet.min_replicas, fleet.max_replicas));
  if (wanted >= have) fewer_since_ = -1;
  // Those that are still on their way out are the quickest to have back.
  for (const State from : {State::draining, State::off}) {
    for (size_t i = 0; i < replicas_.size() && have < wanted; ++i) {
      if (replicas_[i]->state != from) continue;
      const auto index = static_cast<int32_t>(i);
      if (from == State::draining) {
        set_state(index, State::up, now);
      } else {
        set_state(index, State::starting, now);
        controls_.push({now + fleet.startup_time, Event::ready, index});
      }
      ++have;
      ++totals_.scale_ups;
    }
  }
  if (wanted >= have) return send_waiting(now);
  if (fewer_since_ < 0) fewer_since_ = now;
  if (now - fewer_since_ < fleet.scale_down_delay) return;
  for (; have > wanted && up_.size() > 1; --have) {
    const int32_t least = *std::min_element(up_.begin(), up_.end(), [&](int32_t a, int32_t b) {
      return load_[static_cast<size_t>(a)] < load_[static_cast<size_t>(b)];
    });
    const bool idle = !replicas_[static_cast<size_t>(least)]->scheduled;
    set_state(least, idle ? State::off : State::draining, now);
    ++totals_.scale_downs;
  }
}

void Simulation::send_waiting(TimeNs now) {
  if (up_.empty()) return;
  std::vector<int32_t> numbers;
  numbers.swap(homeless_);
  for (const int32_t number : numbers) route(now, number);
}

}  // namespace stoker::sim
