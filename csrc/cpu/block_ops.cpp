// Copies of whole KV blocks.
#include <cstring>

#include "cpu/ops.h"
#include "cpu/thread_pool.h"

namespace stoker::cpu {

void copy_blocks(const BlockCopy& c) {
  const double work_ns = double(c.count) * double(c.block_bytes) * 0.2;
  parallel_rows(c.count, work_ns, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(c.destination + c.pairs[2 * i + 1] * c.destination_stride,
                  c.source + c.pairs[2 * i] * c.source_stride, size_t(c.block_bytes));
    }
  });
}

}  // namespace stoker::cpu
