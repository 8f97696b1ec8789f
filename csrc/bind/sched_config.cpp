// Binds SchedulerConfig and KVGroup: keyword arguments in, attributes out.
#include <pybind11/stl.h>

#include "bind/keywords.h"
#include "bind/sched.h"
#include "sched/config.h"

namespace py = pybind11;

namespace stoker {
namespace {

template <typename Class, typename Enum>
void named(py::class_<Class>& c, const char* field, Enum Class::* member,
           Enum (*parse)(std::string_view)) {
  c.def_property(
      field, [member](const Class& self) { return std::string(name_of(self.*member)); },
      [member, parse](Class& self, std::string_view text) { self.*member = parse(text); });
}

}  // namespace

void register_sched_config(py::module_& m) {
  py::class_<KVGroup> group(m, "KVGroup", "Layers that share one kind of KV memory.");
  group.def(py::init([group](const py::kwargs& given) {
    return from_keywords<KVGroup>("KVGroup", py::type(group), given);
  }));
  named(group, "kind", &KVGroup::kind, &kv_kind_of);
  group.def_readwrite("window", &KVGroup::window)
      .def_readwrite("block_size", &KVGroup::block_size)
      .def_readwrite("num_blocks", &KVGroup::num_blocks)
      .def_readwrite("num_host_blocks", &KVGroup::num_host_blocks)
      .def_readwrite("bytes_per_block", &KVGroup::bytes_per_block)
      .def_readwrite("layers", &KVGroup::layers);

  using Geometry = AttentionGeometry;
  py::class_<Geometry> geometry(
      m, "AttentionGeometry",
      "What the attention kernels want a work list for; see csrc/sched/attention_plan.h.");
  geometry
      .def(py::init([geometry](const py::kwargs& given) {
        return from_keywords<Geometry>("AttentionGeometry", py::type(geometry), given);
      }))
      .def_readwrite("num_decode_heads", &Geometry::num_decode_heads)
      .def_readwrite("num_kv_heads", &Geometry::num_kv_heads)
      .def_readwrite("window", &Geometry::window)
      .def_readwrite("num_decode_workers", &Geometry::num_decode_workers)
      .def_readwrite("prefill_tile_tokens", &Geometry::prefill_tile_tokens)
      .def_readwrite("num_prefill_workers", &Geometry::num_prefill_workers)
      .def_readwrite("num_processors", &Geometry::num_processors)
      .def_readwrite("prefill_step_in_tokens", &Geometry::prefill_step_in_tokens);

  using Config = SchedulerConfig;
  py::class_<Config> config(m, "SchedulerConfig",
                            "How a Scheduler is set up; see csrc/sched/config.h.");
  config.def(py::init([config](const py::kwargs& given) {
    return from_keywords<Config>("SchedulerConfig", py::type(config), given);
  }));
  named(config, "batching", &Config::batching, &batching_of);
  named(config, "schedule_policy", &Config::schedule_policy, &policy_of);
  named(config, "admission", &Config::admission, &admission_of);
  named(config, "head_of_line", &Config::head_of_line, &head_of_line_of);
  named(config, "preemption_victim", &Config::preemption_victim, &victim_of);
  named(config, "preemption", &Config::preemption, &preemption_of);
  named(config, "prefix_eviction", &Config::prefix_eviction, &eviction_of);
  named(config, "prefill_split", &Config::prefill_split, &prefill_split_of);
  config.def_readwrite("num_blocks", &Config::num_blocks)
      .def_readwrite("num_host_blocks", &Config::num_host_blocks)
      .def_readwrite("block_size", &Config::block_size)
      .def_readwrite("kv_groups", &Config::kv_groups)
      .def_readwrite("max_num_seqs", &Config::max_num_seqs)
      .def_readwrite("max_num_batched_tokens", &Config::max_num_batched_tokens)
      .def_readwrite("max_model_len", &Config::max_model_len)
      .def_readwrite("vocab_size", &Config::vocab_size)
      .def_readwrite("eos_token_ids", &Config::eos_token_ids)
      .def_readwrite("overlap_depth", &Config::overlap_depth)
      .def_readwrite("enable_prefix_caching", &Config::enable_prefix_caching)
      .def_readwrite("schedule_conservativeness", &Config::schedule_conservativeness)
      .def_readwrite("long_prefill_token_threshold", &Config::long_prefill_token_threshold)
      .def_readwrite("urgent_prefill_token_threshold", &Config::urgent_prefill_token_threshold)
      .def_readwrite("bypass_limit", &Config::bypass_limit)
      .def_readwrite("aging_limit", &Config::aging_limit)
      .def_readwrite("max_running_per_tenant", &Config::max_running_per_tenant)
      .def_readwrite("max_queued_per_tenant", &Config::max_queued_per_tenant)
      .def_readwrite("max_queued_reqs", &Config::max_queued_reqs)
      .def_readwrite("seed", &Config::seed)
      .def_readwrite("attention", &Config::attention)
      .def_readwrite("attention_windows", &Config::attention_windows);
}

}  // namespace stoker
