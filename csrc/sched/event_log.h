// What came in and what was decided, as bytes: enough to run the scheduler again and reach the same
// batches, and what a bug report carries. The scheduler appends to a log that its owner holds;
// nothing is written while there is none.
//
// Layout: magic and version, the SchedulerConfig, then records of one kind byte and its fields,
// little-endian, strings and lists with a 32-bit length in front. Reading checks every length: a
// log may come from anywhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "sched/config.h"
#include "sched/req.h"
#include "sched/schedule_batch.h"
#include "sched/step_result.h"

namespace stoker {

enum class EventKind : uint8_t {
  add = 1,
  abort,
  schedule,
  commit,
  policy_key,
  pause,
  flush,
  pin,
  unpin,
  fail,
  grammar_ready,
  rates,
  take_events
};

class EventLog {
 public:
  explicit EventLog(const SchedulerConfig& config);

  void add(const Req& req, TimeNs now);
  void abort(std::string_view rid, TimeNs now);
  void fail(std::string_view rid, std::string_view why, TimeNs now);
  void grammar_ready(std::string_view rid);
  void schedule(TimeNs now, const BatchBuffer* batch);  // null: nothing was launched
  // The next schedule() allocates nothing.
  void make_room() {
    if (bytes_.capacity() - bytes_.size() < 64) bytes_.reserve(2 * bytes_.size() + 64);
  }
  void commit(BatchId id, StepStatus status, std::string_view message,
              std::span<const int32_t> row_indptr, std::span<const Token> tokens,
              std::span<const RowStatus> row_status, std::span<const Ticket> finished_transfers,
              TimeNs now);
  void take_events();  // between commits: handles of ended reqs may be given anew from then on
  void policy_key(std::string_view rid, double key);
  void pause(int32_t how);
  void flush();
  void pin(std::span<const Token> tokens, std::string_view salt);
  void unpin(int64_t pin);
  void rates(double ns_per_token, double ns_per_byte);

  const std::string& bytes() const { return bytes_; }
  // Forgets what was written so far: its owner has put it elsewhere.
  void clear() { bytes_.clear(); }

 private:
  friend std::string redact(std::string_view log);
  std::string bytes_;
};

// What a batch decides, without the tokens' values; and all of its bytes.
struct BatchDigest {
  uint64_t decisions = 0, bytes = 0;
  bool operator==(const BatchDigest&) const = default;
};
BatchDigest digest(const BatchBuffer& batch);

struct ReplayReport {
  int64_t num_events = 0, num_steps = 0;
  BatchId first_difference = 0;  // the first step that came out differently; 0: none did
  std::string what;
  bool redacted = false;  // only decisions could be compared: the tokens' values are not in it
};
struct ReplayOptions {
  bool check = false;  // Scheduler::check_integrity() after each event
  // A log that asks for more KV slots, seats or tokens than this is taken for broken.
  int64_t most = int64_t{1} << 26;
};
// Runs a log again. Safe on any bytes: throws InvalidArgument if it cannot be read, or holds what
// no run could have done.
ReplayReport replay(std::string_view log, const ReplayOptions& options = {});

// The same log with tokens, rids, salts and tenants renumbered consistently: it holds no text and
// replays the same.
std::string redact(std::string_view log);

}  // namespace stoker
