// Binds sched/attention_plan.h: a planner that writes work lists into tensors of the host.
#include "bind/attention_plan.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "bind/tensor_caster.h"
#include "sched/attention_plan.h"
#include "tensor/tensor_matcher.h"

namespace py = pybind11;

namespace stoker {
namespace {

std::span<int32_t> words(const TensorView& tensor) {
  return {tensor.data<int32_t>(), size_t(tensor.numel())};
}

py::tuple plan(AttentionPlanner& planner, py::handle row_seat, py::handle row_indptr,
               py::handle row_kv_len, int32_t num_decode_rows, py::handle work,
               py::handle work_indptr) {
  const TensorView seat = view_of(row_seat, "row_seat"), indptr = view_of(row_indptr, "row_indptr"),
                   length = view_of(row_kv_len, "row_kv_len"), list = view_of(work, "work"),
                   list_indptr = view_of(work_indptr, "work_indptr");
  const TensorMatcher match("AttentionPlanner.plan", dlpack::Device{dlpack::kCpu, 0});
  Dim rows{"R"};
  match(seat, "row_seat", {rows}).dtype(DType::int32);
  match(indptr, "row_indptr", {rows.value + 1}).dtype(DType::int32);
  match(length, "row_kv_len", {rows}).dtype(DType::int32);
  match(list, "work", {kAnySize, 8}).dtype(DType::int32);
  match(list_indptr, "work_indptr", {kAnySize}).dtype(DType::int32);
  match.require(0 <= num_decode_rows && num_decode_rows <= rows.value, "num_decode_rows",
                "must be between 0 and the number of rows");
  const int64_t tokens = rows.value > 0 ? words(indptr)[size_t(rows.value)] : 0;
  match.require(list.size(0) >= AttentionPlanner::work_capacity(
                                    planner.geometry(), int32_t(rows.value), int32_t(tokens)),
                "work", "has fewer entries than AttentionPlanner.work_capacity");
  match.require(list_indptr.size(0) >= AttentionPlanner::indptr_size(planner.geometry()),
                "work_indptr", "has fewer entries than AttentionPlanner.indptr_size");
  const AttentionPlan made =
      planner.plan(words(seat), words(indptr), words(length), num_decode_rows,
                   {list.data<AttentionWork>(), size_t(list.size(0))}, words(list_indptr));
  return py::make_tuple(made.num_work, made.num_decode_slots, made.num_prefill_slots);
}

}  // namespace

void register_attention_plan(py::module_& m) {
  py::class_<AttentionPlanner>(
      m, "AttentionPlanner",
      "Makes the work list of a step's attention (csrc/sched/attention_plan.h): host only.")
      .def(py::init([](int32_t num_decode_heads, int32_t num_kv_heads, int32_t window,
                       int32_t num_decode_workers, int32_t prefill_tile_tokens,
                       int32_t num_prefill_workers, int32_t num_processors,
                       int32_t prefill_step_in_tokens) {
             const AttentionGeometry geometry{
                 num_decode_heads,    num_kv_heads,        window,         num_decode_workers,
                 prefill_tile_tokens, num_prefill_workers, num_processors, prefill_step_in_tokens};
             if (std::min({num_decode_heads, num_kv_heads, num_decode_workers}) < 1 ||
                 std::min({window, prefill_tile_tokens, num_prefill_workers, num_processors,
                           prefill_step_in_tokens}) < 0) {
               throw InvalidArgument("AttentionPlanner: heads and workers must be positive");
             }
             if (num_processors > 0 &&
                 (num_prefill_workers == 0 || num_decode_workers % num_processors != 0)) {
               throw InvalidArgument(
                   "AttentionPlanner: num_processors = " + std::to_string(num_processors) +
                   " wants prefill workers and a multiple of it as decode workers");
             }
             return AttentionPlanner(geometry);
           }),
           py::kw_only(), py::arg("num_decode_heads"), py::arg("num_kv_heads"), py::arg("window"),
           py::arg("num_decode_workers"), py::arg("prefill_tile_tokens"),
           py::arg("num_prefill_workers"), py::arg("num_processors") = 0,
           py::arg("prefill_step_in_tokens") = AttentionGeometry().prefill_step_in_tokens)
      .def("plan", &plan, py::arg("row_seat"), py::arg("row_indptr"), py::arg("row_kv_len"),
           py::arg("num_decode_rows"), py::arg("work"), py::arg("work_indptr"),
           "Writes work and work_indptr; returns (entries, decode slots, prefill slots).")
      .def(
          "work_capacity",
          [](const AttentionPlanner& planner, int32_t max_rows, int32_t max_tokens) {
            return AttentionPlanner::work_capacity(planner.geometry(), max_rows, max_tokens);
          },
          py::arg("max_rows"), py::arg("max_tokens"))
      .def_property_readonly("indptr_size",
                             [](const AttentionPlanner& planner) {
                               return AttentionPlanner::indptr_size(planner.geometry());
                             })
      .def_property_readonly("decode_slot_capacity",
                             [](const AttentionPlanner& planner) {
                               return AttentionPlanner::decode_slot_capacity(planner.geometry());
                             })
      .def_property_readonly("prefill_slot_capacity", [](const AttentionPlanner& planner) {
        return AttentionPlanner::prefill_slot_capacity(planner.geometry());
      });
}

}  // namespace stoker
