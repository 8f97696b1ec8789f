// stoker._core.sim, second part: cost model, workload, fleet and the simulation of them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bind/keywords.h"
#include "bind/loop_recording.h"
#include "sim/simulation.h"

namespace stoker {

namespace py = pybind11;
using sim::CostModel;
using sim::Course;
using sim::FleetConfig;
using sim::RecordedTimes;
using sim::Simulation;
using sim::SimulationConfig;
using sim::StepWork;
using sim::Workload;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
std::vector<T> vector_of(const Array<T>& array) {
  return {array.data(), array.data() + array.size()};
}

template <typename T>
py::array array_of(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

Workload make_workload(const Array<int64_t>& times, const Array<int32_t>& prompt_lens,
                       const Array<int32_t>& answer_lens, const Array<int32_t>& max_tokens,
                       const Array<int64_t>& hash_indptr, const Array<int64_t>& hash_ids,
                       int32_t hash_block, const Array<int64_t>& sessions, int32_t users,
                       int32_t vocab_size) {
  Workload w;
  w.times = vector_of(times);
  w.prompt_lens = vector_of(prompt_lens);
  w.answer_lens = vector_of(answer_lens);
  w.max_tokens = vector_of(max_tokens);
  w.hash_indptr = vector_of(hash_indptr);
  w.hash_ids = vector_of(hash_ids);
  w.hash_block = hash_block;
  w.sessions = vector_of(sessions);
  w.users = users;
  w.vocab_size = vocab_size;
  w.check_shape();
  return w;
}

std::unique_ptr<Simulation> make_simulation(SchedulerConfig scheduler, CostModel cost,
                                            Workload workload, FleetConfig fleet,
                                            int32_t overlap_depth, uint64_t seed, bool record,
                                            const Array<int64_t>& replayed) {
  SimulationConfig config;
  config.scheduler = std::move(scheduler);
  config.cost = std::move(cost);
  config.fleet = fleet;
  config.overlap_depth = overlap_depth;
  config.seed = seed;
  config.record = record;
  if (replayed.size() > 0 && (replayed.ndim() != 2 || replayed.shape(1) != 3)) {
    throw InvalidArgument("replayed must be [steps, 3]: received, collected, in_flight");
  }
  for (py::ssize_t i = 0; replayed.size() > 0 && i < replayed.shape(0); ++i) {
    config.replayed.push_back(
        {replayed.at(i, 0), replayed.at(i, 1), static_cast<int32_t>(replayed.at(i, 2))});
  }
  return std::make_unique<Simulation>(std::move(config), std::move(workload));
}

py::dict reqs_of(const Simulation& self) {
  using namespace py::literals;
  const sim::ReqMeasures& r = self.reqs();
  return py::dict(
      "arrival"_a = array_of(r.arrival), "scheduled"_a = array_of(r.scheduled),
      "first_token"_a = array_of(r.first_token), "last_token"_a = array_of(r.last_token),
      "longest_gap"_a = array_of(r.longest_gap), "num_tokens"_a = array_of(r.num_tokens),
      "cached_tokens"_a = array_of(r.cached_tokens), "preemptions"_a = array_of(r.preemptions),
      "replica"_a = array_of(r.replica), "attempts"_a = array_of(r.attempts));
}

py::dict totals_of(const Simulation& self) {
  using namespace py::literals;
  const sim::Totals t = self.totals();
  return py::dict("turns"_a = t.turns, "steps"_a = t.steps, "prefill_tokens"_a = t.prefill_tokens,
                  "recomputed_tokens"_a = t.recomputed_tokens, "output_tokens"_a = t.output_tokens,
                  "preemptions"_a = t.preemptions, "failures"_a = t.failures, "resent"_a = t.resent,
                  "scale_ups"_a = t.scale_ups, "scale_downs"_a = t.scale_downs, "end"_a = t.end,
                  "replica_time"_a = t.replica_time, "device_busy"_a = t.device_busy,
                  "gap_count"_a = self.gaps().count(), "gap_sum"_a = self.gaps().sum());
}

py::tuple gaps_of(const Simulation& self) {
  std::vector<double> middles;
  std::vector<int64_t> counts;
  self.gaps().read(middles, counts);
  return py::make_tuple(array_of(middles), array_of(counts));
}

py::dict course_of(const Simulation& self) {
  constexpr std::pair<const char*, Course::Line> kLines[] = {
      {"used_blocks", Course::used_blocks},   {"cached_blocks", Course::cached_blocks},
      {"total_blocks", Course::total_blocks}, {"running", Course::running},
      {"waiting", Course::waiting},           {"replicas", Course::replicas}};
  const Course& course = self.course();
  const size_t n = course.num_bins();
  py::dict out;
  out["bin_ns"] = course.bin_width();
  std::vector<double> values(n);
  for (const auto& [name, line] : kLines) {
    for (size_t b = 0; b < n; ++b) values[b] = course.mean(line, b);
    out[name] = array_of(values);
  }
  for (size_t b = 0; b < n; ++b) values[b] = course.prompt_tokens(b);
  out["prefill_tokens"] = array_of(values);
  for (size_t b = 0; b < n; ++b) values[b] = course.output_tokens(b);
  out["output_tokens"] = array_of(values);
  return out;
}

py::list replicas_of(const Simulation& self) {
  using namespace py::literals;
  py::list out;
  for (const auto& replica : self.replicas()) {
    out.append(py::dict("num_reqs"_a = replica->num_reqs, "num_tokens"_a = replica->num_tokens,
                        "num_failures"_a = replica->num_failures,
                        "steps"_a = replica->executor().num_steps(),
                        "busy"_a = replica->executor().busy()));
  }
  return out;
}

void register_cost_model(py::module_& m) {
  py::class_<CostModel> cost(m, "CostModel");
  cost.def(py::init([cost](const py::kwargs& given) {
    return from_keywords<CostModel>("CostModel", py::type(cost), given);
  }));
  cost.def_readwrite("step", &CostModel::step)
      .def_readwrite("from_idle", &CostModel::from_idle)
      .def_readwrite("row", &CostModel::row)
      .def_readwrite("chunk_row", &CostModel::chunk_row)
      .def_readwrite("sampled", &CostModel::sampled)
      .def_readwrite("weights", &CostModel::weights)
      .def_readwrite("token", &CostModel::token)
      .def_readwrite("chunk_token", &CostModel::chunk_token)
      .def_readwrite("decode_kv", &CostModel::decode_kv)
      .def_readwrite("chunk_kv", &CostModel::chunk_kv)
      .def_readwrite("score", &CostModel::score)
      .def_readwrite("decodes_step", &CostModel::decodes_step)
      .def_readwrite("decodes_row", &CostModel::decodes_row)
      .def_readwrite("decodes_kv", &CostModel::decodes_kv)
      .def_readwrite("device_copy", &CostModel::device_copy)
      .def_readwrite("host_copy", &CostModel::host_copy)
      .def_readwrite("host_before", &CostModel::host_before)
      .def_readwrite("host_after", &CostModel::host_after)
      .def_readwrite("window", &CostModel::window)
      .def_readwrite("windowed_share", &CostModel::windowed_share)
      .def_readwrite("beyond_of_size", &CostModel::beyond_of_size)
      .def_readwrite("noise", &CostModel::noise)
      .def_readwrite("noise_of_size", &CostModel::noise_of_size)
      .def_readwrite("launch_of_size", &CostModel::launch_of_size)
      .def(
          "device_ns",
          [](const CostModel& self, int64_t rows, int64_t chunk_rows, int64_t tokens,
             int64_t chunk_tokens, int64_t sampled, double decode_kv, double chunk_kv,
             double scores) {
            StepWork w;
            w.rows = rows;
            w.chunk_rows = chunk_rows;
            w.tokens = tokens;
            w.chunk_tokens = chunk_tokens;
            w.sampled = sampled;
            w.decode_kv = decode_kv;
            w.chunk_kv = chunk_kv;
            w.scores = scores;
            return self.device(w);
          },
          py::kw_only(), py::arg("rows"), py::arg("chunk_rows") = 0, py::arg("tokens"),
          py::arg("chunk_tokens") = 0, py::arg("sampled"), py::arg("decode_kv") = 0.0,
          py::arg("chunk_kv") = 0.0, py::arg("scores") = 0.0);
}

void register_fleet(py::module_& m) {
  py::class_<FleetConfig> fleet(m, "FleetConfig");
  fleet.def(py::init([fleet](const py::kwargs& given) {
    return from_keywords<FleetConfig>("FleetConfig", py::type(fleet), given);
  }));
  fleet.def_readwrite("num_replicas", &FleetConfig::num_replicas)
      .def_property(
          "routing",
          [](const FleetConfig& self) { return std::string(sim::name_of(self.routing)); },
          [](FleetConfig& self, std::string_view name) { self.routing = sim::routing_of(name); })
      .def_readwrite("slow_share", &FleetConfig::slow_share)
      .def_readwrite("slow_factor", &FleetConfig::slow_factor)
      .def_readwrite("mean_time_between_failures", &FleetConfig::mean_time_between_failures)
      .def_readwrite("repair_time", &FleetConfig::repair_time)
      .def_readwrite("min_replicas", &FleetConfig::min_replicas)
      .def_readwrite("max_replicas", &FleetConfig::max_replicas)
      .def_readwrite("target_load", &FleetConfig::target_load)
      .def_readwrite("scale_interval", &FleetConfig::scale_interval)
      .def_readwrite("startup_time", &FleetConfig::startup_time)
      .def_readwrite("scale_down_delay", &FleetConfig::scale_down_delay);
}

}  // namespace

void register_simulation(py::module_& m) {
  register_cost_model(m);
  register_fleet(m);
  const Array<int64_t> none(0);
  py::class_<Workload>(m, "Workload")
      .def(py::init(&make_workload), py::kw_only(), py::arg("times"), py::arg("prompt_lens"),
           py::arg("answer_lens"), py::arg("max_tokens"), py::arg("hash_indptr") = none,
           py::arg("hash_ids") = none, py::arg("hash_block") = 512, py::arg("sessions") = none,
           py::arg("users") = 0, py::arg("vocab_size") = 1 << 17)
      .def("__len__", &Workload::size)
      .def(
          "prompt",
          [](const Workload& self, size_t number) {
            if (number >= self.size()) throw py::index_error("no such req");
            std::vector<Token> tokens;
            self.prompt(number, tokens);
            return array_of(tokens);
          },
          py::arg("number"));
  py::class_<Simulation>(m, "Simulation")
      .def(py::init(&make_simulation), py::kw_only(), py::arg("scheduler"), py::arg("cost"),
           py::arg("workload"), py::arg("fleet") = FleetConfig{}, py::arg("overlap_depth") = 1,
           py::arg("seed") = 0, py::arg("record") = false, py::arg("replayed") = none)
      .def("impossible", &Simulation::impossible, py::arg("limit") = 1)
      .def("run", &Simulation::run, py::arg("turns"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("num_ended", &Simulation::num_ended)
      .def("reqs", &reqs_of)
      .def("totals", &totals_of)
      .def("gaps", &gaps_of)
      .def("course", &course_of)
      .def("replicas", &replicas_of)
      .def("take_recording", [](Simulation& self) { return as_dict(self.take_recording()); });
}

}  // namespace stoker
