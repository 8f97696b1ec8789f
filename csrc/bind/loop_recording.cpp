// The step trace as dicts, and what the recorder kept as lists of plain tuples.
#include "bind/loop_recording.h"

#include <algorithm>
#include <vector>

namespace stoker {

namespace py = pybind11;

py::dict trace_entry(const StepTrace& t) {
  using namespace py::literals;
  const StepStats& s = t.stats;
  return py::dict(
      "batch_id"_a = s.batch_id, "began"_a = t.began, "committed"_a = t.committed,
      "receive_ns"_a = t.receive_ns, "schedule_ns"_a = t.schedule_ns, "launch_ns"_a = t.launch_ns,
      "collect_ns"_a = t.collect_ns, "mask_ns"_a = t.mask_ns, "commit_ns"_a = t.commit_ns,
      "device_ns"_a = t.device_ns, "in_flight"_a = t.in_flight, "status"_a = t.status,
      "num_tokens"_a = s.num_tokens, "num_decode_rows"_a = s.num_decode_rows,
      "num_prefill_rows"_a = s.num_prefill_rows, "num_sampled_rows"_a = s.num_sampled_rows,
      "num_running"_a = s.num_running, "num_waiting"_a = s.num_waiting,
      "num_swapped"_a = s.num_swapped, "num_admitted"_a = s.num_admitted,
      "num_preempted"_a = s.num_preempted, "cached_tokens"_a = s.cached_tokens,
      "recomputed_tokens"_a = s.recomputed_tokens, "num_transfers"_a = s.num_transfers,
      "free_blocks"_a = s.blocks[0].free, "used_blocks"_a = s.blocks[0].used,
      "cached_blocks"_a = s.blocks[0].cached, "draining_blocks"_a = s.blocks[0].draining,
      "host_blocks"_a = std::max(s.host_blocks[0].total - 1, 0),
      "host_used_blocks"_a = s.host_blocks[0].used + s.host_blocks[0].draining,
      "num_sat_out"_a = s.num_sat_out, "new_token_ratio"_a = s.new_token_ratio);
}

namespace {

// One tuple for each entry.
template <typename T, typename Row>
py::list listed(const std::vector<T>& entries, Row row) {
  py::list out(entries.size());
  for (size_t i = 0; i < entries.size(); ++i) out[i] = row(entries[i]);
  return out;
}

}  // namespace

py::dict as_dict(const Recording& r) {
  using namespace py::literals;
  return py::dict(
      "steps"_a = listed(r.steps, trace_entry),
      "rows"_a = listed(r.rows,
                        [](const RecordedRow& row) {
                          return py::make_tuple(row.batch_id, row.key, row.seat, row.num_tokens,
                                                row.kv_len, row.decodes);
                        }),
      "tokens"_a = listed(
          r.tokens,
          [](const RecordedTokens& t) { return py::make_tuple(t.batch_id, t.key, t.count); }),
      "changes"_a = listed(r.changes,
                           [](const RecordedChange& c) {
                             return py::make_tuple(c.batch_id, c.time, c.key, name(c.state),
                                                   name(c.wait.code), c.wait.needed, c.wait.free,
                                                   c.wait.evictable);
                           }),
      "reqs"_a = listed(r.reqs,
                        [](const RecordedReq& q) {
                          return py::make_tuple(q.key, q.rid, q.prompt_len, q.arrival_time);
                        }),
      "ends"_a = listed(r.ends,
                        [](const RecordedEnd& e) {
                          return py::make_tuple(e.batch_id, e.key, name(e.reason), e.num_outputs,
                                                e.retractions, e.swaps, e.cached_tokens,
                                                e.first_scheduled_time, e.first_token_time,
                                                e.finish_time);
                        }),
      "dropped_steps"_a = r.dropped_steps);
}

}  // namespace stoker
