// The loop with threads on every side: callers that add, abort and look, the loop's own thread, a
// worker below it, and a consumer. Meant for ThreadSanitizer; also shows that step n + 1 is
// scheduled before step n ends.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "loop/engine_loop.h"
#include "loop/worker_executor.h"
#include "sim/scripted_executor.h"

namespace stoker::test {
namespace {

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "loop_threads: FAILED: %s\n", what);
  std::exit(1);
}

SchedulerConfig small_config() {
  SchedulerConfig config;
  config.block_size = 4;
  config.num_blocks = 40;
  config.max_num_seqs = 6;
  config.max_num_batched_tokens = 24;
  config.vocab_size = 50;
  config.eos_token_ids = {2};
  return config;
}

sim::ScriptedConfig small_device(int32_t depth) {
  sim::ScriptedConfig device;
  device.groups = {{4, 40, 0, 0}};
  device.overlap_depth = depth;
  device.rule = {50, 2, 20};
  return device;
}

ReqPtr make_req(const std::string& rid, int32_t prompt, int32_t max_tokens, uint64_t seed) {
  auto req = std::make_shared<Req>();
  req->rid = rid;
  for (int32_t i = 0; i < prompt; ++i) req->tokens.push_back((i * 7 + prompt) % 50);
  req->prompt_len = prompt;
  req->params.max_tokens = max_tokens;
  req->params.has_seed = true;
  req->params.seed = seed;
  return req;
}

// Many callers, one consumer; every key ends exactly once, also over stop() and run().
void callers_and_consumer() {
  sim::ScriptedExecutor device(small_device(0));
  WorkerExecutor worker(device, 1);
  EngineLoop loop(small_config(), worker);
  loop.run();
  constexpr int kCallers = 3;
  constexpr int kEach = 60;
  std::atomic<int> callers_left{kCallers};
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&, c] {
      for (int i = 0; i < kEach; ++i) {
        const std::string rid = std::to_string(c) + "-" + std::to_string(i);
        const ReqKey key =
            loop.add(make_req(rid, 1 + (c * 31 + i * 7) % 30, 1 + i % 12, static_cast<uint64_t>(i)),
                     i % 4 != 0);
        if (i % 5 == 0) loop.abort(key);
        if (i % 7 == 0) loop.abort(rid);
        if (i % 3 == 0) loop.stats();
        if (i % 11 == 0) loop.trace(8);
        if (i % 13 == 0) loop.call([](Scheduler& s) { s.check_integrity(); });
      }
      --callers_left;
    });
  }
  std::map<ReqKey, int> ends;
  int64_t told = 0;
  int64_t received = 0;
  Outputs out;
  const auto read = [&] {
    received += static_cast<int64_t>(out.tokens.size());
    for (size_t i = 0; i < out.end_keys.size(); ++i) {
      ++ends[out.end_keys[i]];
      told += out.num_tokens[i];
    }
  };
  while (callers_left.load() > 0 || loop.has_unfinished()) {
    if (loop.outbox().wait(out, 20'000'000)) read();
  }
  for (std::thread& t : callers) t.join();
  loop.stop();
  loop.outbox().poll(out);
  read();
  expect(ends.size() == kCallers * kEach, "every req has an end");
  for (const auto& [key, count] : ends) expect(count == 1, "no req ends twice");
  expect(received == told, "as many tokens as the ends say");
  expect(device.num_violations() == 0, "the device saw nothing wrong");
  loop.scheduler().check_integrity();
}

