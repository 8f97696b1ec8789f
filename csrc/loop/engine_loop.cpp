// One turn of the loop, and the two ways to drive it.
#include "loop/engine_loop.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <new>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/planted_bugs.h"

namespace stoker {

namespace {

SchedulerConfig with_depth(SchedulerConfig config, const Executor& executor) {
  config.overlap_depth = executor.overlap_depth();
  return config;
}

constexpr double kNewest = 0.1;        // what the newest measurement weighs
constexpr double kWorthTelling = 0.1;  // a rate that moved by less is not told

double smoothed(double old, double measured) {
  return old == 0 ? measured : old + kNewest * (measured - old);
}

bool moved(double told, double now) { return std::abs(now - told) > kWorthTelling * told; }

int32_t children(const Req& req) { return std::max(req.params.n, 1); }

}  // namespace

EngineLoop::EngineLoop(SchedulerConfig config, Executor& executor, LoopOptions options,
                       Clock* clock)
    : executor_(executor),
      clock_(clock != nullptr ? *clock : steady_clock_),
      options_(options),
      scheduler_(with_depth(std::move(config), executor)),
      trace_(static_cast<size_t>(std::max(options.trace_capacity, 1))) {
  if (!options_.event_log.empty()) {
    event_log_ = std::make_unique<EventLogFile>(options_.event_log, scheduler_.config());
    scheduler_.log_to(&event_log_->log());
  }
  // One buffer more than can be in flight: the newest result's batch may still be looked at.
  for (int32_t i = 0; i < executor.overlap_depth() + 2; ++i) {
    ring_.emplace_back(&scheduler_.layout(), executor.buffer(i, scheduler_.layout()));
  }
}

EngineLoop::~EngineLoop() { stop(); }

// --- any thread ---

ReqKey EngineLoop::add(ReqPtr req, bool stream) {
  scheduler_.validate(*req);
  if (req->grammar != 0 && options_.masks == nullptr) {
    throw InvalidArgument("req '" + req->rid +
                          "': it has a grammar and the loop has no mask source");
  }
  const int32_t n = children(*req);
  const ReqKey key = next_key_.fetch_add(n, std::memory_order_relaxed);
  unfinished_.fetch_add(n, std::memory_order_acq_rel);
  inbox_.push(AddMessage{std::move(req), key, stream});
  return key;
}

void EngineLoop::abort(ReqKey key) { inbox_.push(AbortKey{key}); }

void EngineLoop::abort(std::string rid) { inbox_.push(AbortRid{std::move(rid)}); }

void EngineLoop::call(std::function<void(Scheduler&)> job) {
  inbox_.push(CallMessage{std::move(job)});
}

void EngineLoop::grammar_ready(std::string rid) {
  call([rid = std::move(rid)](Scheduler& scheduler) { scheduler.grammar_ready(rid); });
}

void EngineLoop::end_with_error(std::string rid, std::string why) {
  call([this, rid = std::move(rid), why = std::move(why)](Scheduler& scheduler) {
    scheduler.fail(rid, why, clock_.now());
  });
}

LoopStats EngineLoop::stats() const {
  const std::lock_guard lock(stats_mutex_);
  LoopStats stats = stats_;
  stats.num_unfinished = unfinished_.load(std::memory_order_acquire);
  return stats;
}

std::vector<StepTrace> EngineLoop::trace(size_t count) const {
  const std::lock_guard lock(stats_mutex_);
  return trace_.newest(count);
}

// --- the thread that drives ---

bool EngineLoop::turn() {
  bool busy = false;
  try {
    const TimeNs began = clock_.now();
    busy = receive();
    if (!failure_.empty()) return busy;
    const bool launched = launch_next(began, clock_.now());
    bring_masks();
    const auto depth = static_cast<size_t>(executor_.overlap_depth());
    // With nothing new to launch, what is in flight is all there is to wait for.
    if (flights_.size() > depth || (!launched && !flights_.empty())) {
      collect_oldest();
      bring_masks();
      busy = true;
      if (!failure_.empty()) return true;
    }
    busy = busy || launched;
    if (flights_.empty()) {
      if (const StepEvents& news = scheduler_.take_events(); !news.empty()) {
        deliver(news, nullptr);
        busy = true;
      }
    }
    if (options_.check_each_step) scheduler_.check_integrity();
    if (busy) {
      idle_checked_ = false;
    } else if (options_.check_when_idle && !idle_checked_) {
      scheduler_.check_integrity();
      idle_checked_ = true;
    }
    if (!busy && scheduler_.has_unfinished() && !scheduler_.only_waits()) ++stalls_;
    update_stats();
    if (event_log_) event_log_->turn(!busy || !scheduler_.has_unfinished());
  } catch (const std::exception& error) {
    if (failure_.empty()) fail(error.what());
    throw;
  }
  return busy;
}

bool EngineLoop::turn_or_sleep(TimeNs timeout_ns) {
  if (turn()) return true;
  inbox_.sleep(timeout_ns);
  return false;
}

void EngineLoop::run() {
  if (thread_.joinable()) throw InvalidArgument("run: the loop has a thread already");
  stop_.store(false);
  outbox_.open();
  thread_ = std::thread([this] { drive(); });
}

void EngineLoop::stop() {
  if (!thread_.joinable()) return;
  stop_.store(true);
  inbox_.interrupt();
  thread_.join();
}

void EngineLoop::drive() {
  try {
    while (!stop_.load()) {
      turn_or_sleep(-1);
    }
    while (!flights_.empty() && failure_.empty()) {
      bring_masks();
      collect_oldest();
    }
    update_stats();
  } catch (const std::exception& error) {
    // turn() has told every req already; stop()'s own collecting has not.
    if (failure_.empty()) fail(error.what());
  }
  outbox_.close();
}

bool EngineLoop::receive() {
  inbox_.drain(received_);
  for (Message& message : received_) {
    if (auto* add = std::get_if<AddMessage>(&message)) {
      accept(*add);
    } else if (planted(Bug::lost_abort) && !std::holds_alternative<CallMessage>(message)) {
      continue;
    } else if (auto* by_key = std::get_if<AbortKey>(&message)) {
      if (const auto it = live_.find(by_key->key); it != live_.end()) {
        const ReqPtr req = it->second;
        scheduler_.abort(req->rid, clock_.now());
      }
    } else if (auto* by_rid = std::get_if<AbortRid>(&message)) {
      scheduler_.abort(by_rid->rid, clock_.now());
    } else if (auto* call = std::get_if<CallMessage>(&message)) {
      call->job(scheduler_);
    }
    message = AbortKey{-1};  // done with, should a later one throw
  }
  const bool any = !received_.empty();
  received_.clear();  // what they held is let go now, not when the next messages come
  return any;
}

void EngineLoop::accept(const AddMessage& message) {
  if (!failure_.empty()) {
    refuse(message, failure_);
    return;
  }
  const ReqPtr& req = message.req;
  try {
    scheduler_.add(req, clock_.now());
  } catch (const InvalidArgument& error) {
    refuse(message, error.what());
    return;
  }
  const int32_t n = children(*req);
  for (int32_t i = 0; i < n; ++i) {
    const ReqPtr child = n == 1 ? req : scheduler_.find(req->rid + "/" + std::to_string(i));
    check(child != nullptr, "an accepted req is unknown");
    const auto id = static_cast<size_t>(child->id);
    if (owners_.size() <= id) owners_.resize(id + 1);
    // Logprobs belong to the step that made them, so they cannot wait for the end.
    const bool stream = message.stream || child->params.num_logprobs >= 0;
    owners_[id] = {message.key + i, stream, 0};
    live_.emplace(message.key + i, child);
  }
}

// Where memory could not be had nothing was planned. Once more, then the steps in flight come
// first: what they end gives memory back.
bool EngineLoop::plan_next(TimeNs now, const BatchBuffer& buffer) {
  for (const bool again : {true, false}) {
    try {
      return scheduler_.schedule(now, buffer);
    } catch (const std::bad_alloc&) {
      if (!again && flights_.empty()) throw;
    }
  }
  return false;
}

bool EngineLoop::launch_next(TimeNs began, TimeNs received) {
  const BatchBuffer& buffer = ring_[next_buffer_];
  if (!plan_next(received, buffer)) return false;
  const TimeNs scheduled = clock_.now();
  Flight flight{buffer.header().batch_id, &buffer, (buffer.header().flags & kBatchLate) != 0, {}};
  executor_.launch(buffer);
  flight.trace.launch_ns = clock_.now() - scheduled;
  flight.trace.stats = scheduler_.last_stats();
  flight.trace.began = began;
  flight.trace.receive_ns = received - began;
  flight.trace.schedule_ns = scheduled - received;
  flight.trace.in_flight = static_cast<int32_t>(flights_.size());
  flights_.push_back(flight);
  if (recorder_.on()) record_launch(buffer, scheduled);
  if (!planted(Bug::buffer_reused_early)) next_buffer_ = (next_buffer_ + 1) % ring_.size();
  return true;
}

// Once a step is the oldest in flight every token before it is known: the masks that it waits for
// can be made, while the device computes what comes before sampling.
void EngineLoop::bring_masks() {
  if (flights_.empty() || !flights_.front().late || !failure_.empty()) return;
  Flight& flight = flights_.front();
  const TimeNs began = clock_.now();
  flight.late = false;
  scheduler_.masked_rows(flight.batch_id, masked_);
  mask_requests_.clear();
  mask_failures_.clear();
  mask_row_.assign(static_cast<size_t>(flight.buffer->header().num_outs), -1);
  for (const auto& [req, out_row] : masked_) {
    Owner& owner = owners_[static_cast<size_t>(req->id)];
    mask_row_[static_cast<size_t>(out_row)] = static_cast<int32_t>(mask_requests_.size());
    const auto outputs = std::span(req->tokens).subspan(static_cast<size_t>(req->prompt_len));
    mask_requests_.push_back({owner.key, req->grammar, req->num_outputs(),
                              outputs.subspan(static_cast<size_t>(owner.told))});
    owner.told = req->num_outputs();
  }
  LateMasks late;
  if (!mask_requests_.empty()) {
    late.bits = options_.masks->fill(mask_requests_, mask_failures_);
    late.words = static_cast<int32_t>(late.bits.size() / mask_requests_.size());
  }
  for (const MaskFailure& failure : mask_failures_) {
    const auto& [req, out_row] = masked_[failure.row];
    mask_row_[static_cast<size_t>(out_row)] = -1;
    if (!req->finished()) scheduler_.fail(req->rid, failure.why, began);
  }
  late.mask_row = mask_row_;
  executor_.launch_sample(flight.batch_id, late);
  flight.trace.mask_ns = clock_.now() - began;
}

void EngineLoop::forget_grammars() {
  for (const auto& [key, grammar] : ended_grammars_) options_.masks->forget(key, grammar);
  ended_grammars_.clear();
}

void EngineLoop::record_launch(const BatchBuffer& buffer, TimeNs now) {
  scheduler_.reqs_of(buffer.header().batch_id, recorded_reqs_);
  recorded_keys_.clear();
  for (const ReqPtr& req : recorded_reqs_) {
    recorded_keys_.push_back(owners_[static_cast<size_t>(req->id)].key);
  }
  recorder_.launched(buffer, now, recorded_keys_, live_,
                     [this](const Req& req) { return scheduler_.explain(req); });
  recorded_reqs_.clear();
}

void EngineLoop::collect_oldest() {
  Flight flight = flights_.front();
  const TimeNs began = clock_.now();
  result_.clear();
  executor_.collect(result_);
  const TimeNs collected = clock_.now();
  flights_.pop_front();
  if (result_.status == StepStatus::fatal) {
    fail(result_.message.empty() ? "the device is lost" : result_.message);
    return;
  }
  check(result_.batch_id == flight.batch_id, "the executor brought back another step");
  if (planted(Bug::result_of_another_step) && result_.token_ids.size() == before_.size()) {
    std::swap(before_, result_.token_ids);
  } else if (planted(Bug::result_of_another_step)) {
    before_ = result_.token_ids;
  }
  measure(flight.trace.stats);
  const StepEvents& events = scheduler_.commit(result_, collected);
  deliver(events, &result_);
  flight.trace.collect_ns = collected - began;
  flight.trace.committed = clock_.now();
  flight.trace.commit_ns = flight.trace.committed - collected;
  flight.trace.device_ns = result_.device_time;
  flight.trace.status = static_cast<int32_t>(result_.status);
  if (recorder_.on()) recorder_.committed(flight.trace);
  const std::lock_guard lock(stats_mutex_);
  trace_.push(flight.trace);
  ++stats_.num_steps;
  stats_.num_swaps += flight.trace.stats.num_swapped_out;
  stats_.prefill_tokens += flight.trace.stats.num_tokens - flight.trace.stats.num_decode_rows;
  stats_.output_tokens += static_cast<int64_t>(events.tokens.size());
}

// Keeps what the choice between recompute and swap stands on up to date. Steps that prefill tell
// what a token costs: one that is computed again is computed so.
void EngineLoop::measure(const StepStats& step) {
  if (step.host_blocks[0].total == 0 || result_.status != StepStatus::ok) return;
  if (step.num_prefill_rows > 0 && step.num_transfers == 0 && result_.device_time > 0) {
    ns_per_token_ =
        smoothed(ns_per_token_, static_cast<double>(result_.device_time) / step.num_tokens);
  }
  if (result_.transfer_time > 0 && result_.transfer_bytes > 0) {
    ns_per_byte_ = smoothed(ns_per_byte_, static_cast<double>(result_.transfer_time) /
                                              static_cast<double>(result_.transfer_bytes));
  }
  if (ns_per_token_ == 0 || ns_per_byte_ == 0) return;
  if (!moved(told_ns_per_token_, ns_per_token_) && !moved(told_ns_per_byte_, ns_per_byte_)) return;
  scheduler_.set_rates(told_ns_per_token_ = ns_per_token_, told_ns_per_byte_ = ns_per_byte_);
}

void EngineLoop::update_stats() {
  const std::lock_guard lock(stats_mutex_);
  stats_.last = scheduler_.last_stats();
  stats_.num_waiting = scheduler_.num_waiting();
  stats_.num_running = scheduler_.num_running();
  stats_.num_swapped = scheduler_.num_swapped();
  stats_.preemptions = scheduler_.preemptions();
  stats_.num_preemptions = 0;
  for (const auto& by_reason : stats_.preemptions)
    stats_.num_preemptions =
        std::accumulate(by_reason.begin(), by_reason.end(), stats_.num_preemptions);
  stats_.host_blocks = scheduler_.host_block_counts(0);
  stats_.steps_in_flight = steps_in_flight();
  stats_.blocks = scheduler_.block_counts(0);
}

}  // namespace stoker
