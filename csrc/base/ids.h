// The plain integer types that name things, and time. Standard library only.
#pragma once

#include <cstdint>

namespace stoker {

using Token = int32_t;    // a vocabulary index
using BlockId = int32_t;  // a KV block of one group and tier; 0 is the null block
using Seat = int32_t;     // index of a running req in all device-side tables; 0 is padding
using ReqId = int32_t;    // dense handle of a req inside one Scheduler; reused after the req ended
using GroupId = int32_t;  // a KV group
using TimeNs = int64_t;   // nanoseconds on the caller's clock; sched never reads a clock
using BatchId = int64_t;  // sequence number of a ScheduleBatch, from 1
using Ticket = int64_t;   // names one Transfer until its StepResult brings it back

inline constexpr BlockId kNullBlock = 0;
inline constexpr Seat kNoSeat = 0;

}  // namespace stoker
