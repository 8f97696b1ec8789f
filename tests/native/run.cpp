// Runs a workload through the real scheduler and loop on the scripted executor and holds it to its
// promises.
#include <algorithm>
#include <set>
#include <stdexcept>
#include <thread>

#include "base/check.h"
#include "loop/worker_executor.h"
#include "short_memory.h"
#include "workload.h"

namespace stoker::test {

namespace {

// Time is the number of the turn.
class TurnClock final : public Clock {
 public:
  TimeNs now() override { return ++time_; }

 private:
  TimeNs time_ = 0;
};

struct Story {  // of one key
  const ReqSpec* spec = nullptr;
  ReqPtr req;
  int32_t child = 0;
  std::vector<Token> tokens;
  std::vector<float> scores;
  int32_t ends = 0;
  FinishReason reason = FinishReason::none;
  int32_t said_tokens = 0;
  int32_t cached_tokens = 0;
  std::string message;
  bool aborted = false;
  int64_t abort_turn = -1;
};

class Judge {
 public:
  Judge(const Workload& w, EngineLoop& loop, sim::ScriptedExecutor& executor)
      : w_(w), loop_(loop), executor_(executor) {}

  void problem(const std::string& what) {
    if (problems_.size() < 8) problems_.push_back(what);
  }
  bool clean() const { return problems_.empty(); }
  std::vector<std::string> take() { return std::move(problems_); }

  ReqPtr make(const ReqSpec& spec, size_t index) {
    auto req = std::make_shared<Req>();
    req->rid = "r" + std::to_string(index);
    req->tokens = spec.prompt;
    req->prompt_len = static_cast<int32_t>(spec.prompt.size());
    req->params = spec.params;
    req->cache_salt = spec.salt;
    req->priority = spec.priority;
    req->tenant = spec.tenant;
    req->policy_key = spec.policy_key;
    req->deadline_ttft = spec.deadline_ttft;
    req->deadline_tpot = spec.deadline_tpot;
    return req;
  }

  // Hands a req to the loop; its key, or -1 where the door refuses it.
  ReqKey try_add(const ReqPtr& req, const ReqSpec& spec) {
    try {
      return loop_.add(req, spec.stream);
    } catch (const InvalidArgument&) {
      return -1;
    }
  }

  void added(ReqKey key, const ReqSpec& spec, const ReqPtr& req) {
    if (key < 0) {
      if (may_enter(spec)) problem("door: " + req->rid + " can fit and was refused");
      return;
    }
    if (!may_enter(spec)) problem("door: " + req->rid + " can never fit and was taken");
    for (int32_t i = 0; i < std::max(spec.params.n, 1); ++i) {
      Story& s = stories_[key + i];
      s.spec = &spec;
      s.req = req;
      s.child = i;
    }
  }

  Story& story(ReqKey key) { return stories_[key]; }
  void aborted(ReqKey key, int64_t turn) {
    Story& s = stories_[key];
    s.aborted = true;
    if (s.ends == 0) s.abort_turn = turn;
  }
  // An abort is told with the next step that comes back, in whatever state the req is.
  void check_aborts(int64_t turn) {
    for (const auto& [key, s] : stories_) {
      if (s.ends == 0 && s.abort_turn >= 0 && turn > s.abort_turn + 4) {
        problem("slow abort: " + name_of(key) + " lives on");
      }
    }
  }

  void read(const Outputs& out) {
    for (size_t i = 0; i < out.tokens.size(); ++i) {
      const auto it = stories_.find(out.token_keys[i]);
      if (it == stories_.end()) {
        problem("unknown key: token for " + std::to_string(out.token_keys[i]));
        continue;
      }
      if (it->second.ends > 0) problem("token after the end: " + name_of(it->first));
      it->second.tokens.push_back(out.tokens[i]);
    }
    if (!out.logprob_indptr.empty() && (out.logprob_indptr.size() != out.tokens.size() + 1 ||
                                        out.logprob_ranks.size() != out.tokens.size())) {
      problem("logprobs: arrays do not match the tokens");
    }
    for (size_t i = 0; i < out.score_keys.size(); ++i) {
      Story& s = stories_[out.score_keys[i]];
      if (s.ends > 0) problem("score after the end: " + name_of(out.score_keys[i]));
      s.scores.push_back(out.scores[i]);
      if (out.score_positions[i] != static_cast<int32_t>(s.scores.size())) {
        problem("scores: " + name_of(out.score_keys[i]) + " has position " +
                std::to_string(out.score_positions[i]) + " where " +
                std::to_string(s.scores.size()) + " comes");
      }
    }
    for (size_t i = 0; i < out.end_keys.size(); ++i) {
      const auto it = stories_.find(out.end_keys[i]);
      if (it == stories_.end()) {
        problem("unknown key: end of " + std::to_string(out.end_keys[i]));
        continue;
      }
      Story& s = it->second;
      if (++s.ends > 1) problem("ended twice: " + name_of(it->first));
      s.reason = static_cast<FinishReason>(out.finish_reasons[i]);
      s.said_tokens = out.num_tokens[i];
      s.cached_tokens = out.cached_tokens[i];
      s.message = out.messages[i];
    }
  }

