// An executor written in Python, called by the loop with the GIL held and at no other time; but for
// the steps that captured graphs do from end to end, which go out and come back without Python.
#pragma once

#include <deque>
#include <exception>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>

#include "bind/stager_ring.h"
#include "bind/step_calls.h"
#include "loop/executor.h"

namespace stoker {

// Duck-typed: `overlap_depth`, `buffers(layout, n)`, `launch(index)`, `launch_sample(batch_id,
// mask_row, masks)`, `collect(result)`; see python/stoker/_core/loop.pyi. An exception from launch
// or collect fails that step; one with a true attribute `fatal` ends the engine. What is no
// Exception (KeyboardInterrupt, SystemExit) is kept and raised where Python drives the loop.
//
// One that has `native_steps()` gives (StepStager, capsule of StepCalls), or None. Then steps are
// staged and, where they are simple, launched and collected here: neither waits for the GIL, nor
// touches an interpreter's memory, which the device's time has cooled down. The others are its
// `launch_parts(index, *staged)` and `collect`. While its `transfers_under_way` is true,
// `add_transfers(result)` is asked at every collect.
class PythonExecutor final : public Executor {
 public:
  // `min_depth`: what a worker thread around it makes of its overlap_depth, for the number of
  // buffers.
  PythonExecutor(pybind11::object executor, int32_t min_depth);
  ~PythonExecutor() override;

  int32_t overlap_depth() const override { return overlap_depth_; }
  std::byte* buffer(int32_t index, const BatchLayout& layout) override;
  void launch(const BatchBuffer& batch) override;
  void launch_sample(BatchId batch_id, const LateMasks& late) override;
  void collect(StepResult& result) override;

  // Raises what was kept, once. With the GIL.
  void raise_kept();

 private:
  struct Launched {
    BatchId batch_id;
    bool failed;  // launch() raised: collect() is not asked
    bool fatal;
    std::string message;
    int32_t index;
    int32_t native_outs;  // -1: Python launched it
  };

  // Takes the error that is being handled apart; keeps it where it must come out again.
  void note(pybind11::error_already_set& error, std::string& message, bool& fatal);

  bool launch_native(const BatchBuffer& batch, int32_t index, StagedStep& staged);
  void collect_native(const Launched& launched, StepResult& result);

  pybind11::object executor_;
  pybind11::object launch_, collect_, launch_parts_, native_;
  StagerRing* stager_ = nullptr;      // of native_; nullptr: all goes by Python
  const StepCalls* calls_ = nullptr;  // likewise
  bool transfers_under_way_ = false;
  int32_t overlap_depth_;
  int32_t num_buffers_;
  std::vector<pybind11::buffer_info> buffers_;
  std::deque<Launched> launched_;
  std::exception_ptr kept_;
};

}  // namespace stoker