// stop() in the middle of work leaves reqs where they are; run() goes on with them.
void stop_and_go_on() {
  sim::ScriptedExecutor device(small_device(0));
  WorkerExecutor worker(device, 2);
  EngineLoop loop(small_config(), worker);
  for (int i = 0; i < 30; ++i) {
    ReqPtr req = make_req("s" + std::to_string(i), 10 + i, 20, 1);
    req->params.ignore_eos = true;
    loop.add(std::move(req));
  }
  size_t tokens = 0;
  size_t ends = 0;
  Outputs out;
  while (loop.has_unfinished()) {
    loop.run();
    loop.outbox().wait(out, 1'000'000'000);
    tokens += out.tokens.size();
    ends += out.end_keys.size();
    loop.stop();
    expect(loop.steps_in_flight() == 0, "stop() lets the steps in flight come back");
  }
  loop.outbox().poll(out);
  expect(ends + out.end_keys.size() == 30, "all reqs end over many stops");
  expect(tokens + out.tokens.size() == 30 * 20, "no token is lost over many stops");
}

// Holds every step back until it is let go, and says when the next one was launched.
class GatedExecutor final : public Executor {
 public:
  explicit GatedExecutor(Executor& inner) : inner_(inner) {}
  int32_t overlap_depth() const override { return 0; }
  std::byte* buffer(int32_t i, const BatchLayout& layout) override {
    return inner_.buffer(i, layout);
  }
  void launch(const BatchBuffer& batch) override {
    {
      std::unique_lock lock(mutex_);
      begun_ = batch.header().batch_id;
      changed_.notify_all();
      changed_.wait(lock, [&] { return open_ >= batch.header().batch_id; });
    }
    inner_.launch(batch);
  }
  void launch_sample(BatchId id, const LateMasks& late) override { inner_.launch_sample(id, late); }
  void collect(StepResult& result) override { inner_.collect(result); }

  void let_go(BatchId id) {
    const std::lock_guard lock(mutex_);
    open_ = id;
    changed_.notify_all();
  }
  void wait_begun(BatchId id) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return begun_ >= id; });
  }

 private:
  Executor& inner_;
  std::mutex mutex_;
  std::condition_variable changed_;
  BatchId begun_ = 0, open_ = 0;
};

// Between loop and worker: lets step 1 go only when the loop launches step 2.
class Probe final : public Executor {
 public:
  Probe(Executor& inner, GatedExecutor& gate) : inner_(inner), gate_(gate) {}
  int32_t overlap_depth() const override { return inner_.overlap_depth(); }
  std::byte* buffer(int32_t i, const BatchLayout& layout) override {
    return inner_.buffer(i, layout);
  }
  void launch(const BatchBuffer& batch) override {
    inner_.launch(batch);
    if (batch.header().batch_id != 2) return;
    gate_.wait_begun(1);
    expect(!inner_.ready(), "step 1 still runs when step 2 is launched");
    gate_.let_go(1000000);
  }
  void launch_sample(BatchId id, const LateMasks& late) override { inner_.launch_sample(id, late); }
  void collect(StepResult& result) override { inner_.collect(result); }

 private:
  Executor& inner_;
  GatedExecutor& gate_;
};

// Step 1 stays inside the worker until step 2 was scheduled and launched. Were schedule() to wait
// for the forward pass, this would never end.
void next_step_is_scheduled_before_this_one_ends() {
  sim::ScriptedExecutor device(small_device(0));
  GatedExecutor gate(device);
  WorkerExecutor worker(gate, 1);
  Probe probe(worker, gate);
  EngineLoop loop(small_config(), probe);
  ReqPtr req = make_req("a", 5, 6, 1);
  req->params.ignore_eos = true;
  loop.add(std::move(req));
  while (loop.has_unfinished()) loop.turn();
  const std::vector<StepTrace> all = loop.trace(100);
  expect(all.size() >= 2, "several steps are traced");
  expect(all[1].in_flight == 1, "step 2 was launched with step 1 in flight");
  expect(all[1].began < all[0].committed, "step 2 was scheduled before step 1 ended");
}

// stop() may interrupt between the loop's look at its flag and its turn, whose drain then comes
// before its sleep: once that sleep had no end.
void an_interrupt_outlives_a_drain() {
  Inbox<int> inbox;
  std::vector<int> out;
  inbox.interrupt();
  inbox.drain(out);
  inbox.sleep(-1);
  inbox.push(7);
  inbox.sleep(-1);
  inbox.drain(out);
  expect(out.size() == 1, "a message ends the next sleep and is there");
}

}  // namespace
}  // namespace stoker::test

int main() {
  stoker::test::an_interrupt_outlives_a_drain();
  stoker::test::next_step_is_scheduled_before_this_one_ends();
  stoker::test::callers_and_consumer();
  stoker::test::stop_and_go_on();
  std::puts("loop_threads: ok");
  return 0;
}
