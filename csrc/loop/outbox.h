// What the loop has to say to whoever asked: new tokens and ends as flat arrays, never an object a
// token.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "base/ids.h"

namespace stoker {

// Names a req towards the caller: given by EngineLoop::add, never used twice. Child i of n has key
// + i.
using ReqKey = int64_t;

// News since the last time. Tokens of one key are in order, and before its end.
struct Outputs {
  std::vector<ReqKey> token_keys;  // [tokens]
  std::vector<Token> tokens;       // [tokens]
  // Where a req asked for logprobs: token i's candidates are [logprob_indptr[i], logprob_indptr[i +
  // 1]), the sampled one first. Empty: none of these tokens has any.
  std::vector<int32_t> logprob_indptr;  // [tokens + 1]
  std::vector<Token> logprob_ids;
  std::vector<float> logprobs;
  std::vector<int32_t> logprob_ranks;  // [tokens]: of the sampled token, from 1; 0: not computed

  std::vector<ReqKey> score_keys;  // [scores]: prompt tokens that were scored
  std::vector<int32_t> score_positions;
  std::vector<float> scores;
  // Their candidates, as those of tokens: the prompt's own token first. Empty: none has any.
  std::vector<int32_t> score_logprob_indptr;  // [scores + 1]
  std::vector<Token> score_logprob_ids;
  std::vector<float> score_logprobs;
  std::vector<int32_t> score_ranks;  // [scores]; 0: not computed

  std::vector<ReqKey> pooled_keys;  // [pooled]: their vectors are pooled_width entries of `pooled`
  std::vector<float> pooled;
  int32_t pooled_width = 0;

  std::vector<ReqKey> end_keys;          // [ends]
  std::vector<int32_t> finish_reasons;   // [ends]: FinishReason
  std::vector<int32_t> stop_tokens;      // [ends]: the token that ended it, -1: none
  std::vector<int32_t> num_tokens;       // [ends]: tokens of the whole answer
  std::vector<int32_t> cached_tokens;    // [ends]: of the prompt, in the cache at first admission
  std::vector<int32_t> num_preemptions;  // [ends]
  std::vector<TimeNs> arrival_times, first_scheduled_times, first_token_times, finished_times;
  std::vector<std::string> messages;  // [ends]: why, for an error

  bool empty() const {
    return tokens.empty() && end_keys.empty() && score_keys.empty() && pooled_keys.empty();
  }
  void clear();
};

// Handed from the loop's thread to one consumer. The loop appends under the lock once a step; the
// consumer swaps.
class Outbox {
 public:
  // Runs `append(Outputs&)` under the lock and wakes the consumer if there is news.
  template <typename Append>
  void publish(Append&& append) {
    bool news = false;
    {
      const std::lock_guard lock(mutex_);
      append(held_);
      news = !held_.empty();
    }
    if (news) changed_.notify_one();
  }

  // What came since the last call, into `out` (cleared first; its memory goes round). Never waits.
  void poll(Outputs& out);
  // The same, but waits up to `timeout_ns` for news (negative: without end) or for interrupt().
  // True if there is news.
  bool wait(Outputs& out, TimeNs timeout_ns);
  // Makes a wait() of now return, and every later one, until resume(): the loop has ended.
  void close();
  void open();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Outputs held_;
  bool closed_ = false;
};

}  // namespace stoker
