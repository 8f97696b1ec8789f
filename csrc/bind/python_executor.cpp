// The calls into a Python executor, and what becomes of its exceptions.
#include "bind/python_executor.h"

#include <algorithm>
#include <cstring>

#include <pybind11/numpy.h>

#include "base/check.h"

namespace stoker {

namespace py = pybind11;

PythonExecutor::PythonExecutor(py::object executor, int32_t min_depth)
    : executor_(std::move(executor)) {
  for (const char* name : {"overlap_depth", "buffers", "launch", "collect"}) {
    if (!py::hasattr(executor_, name)) {
      throw InvalidArgument(std::string("executor: has no attribute '") + name +
                            "'; see stoker._core.loop for what an executor must have");
    }
  }
  overlap_depth_ = executor_.attr("overlap_depth").cast<int32_t>();
  if (overlap_depth_ < 0) {
    throw InvalidArgument("executor.overlap_depth = " + std::to_string(overlap_depth_) +
                          ": must be at least 0");
  }
  num_buffers_ = std::max(overlap_depth_, min_depth) + 2;
  launch_ = executor_.attr("launch");
  collect_ = executor_.attr("collect");
}

PythonExecutor::~PythonExecutor() {
  const py::gil_scoped_acquire gil;
  buffers_.clear();
  kept_ = nullptr;
  launch_ = py::object();
  launch_parts_ = py::object();
  native_ = py::object();
  collect_ = py::object();
  executor_ = py::object();
}

std::byte* PythonExecutor::buffer(int32_t index, const BatchLayout& layout) {
  const py::gil_scoped_acquire gil;
  if (buffers_.empty()) {
    const int32_t n = num_buffers_;
    const py::sequence given =
        executor_.attr("buffers")(py::cast(layout, py::return_value_policy::copy), n);
    if (py::len(given) != static_cast<size_t>(n)) {
      throw InvalidArgument("executor.buffers returned " + std::to_string(py::len(given)) +
                            " buffers; " + std::to_string(n) + " are needed");
    }
    std::vector<py::buffer_info> held;
    for (const py::handle item : given) {
      py::buffer_info info = py::reinterpret_borrow<py::buffer>(item).request(true);
      const auto bytes = static_cast<size_t>(info.size * info.itemsize);
      if (bytes < layout.bytes() || reinterpret_cast<uintptr_t>(info.ptr) % 64 != 0) {
        throw InvalidArgument(
            "executor.buffers: a buffer of " + std::to_string(bytes) +
            " bytes; each must hold layout.bytes = " + std::to_string(layout.bytes()) +
            " and begin at a multiple of 64 bytes");
      }
      std::memset(info.ptr, 0, layout.bytes());
      held.push_back(std::move(info));
    }
    buffers_ = std::move(held);
    if (py::hasattr(executor_, "native_steps")) native_ = executor_.attr("native_steps")();
    if (native_ && !native_.is_none()) {
      const py::tuple parts = native_;
      stager_ = parts[0].cast<StagerRing*>();
      calls_ = static_cast<const StepCalls*>(
          py::reinterpret_borrow<py::capsule>(parts[1]).get_pointer());
      launch_parts_ = executor_.attr("launch_parts");
    }
  }
  return static_cast<std::byte*>(buffers_.at(static_cast<size_t>(index)).ptr);
}

void PythonExecutor::note(py::error_already_set& error, std::string& message, bool& fatal) {
  message = error.what();
  const py::object value = error.value();
  fatal = value && py::hasattr(value, "fatal") && py::bool_(value.attr("fatal"));
  if (!error.matches(PyExc_Exception)) kept_ = std::current_exception();
}

// True if the step is on its way.
bool PythonExecutor::launch_native(const BatchBuffer& batch, int32_t index, StagedStep& staged) {
  staged = stager_->stage(static_cast<size_t>(index));
  if (!staged.simple) return false;
  const char* error = calls_->launch(
      calls_->launcher, static_cast<size_t>(index), static_cast<int32_t>(staged.graph),
      staged.tokens, staged.outs, staged.body.size, staged.table_changes.begin,
      staged.table_changes.size, staged.seat_changes.begin, staged.seat_changes.size);
  Launched launched{batch.header().batch_id, error != nullptr, error != nullptr, {}, index,
                    batch.header().num_outs};
  if (error != nullptr) launched.message = error;
  launched_.push_back(std::move(launched));
  return true;
}

void PythonExecutor::launch(const BatchBuffer& batch) {
  int32_t index = 0;
  while (buffers_[static_cast<size_t>(index)].ptr != batch.data()) ++index;
  StagedStep staged;
  if (stager_ != nullptr && launch_native(batch, index, staged)) return;
  const py::gil_scoped_acquire gil;
  Launched launched{batch.header().batch_id, false, false, {}, index, -1};
  try {
    if (stager_ == nullptr) {
      launch_(index);
    } else {
      launch_parts_(index, static_cast<int32_t>(staged.graph), staged.tokens, staged.outs,
                    staged.body.size, staged.table_changes.begin, staged.table_changes.size,
                    staged.seat_changes.begin, staged.seat_changes.size);
      transfers_under_way_ = executor_.attr("transfers_under_way").cast<bool>();
    }
  } catch (py::error_already_set& error) {
    launched.failed = true;
    note(error, launched.message, launched.fatal);
  }
  launched_.push_back(std::move(launched));
}

void PythonExecutor::launch_sample(BatchId batch_id, const LateMasks& late) {
  const py::gil_scoped_acquire gil;
  for (const Launched& l : launched_) {
    if (l.batch_id == batch_id && l.failed) return;
  }
  try {
    // Views: the executor may keep them until the step was collected.
    const auto base = py::none();
    const auto rows = static_cast<py::ssize_t>(late.words > 0 ? late.bits.size() / late.words : 0);
    executor_.attr("launch_sample")(
        batch_id,
        py::array_t<int32_t>(static_cast<py::ssize_t>(late.mask_row.size()), late.mask_row.data(),
                             base),
        py::array_t<int32_t>({rows, static_cast<py::ssize_t>(late.words)}, late.bits.data(), base));
  } catch (py::error_already_set& error) {
    for (Launched& l : launched_) {
      if (l.batch_id == batch_id) {
        l.failed = true;
        note(error, l.message, l.fatal);
      }
    }
  }
}

void PythonExecutor::collect_native(const Launched& launched, StepResult& result) {
  result.batch_id = launched.batch_id;
  float milliseconds = 0;
  const char* error =
      launched.failed
          ? launched.message.c_str()
          : calls_->wait(calls_->launcher, static_cast<size_t>(launched.index), &milliseconds);
  if (error != nullptr) {
    result.status = StepStatus::fatal;  // whatever the runtime refuses, it has lost the device
    result.message = error;
    return;
  }
  result.device_time = static_cast<TimeNs>(static_cast<double>(milliseconds) * 1e6);
  const auto tokens = stager_->tokens(static_cast<size_t>(launched.index),
                                      static_cast<size_t>(launched.native_outs));
  result.token_ids.assign(tokens.begin(), tokens.end());
  if (std::any_of(tokens.begin(), tokens.end(), [](Token token) { return token < 0; })) {
    for (const Token token : tokens)
      result.row_status.push_back(token < 0 ? RowStatus::failed : RowStatus::ok);
  }
  if (!transfers_under_way_) return;
  const py::gil_scoped_acquire gil;
  try {
    executor_.attr("add_transfers")(py::cast(&result, py::return_value_policy::reference));
    transfers_under_way_ = executor_.attr("transfers_under_way").cast<bool>();
  } catch (py::error_already_set& raised) {
    bool fatal = false;
    note(raised, result.message, fatal);
    result.status = StepStatus::fatal;
  }
}

void PythonExecutor::collect(StepResult& result) {
  check(!launched_.empty(), "collect without a launched step");
  Launched launched = std::move(launched_.front());
  launched_.pop_front();
  result.clear();
  if (launched.native_outs >= 0) {
    collect_native(launched, result);
    return;
  }
  const py::gil_scoped_acquire gil;
  result.batch_id = launched.batch_id;
  if (!launched.failed) {
    try {
      collect_(py::cast(&result, py::return_value_policy::reference));
    } catch (py::error_already_set& error) {
      launched.failed = true;
      note(error, launched.message, launched.fatal);
    }
  }
  if (launched.failed) {
    auto tickets = std::move(result.finished_transfers);
    result.clear();
    result.finished_transfers = std::move(tickets);
    result.status = launched.fatal ? StepStatus::fatal : StepStatus::failed;
    result.message = launched.message;
  }
  result.batch_id = launched.batch_id;
}

void PythonExecutor::raise_kept() {
  if (kept_ == nullptr) return;
  const std::exception_ptr kept = kept_;
  kept_ = nullptr;
  std::rethrow_exception(kept);
}

}  // namespace stoker
