// stoker._core: everything native that needs no GPU. A table of contents, no logic.
#include <pybind11/pybind11.h>

#include "bind/attention_plan.h"

namespace py = pybind11;

namespace stoker {
void register_cpu_ops(py::module_& core);
void register_sched(py::module_& core);
void register_loop(py::module_& core);
void register_sim(py::module_& core);
}  // namespace stoker

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() =
      "Stoker's native core: scheduler, engine loop, simulator and CPU ops. Links neither torch "
      "nor CUDA.";
  stoker::register_attention_plan(m);
  stoker::register_cpu_ops(m);
  stoker::register_sched(m);
  stoker::register_loop(m);
  stoker::register_sim(m);
}
