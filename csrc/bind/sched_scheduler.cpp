// Binds Scheduler for use without a loop: it brings its own ring of batch buffers.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "bind/quick.h"
#include "bind/sched.h"
#include "sched/scheduler.h"

namespace py = pybind11;

namespace stoker {
namespace {

// The ring and the Python objects that view it are made once: a step makes no Python object.
class LibraryScheduler {
 public:
  LibraryScheduler(const SchedulerConfig& config, py::object key)
      : key_(std::move(key)),
        scheduler_(std::make_shared<Scheduler>(config)),
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

  void add(const ReqPtr& req, TimeNs now) {
    if (!key_.is_none()) req->policy_key = key_(req).cast<double>();
    scheduler_->add(req, now);
  }

  // The user's key function is asked again for every waiting req, or for one.
  void invalidate(const std::optional<std::string>& rid) {
    if (key_.is_none()) return;
    std::vector<ReqPtr> reqs;
    if (rid) {
      if (ReqPtr req = scheduler_->find(*rid)) reqs.push_back(std::move(req));
    } else {
      scheduler_->waiting(reqs);
    }
    for (const ReqPtr& req : reqs) scheduler_->set_policy_key(req->rid, key_(req).cast<double>());
  }

  void start_log() {
    log_ = std::make_unique<EventLog>(scheduler_->config());
    scheduler_->log_to(log_.get());
  }
  py::bytes log() const { return log_ ? py::bytes(log_->bytes()) : py::bytes(); }

  py::object schedule(TimeNs now) {
    if (!scheduler_->schedule(now, buffers_[next_])) return py::none();
    const size_t at = next_;
    next_ = next_ + 1 == views_.size() ? 0 : next_ + 1;
    return views_[at];
  }

  py::object commit(const py::handle& batch, const py::handle& result, TimeNs now) {
    return seen(take_back(batch, result, now));
  }
  py::object take_events() { return seen(scheduler_->take_events()); }

  Scheduler& core() { return *scheduler_; }

