// The executor of the tests: no model, but every promise that a batch makes about KV memory is put
// to the proof.
//
// launch() only queues. A step executes later (when it is collected, or sooner by a whim that
// depends on its number), as on a device that lags behind: then seat and table changes are applied,
// copies begin, every token is written to the slots that the batch names, and each row reads its
// whole context back through the device-side block table. The token sampled is a hash of what was
// read and of the seat's seed, so a wrong slot, an early reuse, a stale table or a missed copy
// changes a token or trips a named check.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "loop/executor.h"
#include "sim/cost_model.h"
#include "sim/fake_kv.h"
#include "sim/token_hash.h"

namespace stoker::sim {

struct ScriptedConfig {
  std::vector<FakeGroup> groups;
  int32_t overlap_depth = 0;
  SampleRule rule;
  uint32_t row_failures_per_million = 0;
  uint32_t eager_percent = 0;      // share of steps that execute as soon as they are launched
  int32_t max_transfer_delay = 0;  // steps between tiers; by the ticket's hash
  std::vector<BatchId> failing_steps;
  BatchId fatal_step = 0;       // 0: none
  int64_t bytes_per_block = 0;  // what a copy between tiers is said to move
  CostModel cost;
  bool read_all_rows = true;  // also those without output; costs their context once more
};

class ScriptedExecutor final : public Executor {
 public:
  explicit ScriptedExecutor(ScriptedConfig config);
  ~ScriptedExecutor() override;

  int32_t overlap_depth() const override { return config_.overlap_depth; }
  std::byte* buffer(int32_t index, const BatchLayout& layout) override;
  void launch(const BatchBuffer& batch) override;
  void launch_sample(BatchId batch_id, const LateMasks& late) override;
  void collect(StepResult& result) override;
  bool ready() override { return !queue_.empty() && queue_.front().executed; }

  // Says that a block holds nothing that anyone may read: a later read without a write before is a
  // violation.
  void poison(GroupId group, Tier tier, BlockId block) { kv_->poison(group, tier, block); }

  const std::vector<Violation>& violations() const;
  int64_t num_violations() const;
  int64_t num_steps() const { return steps_; }
  int64_t num_tokens() const { return tokens_; }
  int64_t num_sampled() const { return sampled_; }
  int64_t num_failed_rows() const { return failed_rows_; }  // rows and outputs of failed steps
  TimeNs device_time() const { return device_time_; }

 private:
  struct SeatState {
    Token last_token = -1;
    int32_t last_position = -1;  // of last_token
    int32_t seq_len = -1;        // KV computed; -1: the seat was just taken
    bool tainted = false;        // a step or row of it failed: what it samples is worthless
    uint64_t seed = 0;
    int32_t min_position = 0;
    int32_t num_logprobs = -1;
    std::vector<Token> stop;
  };
  struct Step {
    BatchBuffer batch;
    BatchId batch_id = 0;
    uint64_t checksum = 0;
    bool executed = false;
    bool waits = false;  // for its masks
    std::vector<int32_t> mask_row, mask_bits;
    int32_t mask_words = 0;
    StepResult result;
  };

  void execute(Step& step);
  bool sane(const BatchBuffer& batch);
  void apply_changes(const BatchBuffer& batch);
  void write_rows(const BatchBuffer& batch, bool failing);
  void read_rows(Step& step);
  void sample_out(Step& step, int32_t out, int32_t row, int32_t kv_len);
  void check_work(const BatchBuffer& batch);
  void execute_until(size_t index);
  // The hash of what a row's token sees over all KV groups.
  FakeKv::ReadResult context(Seat seat, int32_t kv_len);
  SeatState& seat(Seat s) { return seats_[static_cast<size_t>(s)]; }

  ScriptedConfig config_;
  std::unique_ptr<FakeKv> kv_;
  std::vector<SeatState> seats_;
  std::vector<std::unique_ptr<std::byte[]>> memory_;
  std::deque<Step> queue_;
  BatchId last_launched_ = 0;
  int64_t steps_ = 0, tokens_ = 0, failed_rows_ = 0, sampled_ = 0;
  TimeNs device_time_ = 0;
};

}  // namespace stoker::sim
