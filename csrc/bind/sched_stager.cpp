// Binds sched/step_stager.h over a ring of the executor's buffers.
#include <pybind11/stl.h>

#include <memory>
#include <utility>

#include "base/check.h"
#include "bind/sched.h"
#include "bind/stager_ring.h"

namespace py = pybind11;

namespace stoker {

StagerRing::StagerRing(const BatchLayout& layout, StepBuckets buckets, Ints tables,
                       Ints num_logprobs, Ints num_prompt_logprobs, Bytes has_penalties)
    : bytes_(layout.bytes()),
      tables_(std::move(tables)),
      num_logprobs_(std::move(num_logprobs)),
      num_prompt_logprobs_(std::move(num_prompt_logprobs)),
      has_penalties_(std::move(has_penalties)),
      stager_(layout, std::move(buckets), mirror(layout)) {}

void StagerRing::add(Bytes memory, int64_t result) {
  if (static_cast<size_t>(memory.size()) < kStepFrontBytes + bytes_)
    throw InvalidArgument("StepStager.add: memory must hold a front and a batch buffer");
  auto* data = reinterpret_cast<std::byte*>(memory.mutable_data());
  ring_.push_back({std::move(memory), data, result});
}

SeatMirror StagerRing::mirror(const BatchLayout& layout) {
  if (tables_.ndim() != 3 || tables_.shape(0) != layout.limits().num_kv_groups ||
      num_logprobs_.size() != tables_.shape(1) || num_prompt_logprobs_.size() != tables_.shape(1) ||
      has_penalties_.size() != tables_.shape(1))
    throw InvalidArgument("StepStager: tables must be [groups, seats, width], the others [seats]");
  return {tables_.mutable_data(),
          tables_.shape(1),
          tables_.shape(2),
          num_logprobs_.mutable_data(),
          num_prompt_logprobs_.mutable_data(),
          has_penalties_.mutable_data()};
}

void register_sched_stager(py::module_& m) {
  using Bytes = StagerRing::Bytes;
  using Ints = StagerRing::Ints;
  py::class_<StagerRing> stager(
      m, "StepStager",
      "Prepares steps for captured graphs (csrc/sched/step_stager.h); the arrays are written to.");
  stager
      .def(py::init([](const BatchLayout& layout, std::vector<int32_t> decode,
                       std::vector<int32_t> mixed, std::vector<int32_t> heads, Ints tables,
                       Ints num_logprobs, Ints num_prompt_logprobs, Bytes has_penalties) {
             return std::make_unique<StagerRing>(
                 layout, StepBuckets{std::move(decode), std::move(mixed), std::move(heads)},
                 std::move(tables), std::move(num_logprobs), std::move(num_prompt_logprobs),
                 std::move(has_penalties));
           }),
           py::arg("layout"), py::kw_only(), py::arg("decode"), py::arg("mixed"), py::arg("heads"),
           py::arg("tables").noconvert(), py::arg("num_logprobs").noconvert(),
           py::arg("num_prompt_logprobs").noconvert(), py::arg("has_penalties").noconvert())
      .def("add", &StagerRing::add, py::arg("memory").noconvert(), py::arg("result"),
           "A ring entry: FRONT_BYTES, then a batch buffer; where the device puts its tokens.")
      .def(
          "stage",
          [](StagerRing& self, size_t index) {
            const StagedStep s = self.stage(index);
            return py::make_tuple(s.simple, static_cast<int32_t>(s.graph), s.tokens, s.outs,
                                  s.body.size, s.table_changes.begin, s.table_changes.size,
                                  s.seat_changes.begin, s.seat_changes.size);
          },
          py::arg("index"),
          "(simple, graph, tokens, outs, body bytes, begin and bytes of table changes, of seat "
          "changes)");
  stager.attr("FRONT_BYTES") = kStepFrontBytes;
}

}  // namespace stoker
