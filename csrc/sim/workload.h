// What comes to the simulated engines: lengths, times and shared prefixes. Prompts are made of
// hash ids when they are needed, so that a trace of a hundred million tokens costs its ids only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/ids.h"
#include "sched/req.h"

namespace stoker::sim {

// One entry a req in each array, in the order of arrival.
struct Workload {
  // Open: when each comes. Closed: how long each user thinks before sending it.
  std::vector<TimeNs> times;
  std::vector<int32_t> prompt_lens;
  std::vector<int32_t> answer_lens;  // tokens that the answer will have
  std::vector<int32_t> max_tokens;   // tokens that the req asks for at most: >= answer_lens
  // Req i's prompt is the blocks hash_ids[hash_indptr[i]], ...: `hash_block` tokens each, equal ids
  // have equal tokens. What they do not cover (all, where hash_indptr is empty) is the req's own.
  std::vector<int64_t> hash_indptr, hash_ids;
  int32_t hash_block = 512;
  std::vector<int64_t> sessions;  // who talks; empty: nobody is known
  int32_t users = 0;              // > 0: a closed loop of so many; the next req waits for an answer
  int32_t vocab_size = 1 << 17;

  size_t size() const { return times.size(); }
  // Throws InvalidArgument where the arrays do not fit together.
  void check_shape() const;
  // Whether some answer ends before its max_tokens do, so that a token has to end it.
  bool ends_early() const;

  void prompt(size_t i, std::vector<Token>& out) const;
  // The req itself, named after its number; its prompt is left empty if `lengths_only`.
  ReqPtr req(size_t i, bool lengths_only = false) const;
};

}  // namespace stoker::sim
