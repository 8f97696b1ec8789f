// Starts, feeds and turns one simulated engine.
#include "sim/replica.h"

#include <utility>

namespace stoker::sim {
namespace {

// Token 0 is in no prompt; where some answer ends before its max_tokens, it is what ends it.
Token ending_token(const Workload& workload) { return workload.ends_early() ? 0 : -1; }

}  // namespace

Replica::Replica(ReplicaConfig config, const Workload& workload)
    : config_(std::move(config)),
      workload_(workload),
      executor_(config_.cost, clock_, workload.answer_lens, config_.overlap_depth,
                workload.vocab_size, ending_token(workload), config_.slowness, config_.seed) {
  config_.scheduler.eos_token_ids.clear();
  if (ending_token(workload) >= 0)
    config_.scheduler.eos_token_ids.push_back(ending_token(workload));
}

void Replica::start(TimeNs now) {
  clock_.advance_to(now);
  executor_.restart();
  LoopOptions options;
  options.trace_capacity = 1;
  options.check_when_idle = false;  // costs the pool's size each time
  loop_ = std::make_unique<EngineLoop>(config_.scheduler, executor_, options, &clock_);
  numbers_.clear();
  counted = 0;
}

void Replica::stop() {
  loop_.reset();
  executor_.restart();
}

void Replica::add(size_t number, TimeNs now) {
  clock_.advance_to(now);  // it slept; while it is busy its clock is ahead already
  loop_->add(workload_.req(number));
  numbers_.push_back(static_cast<int32_t>(number));
  ++num_reqs;
}

bool Replica::turn() {
  const bool busy = loop_->turn();
  told_at_ = clock_.now();
  loop_->outbox().poll(news_);
  executor_.end_turn();
  return busy;
}

std::vector<int32_t> Replica::unfinished(const std::vector<int8_t>& reasons,
                                         const std::vector<int32_t>& where, int32_t self) const {
  std::vector<int32_t> out;
  for (const int32_t number : numbers_) {
    const auto i = static_cast<size_t>(number);
    if (reasons[i] == 0 && where[i] == self) out.push_back(number);
  }
  return out;
}

}  // namespace stoker::sim