 private:
  const StepEvents& take_back(const py::handle& batch, const py::handle& result, TimeNs now) {
    if (is_token_array(result)) {
      const auto* array = py::detail::array_proxy(result.ptr());
      return scheduler_->commit(
          id_of(batch),
          {reinterpret_cast<const Token*>(array->data), static_cast<size_t>(array->dimensions[0])},
          now);
    }
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

  // What nearly every call brings: told without asking numpy, which takes longer than the commit of
  // a row. Other forms of it take the long way.
  bool is_token_array(const py::handle& result) const {
    if (!py::isinstance<py::array>(result)) return false;
    const auto* array = py::detail::array_proxy(result.ptr());
    return array->nd == 1 && array->descr == token_dtype_.ptr() &&
           py::detail::check_flags(array, py::array::c_style) && array->data != nullptr;
  }

  // The scheduler's news are always in one place, so one Python object shows them.
  py::object seen(const StepEvents& events) {
    if (!events_) {
      events_ = py::cast(std::const_pointer_cast<StepEvents>(
          std::shared_ptr<const StepEvents>(scheduler_, &events)));
    }
    return events_;
  }

  BatchId id_of(const py::handle& batch) const {
    for (size_t i = 0; i < views_.size(); ++i)
      if (views_[i].is(batch)) return buffers_[i].header().batch_id;
    if (py::isinstance<py::int_>(batch)) return batch.cast<BatchId>();
    return batch.cast<const BatchView&>().buffer.header().batch_id;
  }

  static constexpr size_t kAlign = 64;

  py::object key_;  // the user's key function of the policy `key`, or None
  std::unique_ptr<EventLog> log_;
  std::shared_ptr<Scheduler> scheduler_;
  std::shared_ptr<const BatchLayout> layout_;
  std::vector<py::object> views_;
  std::vector<BatchBuffer> buffers_;
  size_t next_ = 0;
  py::object events_;
  py::dtype token_dtype_ = py::dtype::of<Token>();
};

using S = LibraryScheduler;

// The three calls of a step, as most programs make them.
py::object quick_add(S& s, PyObject* const* arguments, Py_ssize_t count) {
  static const PyObject* const req_type = py::type::of<Req>().ptr();
  if (count != 1 || py::type::handle_of(arguments[0]).ptr() != req_type) return {};
  auto made = reinterpret_cast<py::detail::instance*>(arguments[0])->get_value_and_holder();
  if (!made.holder_constructed()) return {};
  s.add(made.holder<ReqPtr>(), 0);
  return py::none();
}
py::object quick_schedule(S& s, PyObject* const*, Py_ssize_t count) {
  return count == 0 ? s.schedule(0) : py::object();
}
py::object quick_commit(S& s, PyObject* const* arguments, Py_ssize_t count) {
  return count == 2 ? s.commit(arguments[0], arguments[1], 0) : py::object();
}

}  // namespace

void register_scheduler(py::module_& m) {
  py::class_<BlockPool>(m, "BlockPool",
                        "The blocks of one KV group, by itself (for tests and benchmarks).")
      .def(py::init<int32_t>(), py::arg("num_blocks"))
      .def(
          "allocate",
          [](BlockPool& pool, int32_t count) {
            if (count > pool.num_free())
              throw InvalidArgument("only " + std::to_string(pool.num_free()) + " blocks are free");
            py::array_t<BlockId> blocks(count);
            for (int32_t i = 0; i < count; ++i) blocks.mutable_data()[i] = pool.allocate(0);
            return blocks;
          },
          py::arg("count"))
      .def(
          "release",
          [](BlockPool& pool, const py::array_t<BlockId, py::array::c_style>& blocks,
             BatchId last_step) {
            for (py::ssize_t i = 0; i < blocks.size(); ++i) {
              const BlockId block = blocks.data()[i];
              if (block < 1 || block >= pool.total() || pool.refs(block) == 0)
                throw InvalidArgument("nobody holds this block");
              pool.release(block, last_step);
            }
          },
          py::arg("blocks"), py::arg("last_step") = 0)
      .def("committed", &BlockPool::committed, py::arg("step"))
      .def("counts", &BlockPool::counts);

  constexpr auto inner = py::return_value_policy::reference_internal;
  py::class_<S> scheduler(
      m, "Scheduler",
      "add(), schedule(), commit(); see csrc/sched/scheduler.h. One thread at a time.");
  scheduler
      .def(py::init<const SchedulerConfig&, py::object>(), py::arg("config"), py::kw_only(),
           py::arg("key") = py::none(),
           "key: for schedule_policy='key', a function of a Req whose value orders the queue "
           "(lower is sooner); asked when "
           "a req is added and on invalidate()")
      .def("add", &S::add, py::arg("req"), py::arg("now") = 0)
      .def("invalidate", &S::invalidate, py::arg("rid") = py::none())
      .def(
          "set_policy_key",
          [](S& s, std::string_view rid, double key) { s.core().set_policy_key(rid, key); },
          py::arg("rid"), py::arg("key"))
      .def(
          "pause",
          [](S& s, bool drain) {
            s.core().pause(drain ? Scheduler::Pause::drain : Scheduler::Pause::in_place);
          },
          py::arg("drain") = false)
      .def("start_log", &S::start_log, "Begin an event log; call before the first add().")
      .def("log", &S::log, "The event log so far, as bytes.")
      .def(
          "set_rates",
          [](S& s, double ns_per_token, double ns_per_byte) {
            s.core().set_rates(ns_per_token, ns_per_byte);
          },
          py::arg("ns_per_token"), py::arg("ns_per_byte"),
          "What computing a token again and moving a byte between tiers costs, as measured.")
      .def("resume", [](S& s) { s.core().pause(Scheduler::Pause::no); })
      .def("flush_cache", [](S& s) { return s.core().flush_cache(); })
      .def(
          "pin_prefix",
          [](S& s, const std::vector<Token>& tokens, const std::string& salt) {
            return s.core().pin_prefix(tokens, salt);
          },
          py::arg("tokens"), py::arg("cache_salt") = "")
      .def(
          "unpin_prefix", [](S& s, int64_t pin) { return s.core().unpin_prefix(pin); },
          py::arg("pin"))
      .def_property_readonly("next_deadline", [](S& s) { return s.core().next_deadline(); })
      .def(
          "abort", [](S& s, std::string_view rid, TimeNs now) { return s.core().abort(rid, now); },
          py::arg("rid"), py::arg("now") = 0)
      .def(
          "fail",
          [](S& s, std::string_view rid, const std::string& why, TimeNs now) {
            return s.core().fail(rid, why, now);
          },
          py::arg("rid"), py::arg("why"), py::arg("now") = 0)
      .def(
          "grammar_ready", [](S& s, std::string_view rid) { return s.core().grammar_ready(rid); },
          py::arg("rid"))
      .def("schedule", &S::schedule, py::arg("now") = 0)
      .def("commit", &S::commit, py::arg("batch"), py::arg("result"), py::arg("now") = 0)
      .def("take_events", &S::take_events)
      .def("has_unfinished", [](S& s) { return s.core().has_unfinished(); })
      .def_property_readonly("num_waiting", [](S& s) { return s.core().num_waiting(); })
      .def_property_readonly("num_swapped", [](S& s) { return s.core().num_swapped(); })
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
          "host_block_counts",
          [](S& s, GroupId g) {
            if (g < 0 || g >= s.core().limits().num_kv_groups)
              throw py::index_error("no such KV group");
            return s.core().host_block_counts(g);
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
          "match_prefix", [](S& s, const Req& req) { return s.core().match_prefix(req); },
          py::arg("req"), "Tokens at the head of the prompt that are in the prefix cache now.")
      .def(
          "explain", [](S& s, const Req& req) { return s.core().explain(req); }, py::arg("req"))
      .def("check_integrity", [](S& s) { s.core().check_integrity(); });
  QuickMethod<S, quick_add>::add(scheduler, "add");
  QuickMethod<S, quick_schedule>::add(scheduler, "schedule");
  QuickMethod<S, quick_commit>::add(scheduler, "commit");

  py::class_<ReplayReport>(m, "ReplayReport", "What running an event log again showed.")
      .def_readonly("num_events", &ReplayReport::num_events)
      .def_readonly("num_steps", &ReplayReport::num_steps)
      .def_readonly("first_difference", &ReplayReport::first_difference)
      .def_readonly("what", &ReplayReport::what)
      .def_readonly("redacted", &ReplayReport::redacted);
  m.def(
      "replay",
      [](const py::bytes& log, bool check) {
        return replay(std::string_view(log), {.check = check});
      },
      py::arg("log"), py::kw_only(), py::arg("check") = false,
      "Runs an event log again; check: every invariant after every event.");
  m.def(
      "redact", [](const py::bytes& log) { return py::bytes(redact(std::string_view(log))); },
      py::arg("log"));

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
