// Binds Req: made from Python values, read back as Python values.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <memory_resource>
#include <optional>

#include "base/check.h"
#include "bind/sched.h"
#include "sched/req.h"

namespace py = pybind11;

namespace stoker {
namespace {

// Token ids from an integer array (copied once) or any sequence of ints.
// `room`: for so many more there is memory, so that the engine's thread need not ask for it.
std::vector<Token> tokens_of(const py::handle& ids, int32_t room) {
  std::vector<Token> tokens;
  if (py::isinstance<py::array>(ids)) {
    const auto array = py::reinterpret_borrow<py::array>(ids);
    const char kind = array.dtype().kind();
    if ((kind != 'i' && kind != 'u') || array.ndim() != 1) {
      throw InvalidArgument(
          "origin_input_ids must be a one-dimensional integer array or a sequence of ints");
    }
    const auto exact =
        py::array_t<int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
    tokens.reserve(static_cast<size_t>(exact.size() + room));
    for (py::ssize_t i = 0; i < exact.size(); ++i) {
      const int64_t id = exact.data()[i];
      if (id < 0 || id > std::numeric_limits<Token>::max()) {
        throw InvalidArgument("token id " + std::to_string(id) + " is outside every vocabulary");
      }
      tokens.push_back(static_cast<Token>(id));
    }
    return tokens;
  }
  if (!py::isinstance<py::sequence>(ids) || py::isinstance<py::str>(ids)) {
    throw InvalidArgument("origin_input_ids must be a sequence of ints");
  }
  for (const py::handle item : py::reinterpret_borrow<py::sequence>(ids)) {
    const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(item.ptr()));
    if (!index) {
      PyErr_Clear();
      throw InvalidArgument("origin_input_ids must hold ints, not " +
                            py::repr(item).cast<std::string>());
    }
    const long long id = PyLong_AsLongLong(index.ptr());
    if (PyErr_Occurred() != nullptr) PyErr_Clear();
    if (id < 0 || id > std::numeric_limits<Token>::max()) {
      throw InvalidArgument("token id " + py::str(index).cast<std::string>() +
                            " is outside every vocabulary");
    }
    tokens.push_back(static_cast<Token>(id));
  }
  return tokens;
}

template <typename T>
void read(const py::handle& from, const char* name, T& into) {
  const py::object value = py::getattr(from, name, py::none());
  if (!value.is_none()) into = value.cast<T>();
}

SamplingParams params_of(const py::handle& from) {
  SamplingParams p;
  if (from.is_none()) return p;
  read(from, "temperature", p.temperature);
  read(from, "top_p", p.top_p);
  read(from, "min_p", p.min_p);
  read(from, "top_k", p.top_k);
  read(from, "repetition_penalty", p.repetition_penalty);
  read(from, "presence_penalty", p.presence_penalty);
  read(from, "frequency_penalty", p.frequency_penalty);
  read(from, "max_tokens", p.max_tokens);
  read(from, "min_tokens", p.min_tokens);
  read(from, "ignore_eos", p.ignore_eos);
  read(from, "n", p.n);
  read(from, "logprobs", p.num_logprobs);
  read(from, "prompt_logprobs", p.prompt_logprobs);
  read(from, "stop_token_ids", p.stop_token_ids);
  const py::object seed = py::getattr(from, "seed", py::none());
  if (!seed.is_none()) {
    p.has_seed = true;
    p.seed = seed.attr("__and__")(std::numeric_limits<uint64_t>::max()).cast<uint64_t>();
  }
  const py::object bias = py::getattr(from, "logit_bias", py::none());
  if (!bias.is_none()) {
    const py::object items = py::hasattr(bias, "items") ? bias.attr("items")() : bias;
    for (const py::handle item : items)
      p.logit_bias.push_back(item.cast<std::pair<Token, float>>());
  }
  return p;
}

// Reqs side by side: a scheduler walks over all that run, step after step. Never given back, as
// Python may hold some to the very end.
std::pmr::memory_resource* req_memory() {
  static auto* const memory = new std::pmr::synchronized_pool_resource;
  return memory;
}

ReqPtr make_req(std::string rid, const py::object& ids, const py::object& params, double priority,
                std::string cache_salt, std::string tenant, double weight,
                std::optional<TimeNs> deadline_ttft, std::optional<TimeNs> deadline_tpot,
                bool drop_when_late, bool pool, int32_t grammar, bool grammar_ready) {
  const ReqPtr req = std::allocate_shared<Req>(std::pmr::polymorphic_allocator<Req>(req_memory()));
  req->rid = std::move(rid);
  req->params = params_of(params);
  const int32_t most = req->params.max_tokens < 0 ? kReservedOutput : req->params.max_tokens;
  req->tokens = tokens_of(ids, std::min(most, kReservedOutput));
  req->prompt_len = req->known();
  for (const Token token : req->tokens) req->largest_token = std::max(req->largest_token, token);
  req->priority = priority;
  req->cache_salt = std::move(cache_salt);
  req->tenant = std::move(tenant);
  req->tenant_weight = weight;
  req->deadline_ttft = deadline_ttft.value_or(-1);
  req->deadline_tpot = deadline_tpot.value_or(-1);
  req->drop_when_late = drop_when_late;
  req->pool = pool;
  req->grammar = grammar;
  req->grammar_ready = grammar_ready;
  return req;
}

std::vector<Token> part(const Req& req, int32_t begin, int32_t end) {
  return {req.tokens.begin() + begin, req.tokens.begin() + end};
}

}  // namespace