  // After each turn: nothing lost, nothing over its limit, and what is free is made unreadable.
  void check_turn() {
    Scheduler& scheduler = loop_.scheduler();
    try {
      scheduler.check_integrity();
    } catch (const std::exception& error) {
      problem(std::string("integrity: ") + error.what());
    }
    for (const sim::Violation& v : executor_.violations()) {
      problem(v.check + ":" + v.message + " in batch " + std::to_string(v.batch_id));
    }
    if (asked_while_deciding > 0) problem("memory: a plan asked for some while it was decided");
    if (loop_.num_stalls() > 0) problem("stall: reqs to run, nothing in flight, nothing launched");
    if (scheduler.num_running() > w_.config.max_num_seqs) problem("seats: more run than there are");
    for (GroupId g = 0; g < static_cast<GroupId>(w_.executor.groups.size()); ++g) {
      for (const BlockId b : scheduler.free_blocks(g)) executor_.poison(g, Tier::device, b);
      for (const BlockId b : scheduler.free_host_blocks(g)) executor_.poison(g, Tier::host, b);
    }
  }

  void check_end() {
    const bool fatal = !loop_.stats().failure.empty();
    if (fatal && executor_.num_steps() < w_.executor.fatal_step) {
      problem("failure: " + loop_.stats().failure);
    }
    if (fatal && w_.executor.fatal_step == 0) problem("failure: " + loop_.stats().failure);
    int64_t failed = 0;
    for (auto& [key, s] : stories_) {
      if (s.ends == 0) {
        problem("never ended: " + name_of(key));
        continue;
      }
      check_answer(key, s, fatal, failed);
    }
    if (failed > executor_.num_failed_rows()) {
      problem("failed beyond the step: " + std::to_string(failed) +
              " reqs ended with the error of " + std::to_string(executor_.num_failed_rows()) +
              " rows:" + failed_names_);
    }
    check_no_waste();
    if (fatal) return;
    if (loop_.has_unfinished()) problem("unfinished: all ended, the loop waits for more");
    const Scheduler& scheduler = loop_.scheduler();
    if (scheduler.num_running() + scheduler.num_waiting() > 0)
      problem("leftover: reqs after the end");
    for (GroupId g = 0; g < static_cast<GroupId>(w_.executor.groups.size()); ++g) {
      const BlockCounts c = scheduler.block_counts(g);
      if (c.used != 0 || c.draining != 0 || c.free + c.cached + 1 != c.total) {
        problem("leaked blocks: used " + std::to_string(c.used) + " draining " +
                std::to_string(c.draining) + " free " + std::to_string(c.free) + " cached " +
                std::to_string(c.cached) + " of " + std::to_string(c.total));
      }
      const BlockCounts h = scheduler.host_block_counts(g);
      if (h.used != 0 || h.draining != 0) {
        problem("leaked host blocks: used " + std::to_string(h.used) + " draining " +
                std::to_string(h.draining) + " of " + std::to_string(h.total));
      }
    }
  }

 private:
  std::string name_of(ReqKey key) {
    const Story& s = stories_[key];
    return (s.req ? s.req->rid : "?") + "/" + std::to_string(s.child);
  }

  // The door's answer, by the counts alone: the whole of it must fit the pool, one token the
  // model's length, and all siblings the seats.
  bool may_enter(const ReqSpec& spec) const {
    const auto prompt = static_cast<int64_t>(spec.prompt.size());
    for (const KVGroup& group : w_.config.kv_groups) {
      const auto blocks = [&](int64_t tokens) {
        return (tokens + group.block_size - 1) / group.block_size;
      };
      int64_t most = blocks(length_limit(w_, spec) - 1);
      if (group.kind == KVKind::window)
        most = std::min(most, blocks(group.window + w_.config.max_num_batched_tokens) + 1);
      if (most > group.num_blocks - 1) return false;
    }
    return !spec.prompt.empty() && spec.params.n <= w_.config.max_num_seqs &&
           prompt < max_model_len(w_);
  }

