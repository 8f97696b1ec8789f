// How much may enter a step: the estimate of what running reqs are still going to need, and the
// verdict on one candidate.
#pragma once

#include <array>
#include <cstdint>
#include <variant>

#include "base/ids.h"
#include "sched/config.h"
#include "sched/req.h"

namespace stoker {

// Candidates looked at in one step, where some are passed over.
inline constexpr int32_t kLooksPerStep = 128;

// No more output tokens than this are reserved for one req. (SGLang's clip.)
inline constexpr int32_t kClippedOutput = 4096;

// The share of the declared remaining output that is expected to be produced. Starts cautious,
// decays while nothing goes wrong, jumps up after a preemption. (SGLang's new_token_ratio.)
class NewTokenRatio {
 public:
  explicit NewTokenRatio(double conservativeness);
  double value() const { return value_ * share(); }
  // A req ended by itself after `produced` of `declared` output tokens: what declarations are
  // worth.
  void observe(double produced, double declared);
  void decay();  // after a step without preemption
  void preempted(double generated, double declared, int32_t survivors);
  void reset() { value_ = initial_; }  // when idle

 private:
  double share() const;

  double produced_ = 0, declared_ = 0;  // of reqs that ended, older ones fading
  int32_t observed_ = 0;
  double initial_, least_, decay_, value_;
};

// The step's scratch copy of what is left. A candidate is judged on it; only an accepted one
// changes anything.
struct Ledger {
  int32_t tokens = 0;      // of the token budget
  int32_t background = 0;  // prefill tokens for those that urgent reqs outrank; see prefill_limit()
  int32_t rows = 0;
  int32_t seats = 0;
  int32_t outs = 0;                               // output rows of the buffer
  int32_t table_changes = 0;                      // of the buffer
  int32_t seat_words = 0;                         // of the buffer
  int32_t transfers = 0;                          // of the buffer
  std::array<int32_t, kMaxKVGroups> available{};  // blocks that can be handed out now
  std::array<int64_t, kMaxKVGroups> promised{};   // that prompts under way will still take
  std::array<double, kMaxKVGroups> reserve{};     // expected growth of the running reqs, in blocks
};

struct Admit {
  int32_t matched_blocks = 0;
  int32_t num_tokens = 0;  // the first chunk
};
using Verdict = std::variant<Admit, WaitReason>;

}  // namespace stoker
