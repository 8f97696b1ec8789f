// All kernels of one instruction set, and their table. The including file has opened an anonymous
// namespace inside stoker::cpu and included its vector vocabulary: nothing here may have external
// linkage, or one instruction set's copy could be linked into another's path (a test looks at the
// object files).

// clang-format off: each needs those above it
#include "cpu/math.inl"
#include "cpu/norm.inl"
#include "cpu/activation.inl"
#include "cpu/rope.inl"
#include "cpu/attention_blocks.inl"
#include "cpu/attention.inl"
#include "cpu/linear.inl"
#include "cpu/sample_candidates.inl"
#include "cpu/sample.inl"
// clang-format on

constexpr KernelTable make_table(const char* isa) {
  return {isa,
          rms_norm,
          add_rms_norm,
          activation_and_mul,
          rope_and_cache,
          attention,
          attention_merge,
          linear_lay_out,
          linear,
          sample};
}
