// An executor's half of the batch buffer, on the host: which captured graphs a step can replay, and
// the padding that makes what lies between the step and the graphs' sizes harmless.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sched/schedule_batch.h"

namespace stoker {

// Lies before the batch buffer, on the host and on the device. As many table changes as a decode
// step has lie in it, so that they need no copy of their own.
struct StepFront {
  static constexpr int32_t kInlineChanges = 252;

  int32_t num_table_changes, num_seat_changes;
  int64_t result;  // where the device puts the tokens it samples: an address of the host's memory
  int32_t changes_inline;  // 0: the table changes are in their section
  int32_t padding[11];
  TableChange changes[kInlineChanges];
};
inline constexpr int32_t kStepFrontBytes = 4096;
static_assert(sizeof(StepFront) == kStepFrontBytes);

// Sizes of the captured graphs, rising. Empty: none.
struct StepBuckets {
  std::vector<int32_t> decode;  // rows of steps that only decode
  std::vector<int32_t> mixed;   // tokens of steps with chunks
  std::vector<int32_t> heads;   // output rows
};

enum class StepGraph : int32_t { none, decode, mixed };

struct ByteRange {
  int64_t begin = 0, size = 0;  // from the front's begin
};

struct StagedStep {
  bool simple = false;  // the graphs do all of it, and nothing but tokens comes back
  StepGraph graph = StepGraph::none;
  int32_t tokens = 0;  // that the graph computes; without one, the step's own
  int32_t outs = 0;    // rows of the head's graph; 0: none
  // What must go to the device: everything up to the work lists, and the changes.
  ByteRange body, table_changes, seat_changes;
};

// What the executor keeps of each seat, in arrays that it owns.
struct SeatMirror {
  int32_t* tables;  // [groups][seats][width]
  int64_t num_seats, width;
  int32_t* num_logprobs;         // [seats], -1: none
  int32_t* num_prompt_logprobs;  // [seats]
  uint8_t* has_penalties;        // [seats]
};

class StepStager {
 public:
  StepStager(const BatchLayout& layout, StepBuckets buckets, const SeatMirror& seats);

  // `memory` holds a front and a batch buffer that the scheduler has written. Follows the step's
  // changes in the mirror, pads, and fills the front. Of table changes that name an entry twice,
  // each gets the last one's block, so that they may be applied in any order.
  StagedStep stage(std::byte* memory, int64_t result);

 private:
  void follow_changes(const BatchBuffer& batch);
  bool is_simple(const BatchBuffer& batch) const;
  void pad(const BatchBuffer& batch, int32_t tokens, int32_t outs) const;

  BatchLayout layout_;
  StepBuckets buckets_;
  SeatMirror seats_;
};

}  // namespace stoker
