// A Recording as Python's own objects.
#pragma once

#include <pybind11/pybind11.h>

#include "loop/step_recorder.h"

namespace stoker {

pybind11::dict trace_entry(const StepTrace& trace);
pybind11::dict as_dict(const Recording& recording);

}  // namespace stoker
