// Launches by adding up time, collects by letting it pass.
#include "sim/simulated_executor.h"

#include <cmath>
#include <cstdlib>
#include <memory>

#include "base/check.h"
#include "sim/token_hash.h"

namespace stoker::sim {

namespace {

constexpr size_t kAlignment = 64;

TimeNs whole(double ns) { return static_cast<TimeNs>(std::llround(ns)); }

}  // namespace

SimulatedExecutor::SimulatedExecutor(const CostModel& cost, VirtualClock& clock,
                                     std::span<const int32_t> answer_lens, int32_t overlap_depth,
                                     int32_t vocab_size, Token eos, double slowness, uint64_t seed)
    : cost_(cost),
      clock_(clock),
      answer_lens_(answer_lens),
      overlap_depth_(overlap_depth),
      vocab_size_(vocab_size),
      eos_(eos),
      slowness_(slowness),
      seed_(mix(seed)) {}

std::byte* SimulatedExecutor::buffer(int32_t, const BatchLayout& layout) {
  seats_.resize(static_cast<size_t>(layout.limits().max_num_seqs) + 1);
  // calloc: a thousand replicas pay only for the pages that they touch.
  void* const memory = std::calloc(1, layout.bytes() + kAlignment);
  check(memory != nullptr, "out of memory");
  memory_.emplace_back(static_cast<std::byte*>(memory), &std::free);
  void* at = memory;
  size_t space = layout.bytes() + kAlignment;
  return static_cast<std::byte*>(std::align(kAlignment, layout.bytes(), at, space));
}

void SimulatedExecutor::launch(const BatchBuffer& batch) {
  for (const SeatChange& change : batch.used<SeatChange>(Section::seat_changes)) {
    const auto number = static_cast<int32_t>(change.seed_low);
    seats_[static_cast<size_t>(change.seat)] = {
        number, change.prompt_len + answer_lens_[static_cast<size_t>(number)] - 1};
  }
  const BatchId id = batch.header().batch_id;
  clock_.advance(whole(cost_.host_before));
  const TimeNs start = std::max(clock_.now(), device_free_);
  TimeNs end;
  if (replaying()) {
    check(static_cast<size_t>(id) <= recorded_.size(), "more steps than were recorded");
    end = std::max(start, recorded_[static_cast<size_t>(id) - 1].collected);
  } else {
    work_ = count_work(batch, cost_.window, cost_.windowed_share);
    work_.from_idle = flights_.empty() ? 1 : 0;
    const uint64_t draw = mix(seed_ ^ static_cast<uint64_t>(id));
    end = start + whole(slowness_ * static_cast<double>(cost_.time(work_, draw)));
    clock_.advance(cost_.launch_time(work_, mix(draw)));
    end = std::max(end, clock_.now());
  }
  device_free_ = end;
  busy_ += end - start;
  ++num_steps_;
  flights_.push_back({id, end, end - start, batch.data(), &batch.layout()});
}

void SimulatedExecutor::collect(StepResult& result) {
  const Flight flight = flights_.front();
  flights_.pop_front();
  clock_.advance_to(flight.end);
  owed_ += cost_.host_after;
  const BatchBuffer batch(flight.layout, const_cast<std::byte*>(flight.batch));
  result.batch_id = flight.batch_id;
  result.device_time = flight.took;
  const auto kinds = batch.used<int32_t>(Section::out_kind);
  const auto seats = batch.used<int32_t>(Section::out_seat);
  const auto positions = batch.used<int32_t>(Section::out_position);
  const auto range = static_cast<uint64_t>(vocab_size_ - 1);
  for (size_t i = 0; i < seats.size(); ++i) {
    if (kinds[i] != static_cast<int32_t>(OutKind::sample)) continue;
    const Seated& seat = seats_[static_cast<size_t>(seats[i])];
    const uint64_t place = (static_cast<uint64_t>(static_cast<uint32_t>(seat.number)) << 32) |
                           static_cast<uint32_t>(positions[i]);
    // Any token but `eos`, which is 0 where there is one.
    const auto token =
        static_cast<Token>(1 + (((place * 0x9E3779B97F4A7C15ULL) >> 32) * range >> 32));
    result.token_ids.push_back(positions[i] >= seat.last_position && eos_ >= 0 ? eos_ : token);
  }
  for (const Transfer& t : batch.used<Transfer>(Section::transfers)) {
    result.finished_transfers.push_back(t.ticket);
  }
}

void SimulatedExecutor::end_turn() {
  if (owed_ > 0 && !replaying()) clock_.advance(whole(owed_));
  owed_ = 0;
}

void SimulatedExecutor::restart() {
  flights_.clear();
  memory_.clear();
  device_free_ = clock_.now();
}

void SimulatedExecutor::begin_recorded_turn() {
  const auto next = static_cast<size_t>(num_steps_);
  if (next >= recorded_.size()) return;
  if (recorded_[next].in_flight >= static_cast<int32_t>(flights_.size())) {
    clock_.advance_to(recorded_[next].received);
  }
}

}  // namespace stoker::sim
