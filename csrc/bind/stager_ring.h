// A StepStager over a ring of the executor's buffers, as Python makes it and PythonExecutor uses
// it.
#pragma once

#include <pybind11/numpy.h>

#include <span>
#include <utility>
#include <vector>

#include "sched/step_stager.h"

namespace stoker {

// Keeps the arrays alive that the stager writes to.
class StagerRing {
 public:
  using Bytes = pybind11::array_t<uint8_t, pybind11::array::c_style>;
  using Ints = pybind11::array_t<int32_t, pybind11::array::c_style>;

  StagerRing(const BatchLayout& layout, StepBuckets buckets, Ints tables, Ints num_logprobs,
             Ints num_prompt_logprobs, Bytes has_penalties);

  void add(Bytes memory, int64_t result);
  size_t size() const { return ring_.size(); }
  StagedStep stage(size_t index) {
    Entry& entry = ring_.at(index);
    return stager_.stage(entry.data, entry.result);
  }
  // Where the device puts the tokens of this entry's step.
  std::span<const int32_t> tokens(size_t index, size_t count) const {
    return {reinterpret_cast<const int32_t*>(static_cast<uintptr_t>(ring_[index].result)), count};
  }

 private:
  struct Entry {
    Bytes memory;
    std::byte* data;
    int64_t result;
  };

  SeatMirror mirror(const BatchLayout& layout);

  size_t bytes_;
  Ints tables_, num_logprobs_, num_prompt_logprobs_;
  Bytes has_penalties_;
  StepStager stager_;
  std::vector<Entry> ring_;
};

}  // namespace stoker
