// Running an event log again, and renumbering what is private in one.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <unordered_map>

#include "sched/event_codec.h"
#include "sched/event_log.h"
#include "sched/scheduler.h"

namespace stoker {

std::string_view event_log_magic();

namespace {

constexpr TimeNs kMostTime = TimeNs{1} << 61;  // a century; sums of two stay in range

struct CommitRecord {
  StepResult result;
  TimeNs now = 0;
  template <typename Codec>
  void describe(Codec& c) {
    c.field(result.batch_id);
    c.field(result.status);
    c.field(result.message);
    c.field(result.row_indptr);
    c.field(result.token_ids);
    c.field(result.row_status);
    c.field(result.finished_transfers);
    c.field(now);
  }
};

SchedulerConfig read_config(Decoder& c, int64_t most) {
  SchedulerConfig config;
  describe_config(c, config);
  uint32_t groups = 0;
  c.field(groups);
  if (groups < 1 || groups > static_cast<uint32_t>(kMaxKVGroups))
    throw InvalidArgument("event log: impossible KV groups");
  for (uint32_t g = 0; g < groups; ++g) {
    KVGroup group;
    describe_group(c, group);
    if (group.kind < KVKind::full || group.kind > KVKind::state || group.block_size < 1 ||
        group.num_blocks < 1 || group.num_host_blocks < 0 ||
        int64_t{group.num_host_blocks} * group.block_size > most || group.bytes_per_block < 0 ||
        int64_t{group.num_blocks} * group.block_size > most || group.window < 0 ||
        group.window > (1 << 22))
      throw InvalidArgument("event log: an impossible KV pool");
    config.kv_groups.push_back(group);
  }
  const auto in = [](auto value, int last) {
    return static_cast<int>(value) >= 0 && static_cast<int>(value) <= last;
  };
  if (!in(config.batching, 2) || !in(config.schedule_policy, 10) || !in(config.admission, 3) ||
      !in(config.head_of_line, 2) || !in(config.preemption_victim, 3) ||
      !in(config.preemption, 2) || !in(config.prefix_eviction, 3) || !in(config.prefill_split, 1) ||
      config.max_num_seqs > std::min<int64_t>(most, 1 << 16) ||
      config.max_num_batched_tokens > std::min<int64_t>(most, 1 << 20) ||
      config.max_model_len > std::min<int64_t>(most, 1 << 22)) {
    throw InvalidArgument("event log: an impossible configuration");
  }
  return config;
}

Decoder open(std::string_view log) {
  const std::string_view magic = event_log_magic();
  if (log.substr(0, magic.size()) != magic)
    throw InvalidArgument("this is no event log of stoker's");
  return Decoder(log.substr(magic.size()));
}

// Consistent small numbers in order of appearance.
class Renumbering {
 public:
  Token token(Token t) {
    if (t < 0) return t;
    return tokens_.try_emplace(t, static_cast<Token>(tokens_.size())).first->second;
  }
  std::string word(const std::string& text, char kind) {
    if (text.empty()) return text;
    const auto [it, fresh] = words_.try_emplace(kind + text, words_.size());
    return kind + std::to_string(it->second);
  }
  std::string rid(const std::string& text) {
    const size_t slash = text.rfind('/');  // children keep their number
    if (slash != std::string::npos && words_.contains('r' + text.substr(0, slash)) &&
        !words_.contains('r' + text)) {
      return word(text.substr(0, slash), 'r') + text.substr(slash);
    }
    return word(text, 'r');
  }

