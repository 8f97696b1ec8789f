// What the other bindings need of the scheduler's: the Python face of one batch buffer.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "sched/schedule_batch.h"
#include "sched/step_result.h"

namespace stoker {

class Scheduler;

// One entry of a ring of buffers as Python sees it; made once, reused from step to step.
struct BatchView {
  BatchView(std::shared_ptr<const BatchLayout> batch_layout, std::byte* data,
            pybind11::object memory, std::weak_ptr<const Scheduler> of = {})
      : layout(std::move(batch_layout)),
        buffer(layout.get(), data),
        owner(std::move(memory)),
        scheduler(std::move(of)) {}

  std::shared_ptr<const BatchLayout> layout;
  BatchBuffer buffer;
  pybind11::object owner;                    // keeps the memory alive
  std::weak_ptr<const Scheduler> scheduler;  // for batch.reqs; may be empty
};

// numpy view of what the step uses of a section; no copy.
pybind11::array section_array(const BatchView& view, Section section);

void register_sched_req(pybind11::module_& m);
void register_sched_config(pybind11::module_& m);
void register_sched_batch(pybind11::module_& m);
void register_sched_results(pybind11::module_& m);
void register_scheduler(pybind11::module_& m);
void register_sched_stager(pybind11::module_& m);

}  // namespace stoker
