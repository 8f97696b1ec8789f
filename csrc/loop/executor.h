// The one interface between the engine loop and whatever runs a step: the model runner, the
// simulator, the scripted executor.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "sched/schedule_batch.h"
#include "sched/step_result.h"

namespace stoker {

// What was not known when a step was launched. The memory stays as it is until the step was
// collected.
struct LateMasks {
  std::span<const int32_t> mask_row;  // [outs]: row of `bits`, -1: none
  std::span<const int32_t> bits;      // [rows][words]
  int32_t words = 0;                  // a row: bit i % 32 of word i / 32 allows token i
};

// Called by the loop's thread only, in the order launch, launch_sample, ..., collect; batches are
// collected in the order of their launch. Nothing here may throw for what a step can suffer: that
// is StepResult's status.
class Executor {
 public:
  virtual ~Executor() = default;

  // How many steps may be in flight while the next one is scheduled: 0 = none ahead, 1 = overlap by
  // one.
  virtual int32_t overlap_depth() const = 0;

  // Memory for ring entry `index` of overlap_depth() + 2 buffers of layout.bytes(), zeroed, 64-byte
  // aligned, alive as long as the executor. Asked for once, before the first launch.
  virtual std::byte* buffer(int32_t index, const BatchLayout& layout) = 0;

  // Starts the step and returns before the device is done. The buffer stays untouched until the
  // step was collected.
  virtual void launch(const BatchBuffer& batch) = 0;

  // Hands over what was not known at launch (grammar masks), once every earlier step was collected.
  // Called once for each batch whose header has kBatchLate; for the others launch() samples too.
  virtual void launch_sample(BatchId batch_id, const LateMasks& late) = 0;

  // Waits for the oldest launched step and fills `result`.
  virtual void collect(StepResult& result) = 0;

  // True if collect() would return at once. The loop may ask; it never has to.
  virtual bool ready() { return false; }
};

}  // namespace stoker