 private:
  std::unordered_map<Token, Token> tokens_;
  std::unordered_map<std::string, size_t> words_;
};

}  // namespace

ReplayReport replay(std::string_view log, const ReplayOptions& options) {
  Decoder c = open(log);
  Scheduler scheduler(read_config(c, options.most));
  const auto time = [&] {
    TimeNs now = 0;
    c.field(now);
    if (now < -kMostTime || now > kMostTime) throw InvalidArgument("event log: an impossible time");
    return now;
  };
  const BatchLayout& layout = scheduler.layout();
  const size_t bytes = (layout.bytes() + 63) / 64 * 64;
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(64, bytes)), &std::free);
  if (!memory) throw std::bad_alloc();
  const BatchBuffer buffer(&layout, memory.get());
  ReplayReport report;
  while (!c.at_end()) {
    EventKind kind{};
    c.field(kind);
    ++report.num_events;
    TimeNs now = 0;
    std::string text;
    switch (kind) {
      case EventKind::add: {
        auto req = std::make_shared<Req>();
        now = time();
        describe_req(c, *req);
        req->prompt_len = req->known();
        scheduler.add(req, now);
        break;
      }
      case EventKind::abort:
        c.field(text);
        scheduler.abort(text, time());
        break;
      case EventKind::fail: {
        std::string why;
        c.field(text);
        c.field(why);
        scheduler.fail(text, why, time());
        break;
      }
      case EventKind::grammar_ready:
        c.field(text);
        scheduler.grammar_ready(text);
        break;
      case EventKind::schedule: {
        BatchDigest logged;
        now = time();
        c.field(logged.decisions);
        c.field(logged.bytes);
        const bool any = scheduler.schedule(now, buffer);
        BatchDigest made = any ? digest(buffer) : BatchDigest{};
        if (any && logged.bytes == 0) {
          made.bytes = 0;
          report.redacted = true;
        }
        report.num_steps += any;
        if (made != logged && report.first_difference == 0) {
          report.first_difference = any ? buffer.header().batch_id : report.num_steps + 1;
          report.what = made.decisions != logged.decisions ? "other decisions"
                                                           : "the same rows with other contents";
        }
        break;
      }
      case EventKind::commit: {
        CommitRecord record;
        record.describe(c);
        if (record.now < -kMostTime || record.now > kMostTime ||
            record.result.status < StepStatus::ok || record.result.status > StepStatus::fatal)
          throw InvalidArgument("event log: an impossible result");
        scheduler.commit(record.result, record.now);
        break;
      }
      case EventKind::policy_key: {
        double key = 0;
        c.field(text);
        c.field(key);
        scheduler.set_policy_key(text, key);
        break;
      }
      case EventKind::pause: {
        int32_t how = 0;
        c.field(how);
        if (how < 0 || how > 2) throw InvalidArgument("event log: an impossible pause");
        scheduler.pause(static_cast<Scheduler::Pause>(how));
        break;
      }
      case EventKind::flush:
        scheduler.flush_cache();
        break;
      case EventKind::take_events:
        scheduler.take_events();
        break;
      case EventKind::pin: {
        std::vector<Token> tokens;
        c.field(tokens);
        c.field(text);
        scheduler.pin_prefix(tokens, text);
        break;
      }
      case EventKind::unpin: {
        int64_t pin = 0;
        c.field(pin);
        scheduler.unpin_prefix(pin);
        break;
      }
      case EventKind::rates: {
        double ns_per_token = 0, ns_per_byte = 0;
        c.field(ns_per_token);
        c.field(ns_per_byte);
        scheduler.set_rates(ns_per_token, ns_per_byte);
        break;
      }
      default:
        throw InvalidArgument("event log: a record of unknown kind");
    }
    if (options.check) scheduler.check_integrity();
  }
  return report;
}

std::string redact(std::string_view log) {
  Decoder c = open(log);
  SchedulerConfig config = read_config(c, ReplayOptions{}.most);
  Renumbering numbers;
  for (Token& token : config.eos_token_ids) token = numbers.token(token);
  EventLog out(config);
  while (!c.at_end()) {
    EventKind kind{};
    c.field(kind);
    TimeNs now = 0;
    std::string text;
    Encoder e(out.bytes_);
    switch (kind) {
      case EventKind::add: {
        Req req;
        c.field(now);
        describe_req(c, req);
        for (Token& token : req.tokens) token = numbers.token(token);
        for (Token& token : req.params.stop_token_ids) token = numbers.token(token);
        for (auto& [token, bias] : req.params.logit_bias) token = numbers.token(token);
        req.rid = numbers.rid(req.rid);
        req.cache_salt = numbers.word(req.cache_salt, 's');
        req.tenant = numbers.word(req.tenant, 't');
        out.add(req, now);
        break;
      }
      case EventKind::abort:
        c.field(text);
        c.field(now);
        out.abort(numbers.rid(text), now);
        break;
      case EventKind::fail: {
        std::string why;
        c.field(text);
        c.field(why);
        c.field(now);
        out.fail(numbers.rid(text), {}, now);
        break;
      }
      case EventKind::grammar_ready:
        c.field(text);
        out.grammar_ready(numbers.rid(text));
        break;
      case EventKind::schedule: {
        BatchDigest logged;
        c.field(now);
        c.field(logged.decisions);
        c.field(logged.bytes);
        e.field(kind);
        e.field(now);
        e.field(logged.decisions);
        e.field(uint64_t{0});
        break;
      }
      case EventKind::commit: {
        CommitRecord record;
        record.describe(c);
        for (Token& token : record.result.token_ids) token = numbers.token(token);
        record.result.message.clear();
        e.field(kind);
        record.describe(e);
        break;
      }
      case EventKind::policy_key: {
        double key = 0;
        c.field(text);
        c.field(key);
        out.policy_key(numbers.rid(text), key);
        break;
      }
      case EventKind::pause: {
        int32_t how = 0;
        c.field(how);
        out.pause(how);
        break;
      }
      case EventKind::flush:
        out.flush();
        break;
      case EventKind::take_events:
        out.take_events();
        break;
      case EventKind::pin: {
        std::vector<Token> tokens;
        c.field(tokens);
        c.field(text);
        for (Token& token : tokens) token = numbers.token(token);
        out.pin(tokens, numbers.word(text, 's'));
        break;
      }
      case EventKind::unpin: {
        int64_t pin = 0;
        c.field(pin);
        out.unpin(pin);
        break;
      }
      case EventKind::rates: {
        double ns_per_token = 0, ns_per_byte = 0;
        c.field(ns_per_token);
        c.field(ns_per_byte);
        out.rates(ns_per_token, ns_per_byte);
        break;
      }
      default:
        throw InvalidArgument("event log: a record of unknown kind");
    }
  }
  return out.bytes();
}

}  // namespace stoker
