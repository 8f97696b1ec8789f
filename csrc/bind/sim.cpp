// stoker._core.sim: executors that only pretend, and the simulator.
#include "sim/scripted_executor.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace stoker {

namespace py = pybind11;
using sim::FakeGroup;
using sim::ScriptedConfig;
using sim::ScriptedExecutor;

void register_simulation(py::module_& m);  // sim_simulation.cpp

namespace {

std::unique_ptr<ScriptedExecutor> make_scripted(std::vector<FakeGroup> groups,
                                                int32_t overlap_depth, int32_t vocab_size,
                                                Token eos, uint32_t eos_per_mille,
                                                uint32_t row_failures_per_million,
                                                uint32_t eager_percent, int32_t max_transfer_delay,
                                                std::vector<BatchId> failing_steps,
                                                BatchId fatal_step, bool read_all_rows) {
  ScriptedConfig config;
  config.groups = std::move(groups);
  config.overlap_depth = overlap_depth;
  config.rule = {vocab_size, eos, eos_per_mille};
  config.row_failures_per_million = row_failures_per_million;
  config.eager_percent = eager_percent;
  config.max_transfer_delay = max_transfer_delay;
  config.failing_steps = std::move(failing_steps);
  config.fatal_step = fatal_step;
  config.read_all_rows = read_all_rows;
  return std::make_unique<ScriptedExecutor>(std::move(config));
}

}  // namespace

void register_sim(py::module_& core) {
  py::module_ m = core.def_submodule("sim", "Executors that only pretend.");
  py::class_<FakeGroup>(m, "FakeGroup")
      .def(py::init(
               [](int32_t block_size, int32_t num_blocks, int32_t num_host_blocks, int32_t window) {
                 return FakeGroup{block_size, num_blocks, num_host_blocks, window};
               }),
           py::kw_only(), py::arg("block_size"), py::arg("num_blocks"),
           py::arg("num_host_blocks") = 0, py::arg("window") = 0)
      .def_readonly("block_size", &FakeGroup::block_size)
      .def_readonly("num_blocks", &FakeGroup::num_blocks)
      .def_readonly("num_host_blocks", &FakeGroup::num_host_blocks)
      .def_readonly("window", &FakeGroup::window);

  py::class_<ScriptedExecutor, Executor>(m, "ScriptedExecutor")
      .def(py::init(&make_scripted), py::kw_only(), py::arg("groups"), py::arg("overlap_depth") = 0,
           py::arg("vocab_size") = 100, py::arg("eos") = -1, py::arg("eos_per_mille") = 0,
           py::arg("row_failures_per_million") = 0, py::arg("eager_percent") = 0,
           py::arg("max_transfer_delay") = 0, py::arg("failing_steps") = std::vector<BatchId>{},
           py::arg("fatal_step") = 0, py::arg("read_all_rows") = true)
      .def(
          "poison",
          [](ScriptedExecutor& self, GroupId group, BlockId block, bool host) {
            self.poison(group, host ? Tier::host : Tier::device, block);
          },
          py::arg("group"), py::arg("block"), py::arg("host") = false)
      .def_property_readonly("violations",
                             [](const ScriptedExecutor& self) {
                               std::vector<py::tuple> out;
                               for (const auto& v : self.violations()) {
                                 out.push_back(py::make_tuple(v.check, v.message, v.batch_id));
                               }
                               return out;
                             })
      .def_property_readonly("num_violations", &ScriptedExecutor::num_violations)
      .def_property_readonly("num_steps", &ScriptedExecutor::num_steps)
      .def_property_readonly("num_tokens", &ScriptedExecutor::num_tokens)
      .def_property_readonly("device_time_ns", &ScriptedExecutor::device_time);
  register_simulation(m);
}

}  // namespace stoker
