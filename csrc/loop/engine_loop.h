// The engine loop: receive, schedule, launch, collect. The only loop there is, whoever drives it.
//
//   any thread ──add, abort──▶ Inbox ──▶ Scheduler ──▶ Executor ──▶ Scheduler ──▶ Outbox
//   one consumer ◀──poll, wait── Outbox
//
// Driven either by turn() on the caller's thread, or by run() on a thread of its own; never by both
// at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "loop/clock.h"
#include "loop/event_log_file.h"
#include "loop/executor.h"
#include "loop/inbox.h"
#include "loop/mask_source.h"
#include "loop/outbox.h"
#include "loop/req_look.h"
#include "loop/step_recorder.h"
#include "loop/step_trace.h"
#include "sched/scheduler.h"

namespace stoker {

struct LoopOptions {
  int32_t trace_capacity = 1024;  // steps that the trace ring remembers
  bool check_each_step = false;   // Scheduler::check_integrity() after every turn, for tests
  bool check_when_idle = true;    // ... when there is nothing left to do
  MaskSource* masks = nullptr;    // for reqs with a grammar; must outlive the loop
  std::string event_log;          // a file for the scheduler's event log; empty: none is kept
};

// A look at the loop, for other threads.
struct LoopStats {
  StepStats last;  // of the newest step
  int32_t num_waiting = 0, num_running = 0, steps_in_flight = 0;
  int64_t num_unfinished = 0;  // added and not ended, those still in the inbox included
  int64_t num_steps = 0;
  int64_t num_preemptions = 0;  // by recompute or by swap
  int64_t num_swaps = 0;        // of these, by swap
  PreemptionCounts preemptions = {};
  int64_t prefill_tokens = 0;  // computed; cached ones not counted
  int64_t output_tokens = 0;
  int32_t num_swapped = 0;  // reqs whose KV is in host memory now, or on its way there
  BlockCounts blocks;       // of KV group 0
  BlockCounts host_blocks;
  std::string failure;  // why the engine has stopped for good; empty: it has not
};

class EngineLoop {
 public:
  // `executor` (and `clock`, if given) must outlive the loop. config.overlap_depth is the
  // executor's.
  EngineLoop(SchedulerConfig config, Executor& executor, LoopOptions options = {},
             Clock* clock = nullptr);
  // Stops the thread, if there is one.
  ~EngineLoop();
  EngineLoop(const EngineLoop&) = delete;
  EngineLoop& operator=(const EngineLoop&) = delete;

  // --- any thread ---

  // Puts a req into the inbox; the loop owns it from here on. Child i of n > 1 has the returned key
  // + i. With `stream` false its tokens are handed out all at once, with its end. Throws
  // InvalidArgument for what can never run; what can be told only later (the rid is in use, the
  // queue is full) comes back as an end with an error.
  ReqKey add(ReqPtr req, bool stream = true);
  // Ends a req, or one child, wherever it is; its end says `abort`. Unknown or ended keys are
  // ignored.
  void abort(ReqKey key);
  // All that was added under this rid.
  void abort(std::string rid);
  // What the reqs of this rid waited for is there: their grammar. Or they end with an error.
  void grammar_ready(std::string rid);
  void end_with_error(std::string rid, std::string why);
  // Runs `job` on the loop's thread between two steps: pause, resume, flush, look.
  void call(std::function<void(Scheduler&)> job);
  // How the reqs stand: those that hold a place, then at most `max_waiting` of the queue, in its
  // order; with a `rid` only that one (all its children). Any thread but the loop's own; answered
  // between two steps. Empty-handed (nullopt) if nobody drives the loop within the time.
  std::optional<std::vector<ReqLook>> look(const std::string& rid, size_t max_waiting,
                                           TimeNs timeout_ns);
  LoopStats stats() const;
  // The newest steps, oldest first.
  std::vector<StepTrace> trace(size_t count) const;
  // True while an add() was made whose end was not published yet.
  bool has_unfinished() const { return unfinished_.load(std::memory_order_acquire) > 0; }
  Outbox& outbox() { return outbox_; }
  // What each req does in each step, from start() to stop().
  StepRecorder& recorder() { return recorder_; }

  // --- the thread that drives ---

