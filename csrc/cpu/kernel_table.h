// The kernels of one instruction set, as pointers; which table is used is decided once, at run
// time.
#pragma once

#include <cstdint>

#include "cpu/params.h"

namespace stoker::cpu {

// Row and token ranges are [begin, end). Scratch is 64-byte aligned.
struct KernelTable {
  const char* isa;
  void (*rms_norm)(const NormParams&, int64_t begin, int64_t end);
  void (*add_rms_norm)(const NormParams&, int64_t begin, int64_t end);
  void (*activation_and_mul)(const ActivationParams&, int64_t begin, int64_t end);
  void (*rope_and_cache)(const RopeParams&, int64_t begin, int64_t end);
  void (*attention)(const AttentionParams&, const AttentionItem&, float* scratch);
  // Merges the partials of `num_splits` splits, in order, and writes `out`.
  void (*attention_merge)(const AttentionParams&, const AttentionItem&, int64_t num_splits,
                          float* scratch);
  // Fills `laid_out` for rows [begin, end) of x.
  void (*linear_lay_out)(const LinearParams&, int64_t begin, int64_t end);
  // Features [begin, end), at most kLinearBlock, of all rows.
  void (*linear)(const LinearParams&, int64_t begin, int64_t end);
  void (*sample)(const SampleParams&, int64_t row, void* scratch);
};

// Bytes of scratch that `sample` needs for one row.
int64_t sample_scratch_bytes(int64_t vocab);

const KernelTable& portable_kernels();
#if defined(__x86_64__)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& avx512_bf16_kernels();
#endif

// The table in use: the best that the processor has, or what STOKER_CPU_ISA names (portable, avx2,
// avx512, avx512_bf16).
const KernelTable& kernels();

// Chooses by name, for tests and measurements; throws InvalidArgument naming what this processor
// has.
void set_isa(const char* name);

// Names of what this processor can run, best last; returns how many.
int32_t supported_isas(const char* (&names)[4]);

}  // namespace stoker::cpu
