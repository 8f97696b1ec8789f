// stoker._core.loop: the engine loop, its outbox and its trace, and executors written in Python.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bind/loop_look.h"
#include "bind/loop_recording.h"
#include "bind/python_executor.h"
#include "bind/python_masks.h"
#include "loop/engine_loop.h"
#include "loop/worker_executor.h"

namespace stoker {

namespace py = pybind11;

namespace {

// What a vector holds, as an array that owns it. No copy.
template <typename T>
py::array_t<T> take(std::vector<T>& values) {
  auto* moved = new std::vector<T>(std::move(values));
  values = {};
  const py::capsule owner(moved, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(static_cast<py::ssize_t>(moved->size()), moved->data(), owner);
}

// What the outbox had to say, as arrays made when they are first asked for.
class PyOutputs {
 public:
  Outputs& held() { return held_; }

  template <auto Member>
  py::object get(py::object& made) {
    if (!made) made = take(held_.*Member);
    return made;
  }

  size_t num_tokens = 0, num_ends = 0, num_scores = 0, num_pooled = 0;
  py::object token_keys, tokens, logprob_indptr, logprob_ids, logprobs, logprob_ranks;
  py::object score_keys, score_positions, scores, pooled_keys, pooled;
  py::object score_logprob_indptr, score_logprob_ids, score_logprobs, score_ranks;
  py::object end_keys, finish_reasons, stop_tokens, token_counts, cached_tokens, num_preemptions;
  py::object arrival_times, first_scheduled_times, first_token_times, finished_times;

 private:
  Outputs held_;
};

// The loop, its executor and the thread that both may have, with the GIL given back wherever they
// may wait.
class PyLoop {
 public:
  PyLoop(SchedulerConfig config, py::object executor, bool worker_thread, int32_t trace_capacity,
         bool check_each_step, py::object masks, std::string event_log)
      : executor_(std::move(executor)) {
    Executor* inner = nullptr;
    if (py::isinstance<Executor>(executor_)) {
      inner = executor_.cast<Executor*>();
    } else {
      python_ = std::make_unique<PythonExecutor>(executor_, worker_thread ? 1 : 0);
      inner = python_.get();
    }
    if (worker_thread) {
      worker_ = std::make_unique<WorkerExecutor>(*inner, std::max(inner->overlap_depth(), 1));
      inner = worker_.get();
    }
    LoopOptions options;
    options.trace_capacity = trace_capacity;
    options.check_each_step = check_each_step;
    if (!masks.is_none()) {
      masks_ = std::make_unique<PythonMaskSource>(std::move(masks));
      options.masks = masks_.get();
    }
    options.event_log = std::move(event_log);
    loop_ = std::make_unique<EngineLoop>(std::move(config), *inner, options);
    live().push_back(this);
  }

  ~PyLoop() {
    std::erase(live(), this);
    const py::gil_scoped_release nogil;
    loop_.reset();
    worker_.reset();
  }

  EngineLoop& loop() { return *loop_; }

  bool turn(double timeout) {
    bool busy = false;
    {
      const py::gil_scoped_release nogil;
      busy = timeout > 0 ? loop_->turn_or_sleep(nanoseconds(timeout)) : loop_->turn();
    }
    if (python_) python_->raise_kept();
    return busy;
  }

  void run() { loop_->run(); }

  void stop() {
    {
      const py::gil_scoped_release nogil;
      loop_->stop();
    }
    if (python_) python_->raise_kept();
  }

  // Joins the threads of all loops there are. A thread that asks for the GIL while the interpreter
  // goes down would take the process with it.
  static void stop_all() {
    for (PyLoop* const loop : live()) {
      const py::gil_scoped_release nogil;
      loop->loop_->stop();
      if (loop->worker_) loop->worker_->stop();
    }
  }

  std::unique_ptr<PyOutputs> poll() {
    auto out = std::make_unique<PyOutputs>();
    loop_->outbox().poll(out->held());
    return counted(std::move(out));
  }

  std::unique_ptr<PyOutputs> wait(double timeout) {
    auto out = std::make_unique<PyOutputs>();
    {
      const py::gil_scoped_release nogil;
      loop_->outbox().wait(out->held(), timeout < 0 ? -1 : nanoseconds(timeout));
    }
    return counted(std::move(out));
  }

  static TimeNs nanoseconds(double seconds) {
    return static_cast<TimeNs>(std::min(seconds, 1e9) * 1e9);
  }

 private:
  static std::unique_ptr<PyOutputs> counted(std::unique_ptr<PyOutputs> out) {
    Outputs& held = out->held();
    out->num_tokens = held.tokens.size();
    out->num_ends = held.end_keys.size();
    out->num_scores = held.score_keys.size();
    out->num_pooled = held.pooled_keys.size();
    return out;
  }

  // Every loop there is; guarded by the GIL.
  static std::vector<PyLoop*>& live() {
    static std::vector<PyLoop*> loops;
    return loops;
  }

  py::object executor_;
  std::unique_ptr<PythonExecutor> python_;
  std::unique_ptr<WorkerExecutor> worker_;
  std::unique_ptr<PythonMaskSource> masks_;
  std::unique_ptr<EngineLoop> loop_;  // last: it goes first
};

template <auto Member>
void add_array(py::class_<PyOutputs>& c, const char* name, py::object PyOutputs::* made) {
  c.def_property_readonly(name, [made](PyOutputs& self) { return self.get<Member>(self.*made); });
}

void register_outputs(py::module_& m) {
  py::class_<PyOutputs> c(m, "Outputs");
  c.def_readonly("num_tokens", &PyOutputs::num_tokens);
  c.def_readonly("num_ends", &PyOutputs::num_ends);
  c.def_readonly("num_scores", &PyOutputs::num_scores);
  c.def_readonly("num_pooled", &PyOutputs::num_pooled);
  c.def("__bool__", [](const PyOutputs& self) {
    return self.num_tokens + self.num_ends + self.num_scores + self.num_pooled > 0;
  });
  add_array<&Outputs::token_keys>(c, "token_keys", &PyOutputs::token_keys);
  add_array<&Outputs::tokens>(c, "tokens", &PyOutputs::tokens);
  add_array<&Outputs::logprob_indptr>(c, "logprob_indptr", &PyOutputs::logprob_indptr);
  add_array<&Outputs::logprob_ids>(c, "logprob_ids", &PyOutputs::logprob_ids);
  add_array<&Outputs::logprobs>(c, "logprobs", &PyOutputs::logprobs);
  add_array<&Outputs::logprob_ranks>(c, "logprob_ranks", &PyOutputs::logprob_ranks);
  add_array<&Outputs::score_keys>(c, "score_keys", &PyOutputs::score_keys);
  add_array<&Outputs::score_positions>(c, "score_positions", &PyOutputs::score_positions);
  add_array<&Outputs::scores>(c, "scores", &PyOutputs::scores);
  add_array<&Outputs::score_logprob_indptr>(c, "score_logprob_indptr",
                                            &PyOutputs::score_logprob_indptr);
  add_array<&Outputs::score_logprob_ids>(c, "score_logprob_ids", &PyOutputs::score_logprob_ids);
  add_array<&Outputs::score_logprobs>(c, "score_logprobs", &PyOutputs::score_logprobs);
  add_array<&Outputs::score_ranks>(c, "score_ranks", &PyOutputs::score_ranks);
  add_array<&Outputs::pooled_keys>(c, "pooled_keys", &PyOutputs::pooled_keys);
  add_array<&Outputs::pooled>(c, "pooled", &PyOutputs::pooled);
  add_array<&Outputs::end_keys>(c, "end_keys", &PyOutputs::end_keys);
  add_array<&Outputs::finish_reasons>(c, "finish_reasons", &PyOutputs::finish_reasons);
  add_array<&Outputs::stop_tokens>(c, "stop_tokens", &PyOutputs::stop_tokens);
  add_array<&Outputs::num_tokens>(c, "end_num_tokens", &PyOutputs::token_counts);
  add_array<&Outputs::cached_tokens>(c, "cached_tokens", &PyOutputs::cached_tokens);
  add_array<&Outputs::num_preemptions>(c, "num_preemptions", &PyOutputs::num_preemptions);
  add_array<&Outputs::arrival_times>(c, "arrival_times", &PyOutputs::arrival_times);
  add_array<&Outputs::first_scheduled_times>(c, "first_scheduled_times",
                                             &PyOutputs::first_scheduled_times);
  add_array<&Outputs::first_token_times>(c, "first_token_times", &PyOutputs::first_token_times);
  add_array<&Outputs::finished_times>(c, "finished_times", &PyOutputs::finished_times);
  c.def_property_readonly("messages", [](PyOutputs& self) { return self.held().messages; });
  c.def_property_readonly("pooled_width", [](PyOutputs& self) { return self.held().pooled_width; });
}

void register_stats(py::module_& m) {
  py::class_<LoopStats>(m, "LoopStats")
      .def_readonly("num_waiting", &LoopStats::num_waiting)
      .def_readonly("num_running", &LoopStats::num_running)
      .def_readonly("steps_in_flight", &LoopStats::steps_in_flight)
      .def_readonly("num_unfinished", &LoopStats::num_unfinished)
      .def_readonly("num_steps", &LoopStats::num_steps)
      .def_readonly("num_preemptions", &LoopStats::num_preemptions)
      .def_readonly("prefill_tokens", &LoopStats::prefill_tokens)
      .def_readonly("output_tokens", &LoopStats::output_tokens)
      .def_readonly("failure", &LoopStats::failure)
      .def_readonly("num_swapped", &LoopStats::num_swapped)
      .def_readonly("num_swaps", &LoopStats::num_swaps)
      .def_property_readonly("preemptions",
                             [](const LoopStats& s) {
                               py::dict found;
                               const char* kinds[] = {"retract", "swap"};
                               const char* reasons[] = {"blocks", "priority", "failure"};
                               for (size_t k = 0; k < 2; ++k) {
                                 for (size_t r = 0; r < 3; ++r)
                                   found[py::make_tuple(kinds[k], reasons[r])] =
                                       s.preemptions[k][r];
                               }
                               return found;
                             })
      .def_property_readonly(
          "num_host_blocks",
          [](const LoopStats& s) { return std::max(s.host_blocks.total - 1, 0); })
      .def_property_readonly("num_free_host_blocks",
                             [](const LoopStats& s) { return s.host_blocks.free; })
      .def_property_readonly("num_prefilling",
                             [](const LoopStats& s) { return s.last.num_prefill_rows; })
      .def_property_readonly("num_blocks",
                             [](const LoopStats& s) { return std::max(s.blocks.total - 1, 0); })
      .def_property_readonly("num_free_blocks", [](const LoopStats& s) { return s.blocks.free; })
      .def_property_readonly("num_cached_blocks",
                             [](const LoopStats& s) { return s.blocks.cached; })
      .def_property_readonly("num_used_blocks", [](const LoopStats& s) { return s.blocks.used; })
      .def_property_readonly("num_draining_blocks",
                             [](const LoopStats& s) { return s.blocks.draining; });
}

}  // namespace

void register_loop(py::module_& core) {
  py::module_ m = core.def_submodule("loop", "The engine loop, its outbox and its trace.");
  py::class_<Executor>(m, "Executor")
      .def_property_readonly("overlap_depth", &Executor::overlap_depth);
  register_outputs(m);
  register_stats(m);
  py::module_::import("atexit").attr("register")(py::cpp_function(&PyLoop::stop_all));
  py::class_<PyLoop>(m, "EngineLoop", py::is_final())
      .def(py::init<SchedulerConfig, py::object, bool, int32_t, bool, py::object, std::string>(),
           py::arg("config"), py::arg("executor"), py::kw_only(), py::arg("worker_thread") = false,
           py::arg("trace_capacity") = 1024, py::arg("check_each_step") = false,
           py::arg("masks") = py::none(), py::arg("event_log") = "")
      .def(
          "add",
          [](PyLoop& self, ReqPtr req, bool stream) {
            const py::gil_scoped_release nogil;
            return self.loop().add(std::move(req), stream);
          },
          py::arg("req"), py::kw_only(), py::arg("stream") = true)
      .def(
          "abort", [](PyLoop& self, ReqKey key) { self.loop().abort(key); }, py::arg("key"))
      .def(
          "abort", [](PyLoop& self, std::string rid) { self.loop().abort(std::move(rid)); },
          py::arg("rid"))
      .def(
          "grammar_ready",
          [](PyLoop& self, std::string rid) { self.loop().grammar_ready(std::move(rid)); },
          py::arg("rid"))
      .def(
          "end_with_error",
          [](PyLoop& self, std::string rid, std::string why) {
            self.loop().end_with_error(std::move(rid), std::move(why));
          },
          py::arg("rid"), py::arg("why"))
      .def("turn", &PyLoop::turn, py::arg("timeout") = 0.0)
      .def("run", &PyLoop::run)
      .def("stop", &PyLoop::stop)
      .def_property_readonly("running", [](PyLoop& self) { return self.loop().running(); })
      .def("has_unfinished", [](PyLoop& self) { return self.loop().has_unfinished(); })
      .def("poll", &PyLoop::poll)
      .def("wait", &PyLoop::wait, py::arg("timeout") = -1.0)
      .def(
          "look",
          [](PyLoop& self, const std::string& rid, size_t max_waiting, double timeout) {
            std::optional<std::vector<ReqLook>> looks;
            {
              const py::gil_scoped_release nogil;
              looks = self.loop().look(rid, max_waiting, PyLoop::nanoseconds(timeout));
            }
            if (!looks) {
              PyErr_SetString(PyExc_TimeoutError, "the loop did not answer in time");
              throw py::error_already_set();
            }
            py::list out;
            for (const ReqLook& look : *looks) out.append(as_dict(look));
            return out;
          },
          py::arg("rid") = "", py::kw_only(), py::arg("max_waiting") = 256,
          py::arg("timeout") = 1.0)
      .def("stats", [](PyLoop& self) { return self.loop().stats(); })
      .def(
          "trace",
          [](PyLoop& self, size_t count) {
            py::list out;
            for (const StepTrace& t : self.loop().trace(count)) out.append(trace_entry(t));
            return out;
          },
          py::arg("count") = 1024)
      .def(
          "start_recording",
          [](PyLoop& self, size_t max_rows) { self.loop().recorder().start(max_rows); },
          py::arg("max_rows") = size_t{1} << 22)
      .def("stop_recording", [](PyLoop& self) { self.loop().recorder().stop(); })
      .def("take_recording",
           [](PyLoop& self) {
             Recording taken;
             {
               const py::gil_scoped_release nogil;
               taken = self.loop().recorder().take();
             }
             return as_dict(taken);
           })
      .def_property_readonly("num_stalls", [](PyLoop& self) { return self.loop().num_stalls(); })
      .def_property_readonly("config",
                             [](PyLoop& self) { return self.loop().scheduler().config(); });
}

}  // namespace stoker
