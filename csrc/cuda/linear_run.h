// The streaming linear kernel's instantiations, a file for each pair of types, and how deep their
// rings of weights are.
#pragma once

#include "cuda/common.cuh"

namespace stoker::cuda::linear_rows {

struct KernelParams;
inline constexpr int kDeep = 6;     // 96 KB: two blocks share a multiprocessor of sm_80 and sm_90
inline constexpr int kShallow = 3;  // where x or the device leaves no room for more

cudaError_t run_bf16(const KernelParams& p, const Launch& where, int stages);
cudaError_t run_fp16(const KernelParams& p, const Launch& where, int stages);
cudaError_t run_bf16_fp8(const KernelParams& p, const Launch& where, int stages);
cudaError_t run_fp16_fp8(const KernelParams& p, const Launch& where, int stages);

}  // namespace stoker::cuda::linear_rows
