// How a req stands, as a dict of plain values.
#include "bind/loop_look.h"

namespace stoker {

namespace py = pybind11;

py::dict as_dict(const ReqLook& look) {
  using namespace py::literals;
  const ReqAccount& a = look.account;
  return py::dict(
      "rid"_a = look.rid, "tenant"_a = look.tenant, "state"_a = name(look.state),
      "prefilling"_a = look.prefilling, "wait_code"_a = name(look.wait.code),
      "wait"_a = look.wait.code == WaitCode::none ? "" : describe(look.wait),
      "needed"_a = look.wait.needed, "free"_a = look.wait.free, "evictable"_a = look.wait.evictable,
      "place"_a = look.place, "prompt_len"_a = look.prompt_len, "num_outputs"_a = look.num_outputs,
      "computed"_a = look.computed, "length_limit"_a = look.length_limit,
      "num_blocks"_a = look.num_blocks, "priority"_a = look.priority,
      "arrival_time"_a = a.arrival_time, "first_scheduled_time"_a = a.first_scheduled_time,
      "first_token_time"_a = a.first_token_time, "prefill_steps"_a = a.prefill_steps,
      "decode_steps"_a = a.decode_steps, "retractions"_a = a.retractions, "swaps"_a = a.swaps,
      "cached_tokens"_a = a.cached_tokens);
}

}  // namespace stoker