  // An end by length is known in time and a retracted req keeps the token in flight: where nothing
  // else ends a req, every token that was sampled was wanted.
  void check_no_waste() {
    int64_t wanted = 0;
    for (const auto& [key, s] : stories_) {
      if (s.reason != FinishReason::length) return;
      wanted += s.said_tokens;
    }
    if (executor_.num_sampled() != wanted) {
      problem("waste: " + std::to_string(executor_.num_sampled()) + " tokens were sampled, " +
              std::to_string(wanted) + " were wanted");
    }
  }

  // What a prefix cache may give a req at most: the blocks that it shares with another req of its
  // salt, and never its last token.
  void check_cached(ReqKey key, const Story& s) {
    const std::vector<Token>& prompt = s.spec->prompt;
    size_t most = 0;
    for (const auto& [other, o] : stories_) {
      if (other == key || o.spec->salt != s.spec->salt) continue;
      std::vector<Token> text = o.spec->prompt;
      text.insert(text.end(), o.tokens.begin(), o.tokens.end());
      size_t same = 0;
      while (same < std::min(text.size(), prompt.size()) && text[same] == prompt[same]) ++same;
      most = std::max(most, same);
    }
    most = std::min(most, prompt.size() - 1);
    if (s.cached_tokens > static_cast<int32_t>(most)) {
      problem("cached: " + name_of(key) + " found " + std::to_string(s.cached_tokens) +
              " tokens in the cache; others of its salt have " + std::to_string(most));
    }
  }

  void check_answer(ReqKey key, const Story& s, bool fatal, int64_t& failed) {
    const std::string who = name_of(key);
    if (s.said_tokens != static_cast<int32_t>(s.tokens.size())) {
      problem("count: " + who + " says " + std::to_string(s.said_tokens) + " tokens, sent " +
              std::to_string(s.tokens.size()));
    }
    check_cached(key, s);
    const Expected expected = expected_answer(w_, *s.spec, child_seed(*s.spec, s.child));
    const size_t n = s.tokens.size();
    const bool prefix = n <= expected.tokens.size() &&
                        std::equal(s.tokens.begin(), s.tokens.end(), expected.tokens.begin());
    if (!prefix) {
      size_t at = 0;
      while (at < std::min(n, expected.tokens.size()) && s.tokens[at] == expected.tokens[at]) ++at;
      problem("wrong tokens: " + who + " differs at output " + std::to_string(at) + " of " +
              std::to_string(expected.tokens.size()) + ", got " + std::to_string(n));
      return;
    }
    // Each position once, in order; all of them once there is a token.
    if ((n > 0 && s.scores.size() < expected.scores.size()) ||
        s.scores.size() > expected.scores.size() ||
        !std::equal(s.scores.begin(), s.scores.end(), expected.scores.begin())) {
      problem("scores: " + who + " got " + std::to_string(s.scores.size()) + " of " +
              std::to_string(expected.scores.size()) + ", or wrong ones");
    }
    if (s.reason == expected.reason && n == expected.tokens.size()) return;
    if (s.reason == FinishReason::abort && s.aborted) return;
    if (s.reason == FinishReason::error && fatal) return;
    if (s.reason == FinishReason::error && s.message.ends_with("as the script says")) {
      ++failed;
      failed_names_ += " " + who + " (" + s.message + ")";
      return;
    }
    problem("wrong end: " + who + " ended as " + stoker::name(s.reason) + " after " +
            std::to_string(n) + " tokens, not as " + stoker::name(expected.reason) + " after " +
            std::to_string(expected.tokens.size()) + " (" + s.message + ")");
  }

