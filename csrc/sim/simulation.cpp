// The order of events, and what is written down of them.
#include "sim/simulation.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "sim/token_hash.h"

namespace stoker::sim {
namespace {

constexpr TimeNs kNever = std::numeric_limits<TimeNs>::max();

const SimulationConfig& checked(const SimulationConfig& config, const Workload& workload) {
  const FleetConfig& fleet = config.fleet;
  const auto need = [](bool holds, const char* what) {
    if (!holds) throw InvalidArgument(what);
  };
  workload.check_shape();
  need(fleet.num_replicas >= 1, "num_replicas must be at least 1");
  need(fleet.slow_share >= 0 && fleet.slow_share <= 1, "slow_share must be 0 to 1");
  need(fleet.slow_factor > 0, "slow_factor must be above 0");
  need(fleet.mean_time_between_failures >= 0 && fleet.repair_time >= 0 && fleet.startup_time >= 0 &&
           fleet.scale_down_delay >= 0,
       "the times of a fleet must be 0 or more");
  if (fleet.max_replicas > 0) {
    need(fleet.min_replicas >= 1 && fleet.min_replicas <= fleet.max_replicas,
         "min_replicas must be 1 to max_replicas");
    need(fleet.num_replicas <= fleet.max_replicas, "num_replicas must be at most max_replicas");
    need(fleet.target_load > 0 && fleet.scale_interval > 0,
         "target_load and scale_interval must be above 0");
  }
  need(config.overlap_depth >= 0 && config.overlap_depth <= kMaxOverlapDepth,
       "overlap_depth must be 0 to 7");
  need(config.replayed.empty() || (fleet.num_replicas == 1 && fleet.max_replicas == 0),
       "a recorded run is repeated on one replica");
  return config;
}

}  // namespace

Simulation::Simulation(SimulationConfig config, Workload workload)
    : config_(checked(config, workload)),
      workload_(std::move(workload)),
      router_(config_.fleet.routing, workload_, mix(config_.seed)) {
  const FleetConfig& fleet = config_.fleet;
  const int32_t most = std::max(fleet.num_replicas, fleet.max_replicas);
  load_.assign(static_cast<size_t>(most), 0);
  unseen_ends_.resize(static_cast<size_t>(most));
  for (int32_t i = 0; i < most; ++i) {
    const uint64_t own = mix(config_.seed + 0x51D0 + static_cast<uint64_t>(i));
    const bool slow = static_cast<double>(own >> 11) * 0x1p-53 < fleet.slow_share;
    ReplicaConfig replica{config_.scheduler, config_.cost, config_.overlap_depth,
                          slow ? fleet.slow_factor : 1.0, own};
    replicas_.push_back(std::make_unique<Replica>(std::move(replica), workload_));
    if (i < fleet.num_replicas) set_state(i, Replica::State::up, 0);
  }
  if (config_.record) replicas_[0]->loop().recorder().start(size_t{1} << 26);
  replicas_[0]->executor().replay(config_.replayed);
  if (fleet.max_replicas > 0) controls_.push({fleet.scale_interval, Event::tick, 0});
  if (workload_.users > 0) {
    for (;
         next_user_req_ < workload_.users && static_cast<size_t>(next_user_req_) < workload_.size();
         ++next_user_req_) {
      coming_.push({workload_.times[static_cast<size_t>(next_user_req_)], next_user_req_});
    }
    next_open_ = workload_.size();
  }
  reqs_.resize(workload_.size());
}

std::vector<std::pair<size_t, std::string>> Simulation::impossible(size_t limit) {
  std::vector<std::pair<size_t, std::string>> out;
  int32_t most_prompt = 0, most_tokens = 0;  // of one that is possible: what is smaller is, too
  for (size_t i = 0; i < workload_.size() && out.size() < limit; ++i) {
    const int32_t prompt = workload_.prompt_lens[i], tokens = workload_.max_tokens[i];
    if (prompt <= most_prompt && tokens <= most_tokens) continue;
    try {
      replicas_[0]->loop().scheduler().validate(*workload_.req(i, true));
    } catch (const InvalidArgument& error) {
      out.emplace_back(i, error.what());
      continue;
    }
    if (prompt >= most_prompt && tokens >= most_tokens) most_prompt = prompt, most_tokens = tokens;
  }
  return out;
}

bool Simulation::run(int64_t turns) {
  for (int64_t taken = 0; taken < turns && num_ended_ < workload_.size();) {
    const TimeNs control =
        !controls_.empty() && fleet_can_change() ? std::get<0>(controls_.top()) : kNever;
    const TimeNs open = next_open_ < workload_.size() ? workload_.times[next_open_] : kNever;
    const TimeNs again = coming_.empty() ? kNever : coming_.top().first;
    const TimeNs turn = turns_.empty() ? kNever : turns_.top().first;
    const TimeNs next = std::min({control, open, again, turn});
    check(next != kNever, "the simulation has reqs to answer and nothing to do");
    if (control == next) {
      const Control event = controls_.top();
      controls_.pop();
      happen(event);
    } else if (open == next) {
      arrive(next, static_cast<int32_t>(next_open_++));
    } else if (again == next) {
      const int32_t number = coming_.top().second;
      coming_.pop();
      arrive(next, number);
    } else {
      const int32_t index = turns_.top().second;
      turns_.pop();
      replicas_[static_cast<size_t>(index)]->scheduled = false;
      take_turn(next, index);
      ++taken;
    }
  }
  if (num_ended_ < workload_.size()) return false;
  for (const auto& replica : replicas_) hold(*replica, totals_.end);
  return true;
}

void Simulation::arrive(TimeNs now, int32_t number) {
  TimeNs& arrival = reqs_.arrival[static_cast<size_t>(number)];
  if (arrival < 0) arrival = now;
  route(now, number);
}

void Simulation::route(TimeNs now, int32_t number) {
  if (up_.empty()) {
    homeless_.push_back(number);
    return;
  }
  const auto i = static_cast<size_t>(number);
  const int32_t index = up_.size() == 1 ? up_.front() : router_.pick(i, up_, load_);
  Replica& replica = *replicas_[static_cast<size_t>(index)];
  reqs_.replica[i] = index;
  ++reqs_.attempts[i];
  ++load_[static_cast<size_t>(index)];
  replica.add(i, now);
  schedule(index, std::max(now, replica.now()));
}

void Simulation::schedule(int32_t index, TimeNs at) {
  Replica& replica = *replicas_[static_cast<size_t>(index)];
  if (replica.scheduled) return;
  replica.scheduled = true;
  turns_.push({at, index});
}

void Simulation::take_turn(TimeNs now, int32_t index) {
  Replica& replica = *replicas_[static_cast<size_t>(index)];
  if (!replica.running()) return;
  auto& unseen = unseen_ends_[static_cast<size_t>(index)];
  load_[static_cast<size_t>(index)] -= static_cast<int32_t>(unseen.size());
  unseen.clear();
  if (replica.doomed) return fail(index, now);
  if (!config_.replayed.empty()) {
    replica.begin_recorded_turn();
    if (replica.now() > now) return schedule(index, replica.now());  // others may come before
  }
  hold(replica, replica.now());
  ++totals_.turns;
  const bool busy = replica.turn();
  measure(replica, index);
  if (busy) return schedule(index, replica.now());
  if (replica.has_unfinished()) throw InternalError("the engine has reqs to run and runs none");
  if (replica.state == Replica::State::draining) set_state(index, Replica::State::off, now);
}

void Simulation::measure(Replica& replica, int32_t index) {
  const Outputs& news = replica.news();
  const TimeNs at = replica.told_at();
  for (const ReqKey key : news.token_keys) {
    const auto i = static_cast<size_t>(replica.number_of(key));
    if (++reqs_.num_tokens[i] == 1) {
      reqs_.first_token[i] = at;
    } else {
      const TimeNs gap = at - reqs_.last_token[i];
      gaps_.add(gap);
      reqs_.longest_gap[i] = std::max(reqs_.longest_gap[i], gap);
    }
    reqs_.last_token[i] = at;
  }
  for (size_t e = 0; e < news.end_keys.size(); ++e) {
    const int32_t number = replica.number_of(news.end_keys[e]);
    const auto i = static_cast<size_t>(number);
    reqs_.reason[i] = static_cast<int8_t>(news.finish_reasons[e]);
    reqs_.cached_tokens[i] = news.cached_tokens[e];
    reqs_.preemptions[i] += news.num_preemptions[e];
    reqs_.scheduled[i] = news.first_scheduled_times[e];
    check(news.finish_reasons[e] != static_cast<int32_t>(FinishReason::error),
          "a simulated req failed");
    end_req(index, at, number);
  }
  totals_.output_tokens += static_cast<int64_t>(news.tokens.size());
  replica.num_tokens += static_cast<int64_t>(news.tokens.size());

  const StepStats& stats = replica.loop().scheduler().last_stats();
  double prompt = 0;
  if (stats.batch_id > replica.counted) {
    replica.counted = stats.batch_id;
    prompt = stats.num_tokens - stats.num_decode_rows;
    totals_.prefill_tokens += stats.num_tokens - stats.num_decode_rows;
    totals_.recomputed_tokens += stats.recomputed_tokens;
    totals_.preemptions += stats.num_preempted;
  }
  hold(replica, replica.now());
  course_.add_tokens(at, prompt, static_cast<double>(news.tokens.size()));
}

void Simulation::end_req(int32_t index, TimeNs now, int32_t number) {
  ++num_ended_;
  totals_.end = std::max(totals_.end, now);
  unseen_ends_[static_cast<size_t>(index)].push_back(number);
  if (workload_.users > 0 && static_cast<size_t>(next_user_req_) < workload_.size()) {
    coming_.push({now + workload_.times[static_cast<size_t>(next_user_req_)], next_user_req_});
    ++next_user_req_;
  }
}

// Writes down how the replica stood since it was last looked at.
void Simulation::hold(Replica& replica, TimeNs until) {
  if (until <= replica.held) return;
  if (replica.running()) {
    const Scheduler& scheduler = replica.loop().scheduler();
    const BlockCounts blocks = scheduler.block_counts(0);
    course_.hold(Course::used_blocks, replica.held, until, blocks.used + blocks.draining);
    course_.hold(Course::cached_blocks, replica.held, until, blocks.cached);
    course_.hold(Course::total_blocks, replica.held, until, blocks.total - 1);
    course_.hold(Course::running, replica.held, until, scheduler.num_running());
    course_.hold(Course::waiting, replica.held, until, scheduler.num_waiting());
  }
  if (replica.state != Replica::State::off) course_.hold(Course::replicas, replica.held, until, 1);
  replica.held = until;
}

Totals Simulation::totals() const {
  Totals totals = totals_;
  for (const auto& replica : replicas_) {
    totals.steps += replica->executor().num_steps();
    totals.device_busy += replica->executor().busy();
    totals.replica_time += replica->paid;
    if (replica->state != Replica::State::off) {
      totals.replica_time += std::max<TimeNs>(0, totals_.end - replica->since);
    }
  }
  return totals;
}

Recording Simulation::take_recording() {
  check(replicas_[0]->running(), "replica 0 has no engine to have recorded");
  return replicas_[0]->loop().recorder().take();
}

}  // namespace stoker::sim
