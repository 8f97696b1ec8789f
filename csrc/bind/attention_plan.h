// The planner of attention work, for whoever has no scheduler in front: tests, benchmarks, single
// ops.
#pragma once

#include <pybind11/pybind11.h>

namespace stoker {

void register_attention_plan(pybind11::module_& m);

}  // namespace stoker