  const Workload& w_;
  EngineLoop& loop_;
  sim::ScriptedExecutor& executor_;
  std::map<ReqKey, Story> stories_;
  std::string failed_names_;
  std::vector<std::string> problems_;
};

// No workload may need more turns than this, whatever was preempted: past it, something waits for
// ever.
int64_t most_turns(const Workload& w) {
  int64_t tokens = 0;
  for (const ReqSpec& r : w.reqs) {
    tokens +=
        (static_cast<int64_t>(r.prompt.size()) + r.params.max_tokens) * std::max(r.params.n, 1);
  }
  return 1000 + 20 * tokens;
}

}  // namespace

namespace {

// One run. With `memory_is_short` a plan fails now and then and is made again; `events` is the log
// of what came in and was decided.
std::vector<std::string> run_once(const Workload& w, bool memory_is_short, std::string& events) {
  sim::ScriptedExecutor executor(w.executor);
  TurnClock clock;
  EngineLoop loop(w.config, executor, {}, &clock);
  EventLog log(loop.scheduler().config());
  if (w.failing_plans) loop.scheduler().log_to(&log);
  Random random(sim::mix(w.seed + 1));
  Judge judge(w, loop, executor);
  Outputs out;
  std::vector<ReqKey> keys(w.reqs.size(), -1);
  size_t to_come = w.reqs.size();
  const int64_t limit = most_turns(w);
  try {
    for (int64_t turn = 0; judge.clean(); ++turn) {
      for (size_t i = 0; i < w.reqs.size(); ++i) {
        const ReqSpec& spec = w.reqs[i];
        if (spec.arrival_turn == turn) {
          const ReqPtr req = judge.make(spec, i);
          keys[i] = judge.try_add(req, spec);
          judge.added(keys[i], spec, req);
          --to_come;
        }
        if (spec.abort_turn == turn && keys[i] >= 0) {
          // By rid all siblings, by key one of them.
          const bool whole = spec.params.n == 1 || turn % 2 == 0;
          if (whole) {
            loop.abort("r" + std::to_string(i));
          } else {
            loop.abort(keys[i] + spec.params.n - 1);
          }
          for (int32_t c = whole ? 0 : spec.params.n - 1; c < spec.params.n; ++c) {
            judge.aborted(keys[i] + c, turn);
          }
        }
      }
      ShortMemory& memory = short_memory();
      if (memory_is_short) {
        memory.fails_in = random.chance(70) ? random.between(0, 3) : -1;
        memory.failures = 1;
      }
      const bool busy = loop.turn();
      memory.fails_in = -1;
      loop.outbox().poll(out);
      judge.read(out);
      if (loop.stats().failure.empty()) judge.check_turn();
      judge.check_aborts(turn);
      if (!busy && to_come == 0) break;
      if (turn > limit + 300) judge.problem("waits for ever: " + std::to_string(turn) + " turns");
    }
  } catch (const std::exception& error) {
    judge.problem(std::string("thrown: ") + error.what());
  }
  if (judge.clean()) judge.check_end();
  events = log.bytes();
  return judge.take();
}

}  // namespace

std::vector<std::string> run_by_turns(const Workload& w) {
  std::string events;
  std::vector<std::string> problems = run_once(w, false, events);
  if (!w.failing_plans || !problems.empty()) return problems;
  // A plan that failed leaves no trace: what is decided then is decided as if it had not been
  // tried.
  std::string with_failures;
  problems = run_once(w, true, with_failures);
  if (events != with_failures) problems.push_back("failed plans: they change what is decided");
  if (const ReplayReport report = replay(with_failures); report.first_difference != 0)
    problems.push_back("failed plans: the log is replayed differently: step " +
                       std::to_string(report.first_difference) + ", " + report.what);
  return problems;
}

std::vector<std::string> run_on_threads(const Workload& workload) {
  Workload w = workload;
  const int32_t depth = w.executor.overlap_depth;
  w.executor.overlap_depth = 0;  // below the worker each step is alone
  sim::ScriptedExecutor executor(w.executor);
  WorkerExecutor worker(executor, depth);
  EngineLoop loop(w.config, worker);
  Judge judge(w, loop, executor);
  loop.run();
  std::vector<ReqKey> keys(w.reqs.size(), -1);
  std::vector<ReqPtr> reqs(w.reqs.size());
  const auto client = [&](size_t first) {
    for (size_t i = first; i < w.reqs.size(); i += 2) {
      reqs[i] = judge.make(w.reqs[i], i);
      keys[i] = judge.try_add(reqs[i], w.reqs[i]);
      if (w.reqs[i].abort_turn >= 0 && keys[i] >= 0) loop.abort("r" + std::to_string(i));
      if (i % 3 == 0) loop.stats();
      if (i % 5 == 0) loop.trace(4);
    }
  };
  std::thread one(client, 0), two(client, 1);
  Outputs out;
  std::vector<Outputs> heard;
  one.join();
  two.join();
  while (loop.has_unfinished()) {
    if (loop.outbox().wait(out, 1000000000)) heard.push_back(out);
  }
  loop.stop();
  worker.stop();  // after a fatal step it may still run what nobody collects
  loop.outbox().poll(out);
  heard.push_back(out);
  for (size_t i = 0; i < w.reqs.size(); ++i) {
    judge.added(keys[i], w.reqs[i], reqs[i]);
    if (w.reqs[i].abort_turn < 0 || keys[i] < 0) continue;
    for (int32_t c = 0; c < w.reqs[i].params.n; ++c) judge.story(keys[i] + c).aborted = true;
  }
  for (const Outputs& o : heard) judge.read(o);
  if (loop.stats().failure.empty()) judge.check_turn();
  judge.check_end();
  return judge.take();
}

}  // namespace stoker::test
