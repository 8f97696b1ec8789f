// Merging the softmax of one split of KV into that of the splits before it: the same arithmetic
// wherever they ran.
#pragma once

#include "cuda/common.cuh"

namespace stoker::cuda::prefill {

// What one thread holds of a finished split: two rows' maxima and sums (the sums already summed
// over the row's threads).
struct RowState {
  float maximum[2];
  float sum[2];
};

// What results of (earlier, later) are multiplied with when the two are merged.
struct MergeWeights {
  float earlier[2], later[2];
};

// exp2((part - whole) * scale), and 0 for a part that saw nothing.
__device__ __forceinline__ float part_weight(float part, float whole, float scale) {
  return part == -kInfinity ? 0.0f : ptx::exp2((part - whole) * scale);
}

// `earlier` becomes the merged state.
__device__ __forceinline__ MergeWeights merge_rows(RowState& earlier, const RowState& later,
                                                   float scale) {
  MergeWeights w;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float whole = fmaxf(earlier.maximum[r], later.maximum[r]);
    w.earlier[r] = part_weight(earlier.maximum[r], whole, scale);
    w.later[r] = part_weight(later.maximum[r], whole, scale);
    earlier.sum[r] = __fmaf_rn(later.sum[r], w.later[r], __fmul_rn(earlier.sum[r], w.earlier[r]));
    earlier.maximum[r] = whole;
  }
  return w;
}

__device__ __forceinline__ float merge_value(float earlier, float later, const MergeWeights& w,
                                             int r) {
  return __fmaf_rn(later, w.later[r], __fmul_rn(earlier, w.earlier[r]));
}

}  // namespace stoker::cuda::prefill
