// Binds what runs an engine's steps: the launcher, and the kernels at a step's two ends.
#include <cstddef>
#include <memory>
#include <string>

#include "base/check.h"
#include "bind/cuda_common.h"
#include "bind/step_calls.h"
#include "cuda/step.h"
#include "cuda/step_launcher.h"
#include "sched/step_stager.h"

namespace py = pybind11;

namespace stoker {
namespace {

// The kernels read what the scheduler and the stager write.
static_assert(sizeof(cuda::StepFront) == sizeof(StepFront) &&
              offsetof(cuda::StepFront, num_table_changes) ==
                  offsetof(StepFront, num_table_changes) &&
              offsetof(cuda::StepFront, num_seat_changes) ==
                  offsetof(StepFront, num_seat_changes) &&
              offsetof(cuda::StepFront, result) == offsetof(StepFront, result) &&
              offsetof(cuda::StepFront, changes_inline) == offsetof(StepFront, changes_inline) &&
              offsetof(cuda::StepFront, changes) == offsetof(StepFront, changes));
static_assert(sizeof(cuda::TableChange) == sizeof(TableChange) &&
              offsetof(cuda::TableChange, group) == offsetof(TableChange, group) &&
              offsetof(cuda::TableChange, seat) == offsetof(TableChange, seat) &&
              offsetof(cuda::TableChange, index) == offsetof(TableChange, index) &&
              offsetof(cuda::TableChange, block) == offsetof(TableChange, block));
static_assert(sizeof(SeatChange) == cuda::kSeatWords * sizeof(int32_t) &&
              offsetof(SeatChange, seat) == 0);
static_assert(int32_t(cuda::StepGraph::decode) == int32_t(StepGraph::decode) &&
              int32_t(cuda::StepGraph::mixed) == int32_t(StepGraph::mixed));

const cuda::StepFront* front_of(const TensorView& view, const TensorMatcher& match) {
  match(view, "front", {kAnySize}).dtype(DType::uint8);
  match.require(view.numel() >= int64_t{sizeof(cuda::StepFront)} &&
                    reinterpret_cast<uintptr_t>(view.data()) % 16 == 0,
                "front", "must hold a step's front, aligned to 16 bytes");
  return static_cast<const cuda::StepFront*>(view.data());
}

void begin_step(py::handle front, py::handle table_changes, py::handle seat_changes,
                py::handle tables, py::handle records) {
  const char* op = "begin_step";
  const TensorView head = view_of(front, "front"),
                   changes = view_of(table_changes, "table_changes"),
                   seats = view_of(seat_changes, "seat_changes"), table = view_of(tables, "tables"),
                   record = view_of(records, "records");
  const TensorMatcher match(op, head.device());
  const cuda::StepFront* start = front_of(head, match);
  match(changes, "table_changes", {kAnySize, 4}).dtype(DType::int32);
  match(seats, "seat_changes", {kAnySize, cuda::kSeatWords}).dtype(DType::int32);
  match(table, "tables", {kAnySize, kAnySize, kAnySize}).dtype(DType::int32);
  match(record, "records", {kAnySize, cuda::kSeatWords}).dtype(DType::int32);
  match.require(reinterpret_cast<uintptr_t>(changes.data()) % 16 == 0, "table_changes",
                "must be aligned to 16 bytes");
  const cuda::BeginStepParams p{
      .front = start,
      .table_changes = static_cast<const cuda::TableChange*>(changes.data()),
      .seat_changes = seats.data<int32_t>(),
      .tables = table.data<int32_t>(),
      .records = record.data<int32_t>(),
      .group_stride = table.stride(0),
      .seat_stride = table.stride(1)};
  require_success(cuda::begin_step(p, launch_options(op, front, head)), op);
}

void end_step(py::handle front, py::handle sampled, py::handle seats, py::handle last_token) {
  const char* op = "end_step";
  const TensorView head = view_of(front, "front"), tokens = view_of(sampled, "sampled"),
                   seat = view_of(seats, "seats"), last = view_of(last_token, "last_token");
  const TensorMatcher match(op, head.device());
  const cuda::StepFront* start = front_of(head, match);
  Dim rows{"N"};
  match(tokens, "sampled", {rows}).dtype(DType::int32);
  match(seat, "seats", {rows}).dtype(DType::int32);
  match(last, "last_token", {kAnySize}).dtype(DType::int32);
  const cuda::EndStepParams p{.front = start,
                              .sampled = tokens.data<int32_t>(),
                              .seats = seat.data<int32_t>(),
                              .last_token = last.data<int32_t>(),
                              .count = rows.value};
  require_success(cuda::end_step(p, launch_options(op, front, head)), op);
}

using Launcher = cuda::StepLauncher;

const char* text_of(cudaError_t status) {
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

const char* launch_step(void* launcher, size_t entry, int32_t graph, int32_t tokens, int32_t outs,
                        int64_t body, int64_t table_begin, int64_t table_bytes, int64_t seat_begin,
                        int64_t seat_bytes) {
  return text_of(static_cast<Launcher*>(launcher)->launch(
      entry, cuda::StepGraph(graph), tokens, outs,
      {body, table_begin, table_bytes, seat_begin, seat_bytes}));
}

const char* wait_for_step(void* launcher, size_t entry, float* milliseconds) {
  return text_of(static_cast<Launcher*>(launcher)->wait(entry, milliseconds));
}

// The launcher must outlive what uses the capsule.
py::capsule calls_of(Launcher& launcher) {
  auto* calls = new StepCalls{&launcher, &launch_step, &wait_for_step};
  return py::capsule(calls, kStepCallsName, [](PyObject* capsule) {
    delete static_cast<StepCalls*>(PyCapsule_GetPointer(capsule, kStepCallsName));
  });
}

template <typename T>
T pointer(int64_t address) {
  return reinterpret_cast<T>(static_cast<uintptr_t>(address));
}

// Milliseconds between the step's two events.
float waited(Launcher& launcher, size_t entry) {
  float milliseconds = 0.0f;
  cudaError_t status = cudaSuccess;
  {
    const py::gil_scoped_release release;
    status = launcher.wait(entry, &milliseconds);
  }
  require_success(status, "collect");
  return milliseconds;
}

}  // namespace

void register_cuda_step(py::module_& m) {
  m.def("begin_step", &begin_step, py::arg("front"), py::arg("table_changes"),
        py::arg("seat_changes"), py::arg("tables"), py::arg("records"),
        "Applies as many table and seat changes as the front says.");
  m.def("end_step", &end_step, py::arg("front"), py::arg("sampled"), py::arg("seats"),
        py::arg("last_token"), "last_token[seats[i]] = sampled[i]; the tokens go to the host too.");

  py::class_<Launcher>(m, "StepLauncher",
                       "Starts steps on one stream (csrc/cuda/step_launcher.h); addresses and "
                       "handles are integers.")
      .def(py::init([](int64_t device, int64_t stream, int index) {
             return std::make_unique<Launcher>(pointer<std::byte*>(device),
                                               pointer<cudaStream_t>(stream), index);
           }),
           py::arg("device"), py::arg("stream"), py::arg("index"))
      .def(
          "add_entry",
          [](Launcher& l, int64_t host) {
            require_success(l.add_entry(pointer<const std::byte*>(host)), "add_entry");
          },
          py::arg("host"))
      .def(
          "set_graph",
          [](Launcher& l, int32_t kind, int32_t bucket, int64_t graph) {
            require_success(l.set_graph(cuda::StepGraph(kind), bucket, pointer<cudaGraph_t>(graph)),
                            "set_graph");
          },
          py::arg("kind"), py::arg("bucket"), py::arg("graph"))
      .def(
          "drop_graphs", [](Launcher& l, int32_t kind) { l.drop_graphs(cuda::StepGraph(kind)); },
          py::arg("kind"))
      .def(
          "begin", [](Launcher& l, size_t entry) { require_success(l.begin(entry), "launch"); },
          py::arg("entry"))
      .def(
          "upload",
          [](Launcher& l, size_t entry, int64_t body, int64_t table_begin, int64_t table_bytes,
             int64_t seat_begin, int64_t seat_bytes) {
            const cuda::Upload what{body, table_begin, table_bytes, seat_begin, seat_bytes};
            require_success(l.upload(entry, what), "launch");
          },
          py::arg("entry"), py::arg("body"), py::arg("table_begin"), py::arg("table_bytes"),
          py::arg("seat_begin"), py::arg("seat_bytes"))
      .def(
          "replay",
          [](Launcher& l, int32_t kind, int32_t bucket) {
            require_success(l.replay(cuda::StepGraph(kind), bucket), "launch");
          },
          py::arg("kind"), py::arg("bucket"))
      .def(
          "end", [](Launcher& l, size_t entry) { require_success(l.end(entry), "launch"); },
          py::arg("entry"))
      .def(
          "launch",
          [](Launcher& l, size_t entry, int32_t kind, int32_t tokens, int32_t outs, int64_t body,
             int64_t table_begin, int64_t table_bytes, int64_t seat_begin, int64_t seat_bytes) {
            const cuda::Upload what{body, table_begin, table_bytes, seat_begin, seat_bytes};
            require_success(l.launch(entry, cuda::StepGraph(kind), tokens, outs, what), "launch");
          },
          py::arg("entry"), py::arg("kind"), py::arg("tokens"), py::arg("outs"), py::arg("body"),
          py::arg("table_begin"), py::arg("table_bytes"), py::arg("seat_begin"),
          py::arg("seat_bytes"), "All of a step that graphs do.")
      .def("wait", &waited, py::arg("entry"))
      .def("is_done", &Launcher::is_done, py::arg("entry"))
      .def("calls", &calls_of, "For who launches and waits without Python (bind/step_calls.h).");
}

}  // namespace stoker
