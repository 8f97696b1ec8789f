// Binds what comes back: StepResult, StepEvents, StepStats.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "base/check.h"
#include "bind/sched.h"
#include "sched/step_events.h"

namespace py = pybind11;

namespace stoker {
namespace {

template <typename T>
py::array_t<T> copied(const std::vector<T>& from) {
  return py::array_t<T>(static_cast<py::ssize_t>(from.size()), from.data());
}

template <typename Class, typename T>
void vector_property(py::class_<Class>& c, const char* field, std::vector<T> Class::* member) {
  c.def_property(
      field, [member](const Class& self) { return copied(self.*member); },
      [member](Class& self,
               const py::array_t<T, py::array::c_style | py::array::forcecast>& values) {
        (self.*member).assign(values.data(), values.data() + values.size());
      });
}

StepStatus status_of(std::string_view name) {
  if (name == "ok") return StepStatus::ok;
  if (name == "failed") return StepStatus::failed;
  if (name == "fatal") return StepStatus::fatal;
  throw InvalidArgument("status must be ok, failed or fatal; not '" + std::string(name) + "'");
}

const char* name_of(StepStatus status) {
  return status == StepStatus::ok ? "ok" : status == StepStatus::failed ? "failed" : "fatal";
}

}  // namespace

void register_sched_results(py::module_& m) {
  py::class_<StepResult> result(m, "StepResult",
                                "What a step brought back; see csrc/sched/step_result.h.");
  result.def(py::init<>())
      .def_readwrite("batch_id", &StepResult::batch_id)
      .def_readwrite("message", &StepResult::message)
      .def_readwrite("device_time", &StepResult::device_time)
      .def_readwrite("pooled_width", &StepResult::pooled_width)
      .def_property(
          "status", [](const StepResult& r) { return name_of(r.status); },
          [](StepResult& r, const py::object& given) {
            r.status = py::isinstance<py::int_>(given)
                           ? status_of(name_of(static_cast<StepStatus>(given.cast<int>())))
                           : status_of(given.cast<std::string>());
          })
      .def_property(
          "row_status",
          [](const StepResult& r) {
            std::vector<int32_t> values;
            for (const RowStatus s : r.row_status) values.push_back(static_cast<int32_t>(s));
            return copied(values);
          },
          [](StepResult& r, const std::vector<int32_t>& values) {
            r.row_status.clear();
            for (const int32_t v : values)
              r.row_status.push_back(v == 0 ? RowStatus::ok : RowStatus::failed);
          })
      .def_readwrite("transfer_time", &StepResult::transfer_time)
      .def_readwrite("transfer_bytes", &StepResult::transfer_bytes)
      .def("clear", &StepResult::clear);
  vector_property(result, "row_indptr", &StepResult::row_indptr);
  vector_property(result, "token_ids", &StepResult::token_ids);
  vector_property(result, "logprob_indptr", &StepResult::logprob_indptr);
  vector_property(result, "logprob_ids", &StepResult::logprob_ids);
  vector_property(result, "logprobs", &StepResult::logprobs);
  vector_property(result, "logprob_ranks", &StepResult::logprob_ranks);
  vector_property(result, "scores", &StepResult::scores);
  vector_property(result, "pooled", &StepResult::pooled);
  vector_property(result, "finished_transfers", &StepResult::finished_transfers);

  py::class_<StepEvents, std::shared_ptr<StepEvents>>(
      m, "StepEvents", "News of a commit, as flat arrays (copies); valid until the next commit.")
      .def_readonly("batch_id", &StepEvents::batch_id)
      .def_property_readonly("status", [](const StepEvents& e) { return name_of(e.status); })
      .def_readonly("message", &StepEvents::message)
      .def_property_readonly("reqs", [](const StepEvents& e) { return copied(e.reqs); })
      .def_property_readonly("token_indptr",
                             [](const StepEvents& e) { return copied(e.token_indptr); })
      .def_property_readonly("tokens", [](const StepEvents& e) { return copied(e.tokens); })
      .def_property_readonly("finish_reasons",
                             [](const StepEvents& e) { return copied(e.finish_reasons); })
      .def_property_readonly("out_rows", [](const StepEvents& e) { return copied(e.out_rows); })
      .def_property_readonly("score_reqs", [](const StepEvents& e) { return copied(e.score_reqs); })
      .def_property_readonly("score_positions",
                             [](const StepEvents& e) { return copied(e.score_positions); })
      .def_property_readonly("score_rows", [](const StepEvents& e) { return copied(e.score_rows); })
      .def_property_readonly("pooled_reqs",
                             [](const StepEvents& e) { return copied(e.pooled_reqs); })
      .def_readonly("ended", &StepEvents::ended)
      .def("__len__", [](const StepEvents& e) { return e.reqs.size(); });

  py::class_<BlockCounts>(m, "BlockCounts", "1 null + free + used + cached + draining = total.")
      .def_readonly("total", &BlockCounts::total)
      .def_readonly("free", &BlockCounts::free)
      .def_readonly("used", &BlockCounts::used)
      .def_readonly("cached", &BlockCounts::cached)
      .def_readonly("draining", &BlockCounts::draining);

  py::class_<StepStats>(m, "StepStats", "One line of the step trace.")
      .def_readonly("batch_id", &StepStats::batch_id)
      .def_readonly("time", &StepStats::time)
      .def_readonly("num_running", &StepStats::num_running)
      .def_readonly("num_waiting", &StepStats::num_waiting)
      .def_readonly("num_swapped", &StepStats::num_swapped)
      .def_readonly("num_decode_rows", &StepStats::num_decode_rows)
      .def_readonly("num_prefill_rows", &StepStats::num_prefill_rows)
      .def_readonly("num_tokens", &StepStats::num_tokens)
      .def_readonly("num_sampled_rows", &StepStats::num_sampled_rows)
      .def_readonly("num_admitted", &StepStats::num_admitted)
      .def_readonly("num_preempted", &StepStats::num_preempted)
      .def_readonly("num_swapped_out", &StepStats::num_swapped_out)
      .def_readonly("num_swapped_in", &StepStats::num_swapped_in)
      .def_readonly("num_sat_out", &StepStats::num_sat_out)
      .def_readonly("cached_tokens", &StepStats::cached_tokens)
      .def_readonly("recomputed_tokens", &StepStats::recomputed_tokens)
      .def_readonly("num_transfers", &StepStats::num_transfers)
      .def_readonly("new_token_ratio", &StepStats::new_token_ratio)
      .def_property_readonly("blocks", [](const StepStats& s) {
        return std::vector<BlockCounts>(s.blocks, s.blocks + s.num_groups);
      });
}

}  // namespace stoker
