// How one req stands, for people: what a page or an operator is shown.
#pragma once

#include <cstdint>
#include <string>

#include "loop/outbox.h"
#include "sched/req.h"

namespace stoker {

struct ReqLook {
  ReqKey key;
  std::string rid;  // of child i of n: `rid/i`
  std::string tenant;
  ReqState state;
  bool prefilling;      // running, and its prompt (or what is recomputed) is not done yet
  WaitReason wait;      // code none: it does not wait
  int32_t place;        // in the waiting queue, from 0; -1: not in it
  int32_t prompt_len;   // tokens
  int32_t num_outputs;  // tokens committed so far
  int32_t computed;     // tokens whose KV is written, or will be by the steps in flight
  int32_t length_limit;
  int32_t num_blocks;  // of KV group 0
  double priority;
  ReqAccount account;
};

}  // namespace stoker
