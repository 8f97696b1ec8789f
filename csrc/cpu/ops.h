// The CPU ops on raw pointers: each spreads its rows or walks over the threads and calls the
// kernels in use.
#pragma once

#include <cstdint>

#include "cpu/params.h"

namespace stoker::cpu {

// row_indptr [rows + 1] and row_kv_len, row_seat [rows] as in docs/interfaces.md; already checked.
struct AttentionRows {
  const int32_t* seat;
  const int32_t* indptr;
  const int32_t* kv_len;
  int64_t count;
};

// A guess of what the call costs on one thread, in ns: decides about threads and about giving up
// the GIL.
double attention_work_ns(const AttentionParams& params, const AttentionRows& rows);

void paged_attention(const AttentionParams& params, const AttentionRows& rows, double work_ns);

// What it costs on one thread, in ns; then the op. `laid_out` is set inside.
double linear_work_ns(const LinearParams& params);
void linear(const LinearParams& params, double work_ns);

// Copies of whole blocks: pairs [count][2] of source and destination, strides and sizes in bytes.
struct BlockCopy {
  const char* source;
  char* destination;
  int64_t source_stride, destination_stride, block_bytes;
  const int32_t* pairs;
  int64_t count;
};
void copy_blocks(const BlockCopy& copy);

}  // namespace stoker::cpu
