// stoker._core.sched: the scheduler as a library. A table of contents.
#include "bind/sched.h"

namespace stoker {

void register_sched(pybind11::module_& core) {
  pybind11::module_ m =
      core.def_submodule("sched", "The scheduler: decisions only, no tensor, thread or clock.");
  register_sched_req(m);
  register_sched_config(m);
  register_sched_batch(m);
  register_sched_results(m);
  register_scheduler(m);
  register_sched_stager(m);
}

}  // namespace stoker