  // One turn: receive, schedule, launch, collect. False if there was nothing to do. Throws for a
  // bug of ours (InternalError) or lost memory; every req has then ended with an error and the loop
  // takes no more.
  bool turn();
  // turn(), and if there was nothing to do, sleeps until the inbox has something or the time is
  // over (negative: no limit).
  bool turn_or_sleep(TimeNs timeout_ns);
  // Starts a thread that drives. stop() lets the steps in flight come back and joins; reqs that
  // have not ended stay where they are, and run() goes on with them.
  void run();
  void stop();
  bool running() const { return thread_.joinable(); }

  // For tests and for what drives by turn(): not while run() drives.
  Scheduler& scheduler() { return scheduler_; }
  Clock& clock() { return clock_; }
  int32_t steps_in_flight() const { return static_cast<int32_t>(flights_.size()); }
  // Turns that had reqs to run, nothing in flight and nothing to launch. The scheduler promises
  // that there are none.
  int64_t num_stalls() const { return stalls_; }

 private:
  struct AddMessage {
    ReqPtr req;
    ReqKey key;
    bool stream;
  };
  struct AbortKey {
    ReqKey key;
  };
  struct AbortRid {
    std::string rid;
  };
  struct CallMessage {
    std::function<void(Scheduler&)> job;
  };
  using Message = std::variant<AddMessage, AbortKey, AbortRid, CallMessage>;

  struct Owner {  // by ReqId: whom its news is for
    ReqKey key = -1;
    bool stream = true;
    int32_t told = 0;  // outputs that the mask source knows
  };
  struct Flight {
    BatchId batch_id;
    const BatchBuffer* buffer;
    bool late;  // waits for its masks
    StepTrace trace;
  };

  bool receive();
  void accept(const AddMessage& message);
  bool plan_next(TimeNs now, const BatchBuffer& buffer);
  bool launch_next(TimeNs began, TimeNs received);
  void record_launch(const BatchBuffer& buffer, TimeNs now);
  void collect_oldest();
  void bring_masks();
  void forget_grammars();
  void measure(const StepStats& step);
  void deliver(const StepEvents& events, const StepResult* result);
  void append_tokens(Outputs& out, const StepEvents& events, size_t i, const StepResult* result);
  void append_score(Outputs& out, const StepEvents& events, size_t i, const StepResult& result);
  void append_end(Outputs& out, ReqKey key, const Req& req);
  std::vector<ReqLook> take_look(const std::string& rid, size_t max_waiting) const;
  void refuse(const AddMessage& message, const std::string& why);
  // The engine can go on no more: every req ends with an error, now and whatever comes later.
  void fail(const std::string& why);
  void drive();
  void update_stats();

  Executor& executor_;
  SteadyClock steady_clock_;
  Clock& clock_;
  const LoopOptions options_;
  Scheduler scheduler_;
  std::unique_ptr<EventLogFile> event_log_;  // null: none is kept
  std::vector<BatchBuffer> ring_;
  size_t next_buffer_ = 0;
  std::deque<Flight> flights_;
  StepResult result_;
  // What computing a token and moving a byte takes, in ns: measured, and as last told the
  // scheduler.
  double ns_per_token_ = 0, ns_per_byte_ = 0, told_ns_per_token_ = 0, told_ns_per_byte_ = 0;
  std::vector<Token> before_;  // of the step before; planted bugs only

  Inbox<Message> inbox_;
  std::vector<Message> received_;
  std::vector<Scheduler::MaskedRow> masked_;
  std::vector<MaskRequest> mask_requests_;
  std::vector<MaskFailure> mask_failures_;
  std::vector<int32_t> mask_row_;
  std::vector<std::pair<ReqKey, int32_t>> ended_grammars_;
  Outbox outbox_;
  std::vector<Owner> owners_;
  std::unordered_map<ReqKey, ReqPtr> live_;  // accepted and not ended
  std::atomic<ReqKey> next_key_{0};
  std::atomic<int64_t> unfinished_{0};

  mutable std::mutex stats_mutex_;  // guards stats_ and trace_
  LoopStats stats_;
  StepTraceRing trace_;
  StepRecorder recorder_;
  std::vector<ReqPtr> recorded_reqs_;
  std::vector<ReqKey> recorded_keys_;
  std::string failure_;
  bool idle_checked_ = false;
  int64_t stalls_ = 0;

  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace stoker
