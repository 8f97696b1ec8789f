// What each req did in each step, kept only while somebody asks for it: the step trace's long form,
// for pictures and timelines. While it is off a step pays for one load and one branch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "loop/outbox.h"
#include "loop/step_trace.h"
#include "sched/req.h"
#include "sched/schedule_batch.h"
#include "sched/step_events.h"

namespace stoker {

// One req's row of one step. Its tokens stand at [kv_len - num_tokens, kv_len).
struct RecordedRow {
  BatchId batch_id;
  ReqKey key;
  Seat seat;
  int32_t num_tokens;
  int32_t kv_len;
  bool decodes;  // one token of a running req; else a chunk of a prompt or of a recompute
};

// New tokens that a step's commit handed out; a row of that step without an entry here gave none.
struct RecordedTokens {
  BatchId batch_id;
  ReqKey key;
  int32_t count;
};

// A req that was first seen, changed its state, or waits for another reason than before.
struct RecordedChange {
  BatchId batch_id;  // the step being launched
  TimeNs time;
  ReqKey key;
  ReqState state;
  WaitReason wait;
};

struct RecordedReq {
  ReqKey key;
  std::string rid;
  int32_t prompt_len;
  TimeNs arrival_time;
};

struct RecordedEnd {
  BatchId batch_id;  // 0: outside a step
  ReqKey key;
  FinishReason reason;
  int32_t num_outputs;
  int32_t retractions, swaps, cached_tokens;
  TimeNs first_scheduled_time, first_token_time, finish_time;
};

struct Recording {
  std::vector<StepTrace> steps;
  std::vector<RecordedRow> rows;
  std::vector<RecordedTokens> tokens;
  std::vector<RecordedChange> changes;
  std::vector<RecordedReq> reqs;
  std::vector<RecordedEnd> ends;
  int64_t dropped_steps = 0;  // there was no room for them; take more often
};

// start(), stop() and take(): any thread. The rest: the loop's thread, and only while on().
class StepRecorder {
 public:
  bool on() const { return on_.load(std::memory_order_relaxed); }
  // Records until stop(), but holds `max_rows` rows at most between two take()s.
  void start(size_t max_rows);
  void stop();
  Recording take();

  using Live = std::unordered_map<ReqKey, ReqPtr>;
  // A step was launched: `reqs` and `keys` in the order of its rows. `explain` gives a Req's
  // WaitReason.
  template <typename Explain>
  void launched(const BatchBuffer& batch, TimeNs now, const std::vector<ReqKey>& keys,
                const Live& live, Explain explain) {
    const std::lock_guard lock(mutex_);
    const BatchId id = batch.header().batch_id;
    if (full(id)) return;
    add_rows(batch, keys);
    const size_t first = held_.changes.size();
    for (const auto& [key, req] : live) look(id, now, key, *req, explain(*req));
    in_order(first);
  }
  void committed(const StepTrace& trace);
  void delivered(BatchId batch_id, ReqKey key, int32_t num_tokens);
  void ended(BatchId batch_id, ReqKey key, const Req& req);

 private:
  struct Seen {
    ReqState state;
    WaitCode code;
    int32_t retractions;
  };

  bool full(BatchId id);
  void add_rows(const BatchBuffer& batch, const std::vector<ReqKey>& keys);
  void look(BatchId id, TimeNs now, ReqKey key, const Req& req, const WaitReason& wait);
  void in_order(size_t first);
  void introduce(ReqKey key, const Req& req);

  std::atomic<bool> on_{false};
  std::mutex mutex_;
  size_t max_rows_ = 0;
  BatchId first_ = 0, last_ = 0;  // recorded steps: [first_, last_]
  Recording held_;
  std::unordered_map<ReqKey, Seen> seen_;
};

}  // namespace stoker
