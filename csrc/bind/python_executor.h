// An executor written in Python, called by the loop with the GIL held and at no other time.
#pragma once

#include <deque>
#include <exception>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>

#include "loop/executor.h"

namespace stoker {

// Duck-typed: `overlap_depth`, `buffers(layout, n)`, `launch(index)`, `launch_sample(batch_id,
// mask_row, masks)`, `collect(result)`; see python/stoker/_core/loop.pyi. An exception from launch
// or collect fails that step; one with a true attribute `fatal` ends the engine. What is no
// Exception (KeyboardInterrupt, SystemExit) is kept and raised where Python drives the loop.
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
  };

  // Takes the error that is being handled apart; keeps it where it must come out again.
  void note(pybind11::error_already_set& error, std::string& message, bool& fatal);

  pybind11::object executor_;
  pybind11::object launch_, collect_;
  int32_t overlap_depth_;
  int32_t num_buffers_;
  std::vector<pybind11::buffer_info> buffers_;
  std::deque<Launched> launched_;
  std::exception_ptr kept_;
};

}  // namespace stoker
