// What one step has to do, counted from its batch (all but from_idle): what every cost model is a
// function of.
#pragma once

#include <cstdint>

#include "sched/schedule_batch.h"

namespace stoker::sim {

struct StepWork {
  int64_t rows = 0;
  int64_t chunk_rows = 0;    // rows of more than one token
  int64_t tokens = 0;        // of all rows
  int64_t chunk_tokens = 0;  // of chunk rows
  int64_t sampled = 0;       // output rows that go through the head
  double decode_kv = 0;      // KV positions that one-token rows read
  double chunk_kv = 0;       // KV positions that chunk rows read, each once a row
  double scores = 0;         // (query, key) pairs of chunk rows
  int64_t from_idle = 0;     // 1: nothing was in flight when it was launched
  int64_t device_copies = 0,
          host_copies = 0;  // blocks moved inside the device; to or from the host
};

// `window` > 0: that share of the layers sees the last `window` positions only.
StepWork count_work(const BatchBuffer& batch, int32_t window, double windowed_share);

}  // namespace stoker::sim
