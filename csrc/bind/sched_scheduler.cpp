// Binds Scheduler for use without a loop: it brings its own ring of batch buffers.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "bind/sched.h"

namespace py = pybind11;

namespace stoker {
namespace {

// The ring and the Python objects that view it are made once: a step makes no Python object.
class LibraryScheduler {
 public:
  explicit LibraryScheduler(const SchedulerConfig& config)
      : scheduler_(std::make_shared<Scheduler>(config)),
        layout_(std::make_shared<const BatchLayout>(scheduler_->layout())) {
    const size_t bytes = (layout_->bytes() + kAlign - 1) / kAlign * kAlign;
    for (int32_t i = 0; i < scheduler_->config().overlap_depth + 2; ++i) {
      auto* data = static_cast<std::byte*>(std::aligned_alloc(kAlign, bytes));
      if (data == nullptr) throw std::bad_alloc();
      const py::capsule memory(data, &std::free);
      std::memset(data, 0, bytes);
      views_.push_back(py::cast(BatchView(layout_, data, memory, scheduler_)));
      buffers_.emplace_back(layout_.get(), data);
    }
  }

  py::object schedule(TimeNs now) {
    if (!scheduler_->schedule(now, buffers_[next_])) return py::none();
    const size_t at = next_;
    next_ = next_ + 1 == views_.size() ? 0 : next_ + 1;
    return views_[at];
  }

  const StepEvents& commit(const py::handle& batch, const py::handle& result, TimeNs now) {
    if (py::isinstance<StepResult>(result)) {
      auto& full = result.cast<StepResult&>();
      if (full.batch_id == 0) full.batch_id = id_of(batch);
      if (full.batch_id != id_of(batch))
        throw InvalidArgument("commit: the StepResult is of another batch");
      return scheduler_->commit(full, now);
    }
    if (py::isinstance<py::array_t<Token, py::array::c_style>>(result)) {
      const auto array = py::reinterpret_borrow<py::array_t<Token, py::array::c_style>>(result);
      return scheduler_->commit(id_of(batch), {array.data(), static_cast<size_t>(array.size())},
                                now);
    }
    const auto tokens = result.cast<std::vector<Token>>();
    return scheduler_->commit(id_of(batch), tokens, now);
  }

  Scheduler& core() { return *scheduler_; }

 private:
  static BatchId id_of(const py::handle& batch) {
    if (py::isinstance<py::int_>(batch)) return batch.cast<BatchId>();
    return batch.cast<const BatchView&>().buffer.header().batch_id;
  }

  static constexpr size_t kAlign = 64;

  std::shared_ptr<Scheduler> scheduler_;
  std::shared_ptr<const BatchLayout> layout_;
  std::vector<py::object> views_;
  std::vector<BatchBuffer> buffers_;
  size_t next_ = 0;
};

}  // namespace

void register_scheduler(py::module_& m) {
  using S = LibraryScheduler;
  constexpr auto inner = py::return_value_policy::reference_internal;
  py::class_<S>(m, "Scheduler",
                "add(), schedule(), commit(); see csrc/sched/scheduler.h. One thread at a time.")
      .def(py::init<const SchedulerConfig&>(), py::arg("config"))
      .def(
          "add", [](S& s, const ReqPtr& req, TimeNs now) { s.core().add(req, now); },
          py::arg("req"), py::arg("now") = 0)
      .def(
          "abort", [](S& s, std::string_view rid, TimeNs now) { return s.core().abort(rid, now); },
          py::arg("rid"), py::arg("now") = 0)
      .def("schedule", &S::schedule, py::arg("now") = 0)
      .def("commit", &S::commit, py::arg("batch"), py::arg("result"), py::arg("now") = 0, inner)
      .def(
          "take_events", [](S& s) -> const StepEvents& { return s.core().take_events(); }, inner)
      .def("has_unfinished", [](S& s) { return s.core().has_unfinished(); })
      .def_property_readonly("num_waiting", [](S& s) { return s.core().num_waiting(); })
      .def_property_readonly("num_running", [](S& s) { return s.core().num_running(); })
      .def_property_readonly("steps_in_flight", [](S& s) { return s.core().steps_in_flight(); })
      .def_property_readonly("config", [](S& s) { return s.core().config(); })
      .def_property_readonly(
          "layout", [](S& s) -> const BatchLayout& { return s.core().layout(); }, inner)
      .def_property_readonly("last_stats", [](S& s) { return s.core().last_stats(); })
      .def_property_readonly("new_token_ratio", [](S& s) { return s.core().new_token_ratio(); })
      .def(
          "block_counts",
          [](S& s, GroupId g) {
            if (g < 0 || g >= s.core().limits().num_kv_groups)
              throw py::index_error("no such KV group");
            return s.core().block_counts(g);
          },
          py::arg("group") = 0)
      .def(
          "req", [](S& s, ReqId id) { return s.core().req(id); }, py::arg("id"))
      .def(
          "find", [](S& s, std::string_view rid) { return s.core().find(rid); }, py::arg("rid"))
      .def(
          "children", [](S& s, std::string_view rid) { return s.core().children(rid); },
          py::arg("rid"))
      .def(
          "explain", [](S& s, const Req& req) { return s.core().explain(req); }, py::arg("req"))
      .def("check_integrity", [](S& s) { s.core().check_integrity(); });

#ifdef STOKER_PLANTED_BUGS
  m.def(
      "plant",
      [](std::string_view bug) {
        if (!plant(bug)) throw InvalidArgument("no such planted bug: '" + std::string(bug) + "'");
      },
      py::arg("bug"), "Test builds only: switches one named bug on ('none': all off).");
  m.attr("PLANTED_BUGS") = std::vector<std::string>(kBugNames.begin() + 1, kBugNames.end());
#endif
}

}  // namespace stoker
