// What an engine's step does on the device beside the model: it applies the host's changes to block
// tables and seats before its rows run, and hands out the sampled tokens at its end.
#pragma once

#include <cstdint>

#include "cuda/ops.h"

namespace stoker::cuda {

struct TableChange {
  int32_t group, seat, index, block;
};
// As sched's StepFront (csrc/bind checks it).
struct StepFront {
  int32_t num_table_changes, num_seat_changes;
  int32_t* result;         // on the host, pinned; nullptr: nobody asks
  int32_t changes_inline;  // 0: the table changes are in their section
  int32_t padding[11];
  TableChange changes[252];
};
inline constexpr int32_t kSeatWords = 20;  // int32 words of a seat's record, the seat first

struct BeginStepParams {
  const StepFront* front;
  const TableChange* table_changes;  // where they are not in the front
  const int32_t* seat_changes;       // [n, kSeatWords]
  int32_t* tables;                   // [groups, seats, width]
  int32_t* records;                  // [seats, kSeatWords]
  int64_t group_stride, seat_stride;
};
// How many changes there are stands in the front, so that a captured graph serves any step.
cudaError_t begin_step(const BeginStepParams& p, const LaunchOptions& how);

struct EndStepParams {
  const StepFront* front;
  const int32_t* sampled;  // [count], -1: the row failed
  const int32_t* seats;    // [count]
  int32_t* last_token;     // [seats]: gets a token that can be embedded, whatever was sampled
  int64_t count;
};
cudaError_t end_step(const EndStepParams& p, const LaunchOptions& how);

}  // namespace stoker::cuda