void register_sched_req(py::module_& m) {
  py::class_<WaitReason>(m, "WaitReason", "Why a req is not running, with its numbers.")
      .def_property_readonly("code", [](const WaitReason& r) { return name(r.code); })
      .def_readonly("group", &WaitReason::group)
      .def_readonly("needed", &WaitReason::needed)
      .def_readonly("free", &WaitReason::free)
      .def_readonly("evictable", &WaitReason::evictable)
      .def("__str__", &describe);

  py::class_<ReqAccount>(m, "ReqAccount",
                         "What a req cost. Times are on the caller's clock; -1: not yet.")
      .def_readonly("arrival_time", &ReqAccount::arrival_time)
      .def_readonly("first_scheduled_time", &ReqAccount::first_scheduled_time)
      .def_readonly("first_token_time", &ReqAccount::first_token_time)
      .def_readonly("finish_time", &ReqAccount::finish_time)
      .def_readonly("queue_time", &ReqAccount::queue_time)
      .def_readonly("prefill_steps", &ReqAccount::prefill_steps)
      .def_readonly("decode_steps", &ReqAccount::decode_steps)
      .def_readonly("retractions", &ReqAccount::retractions)
      .def_readonly("swaps", &ReqAccount::swaps)
      .def_readonly("swaps_lost", &ReqAccount::swaps_lost)
      .def_readonly("swapped_blocks", &ReqAccount::swapped_blocks)
      .def_readonly("prefill_tokens", &ReqAccount::prefill_tokens)
      .def_readonly("tokens_computed_twice", &ReqAccount::tokens_computed_twice)
      .def_readonly("cached_tokens", &ReqAccount::cached_tokens)
      .def_readonly("recovered_tokens", &ReqAccount::recovered_tokens);

  py::class_<Req, ReqPtr>(m, "Req", "One request; see csrc/sched/req.h.")
      .def(py::init(&make_req), py::arg("rid"), py::arg("origin_input_ids"),
           py::arg("sampling_params") = py::none(), py::kw_only(), py::arg("priority") = 0.0,
           py::arg("cache_salt") = "", py::arg("tenant") = "", py::arg("tenant_weight") = 1.0,
           py::arg("deadline_ttft") = py::none(), py::arg("deadline_tpot") = py::none(),
           py::arg("drop_when_late") = false, py::arg("pool") = false, py::arg("grammar") = 0,
           py::arg("grammar_ready") = true)
      .def_readonly("rid", &Req::rid)
      .def_readonly("parent_rid", &Req::parent_rid)
      .def_readonly("id", &Req::id)
      .def_property_readonly("origin_input_ids",
                             [](const Req& r) { return part(r, 0, r.prompt_len); })
      .def_property_readonly("output_ids",
                             [](const Req& r) { return part(r, r.prompt_len, r.known()); })
      .def_readonly("prompt_len", &Req::prompt_len)
      .def_property_readonly("num_outputs", &Req::num_outputs)
      .def_readonly("num_computed_tokens", &Req::computed)
      .def_readonly("priority", &Req::priority)
      .def_readonly("tenant", &Req::tenant)
      .def_readonly("cache_salt", &Req::cache_salt)
      .def_readonly("seat", &Req::seat)
      .def_readonly("seed", &Req::seed)
      .def_readonly("length_limit", &Req::length_limit,
                    "the length at which it ends, prompt included (set when added)")
      .def_property_readonly("state", [](const Req& r) { return name(r.state); })
      .def_property_readonly("finished", &Req::finished)
      .def_property_readonly("finish_reason",
                             [](const Req& r) -> py::object {
                               if (!r.finished()) return py::none();
                               return py::str(name(r.finish_reason));
                             })
      .def_property_readonly("stop_reason",
                             [](const Req& r) -> py::object {
                               if (r.matched_stop < 0) return py::none();
                               return py::int_(r.matched_stop);
                             })
      .def_readonly("error", &Req::error)
      .def_readonly("account", &Req::account)
      .def(
          "block_table",
          [](const Req& r, size_t group) {
            if (group >= r.tables.size()) throw py::index_error("no such KV group");
            return r.tables[group];
          },
          py::arg("group") = 0)
      .def("__repr__", [](const Req& r) {
        return "<Req '" + r.rid + "' " + name(r.state) + ", " + std::to_string(r.prompt_len) +
               " + " + std::to_string(r.num_outputs()) + " tokens>";
      });
}

}  // namespace stoker
