// Linear layers for few rows: out = x weight' (+ bias), where reading the weights is all the time
// there is. Semantics: stoker.ops.linear, linear_silu_and_mul, linear_fp8 and quantize_rows.
#pragma once

#include <cstdint>

#include "cuda/ops.h"

namespace stoker::cuda {

struct LinearParams {
  void* out;
  const void* x;
  const void* weight;         // [features, columns], or [2 * features, columns] where gated
  const void* bias;           // [features] of `type`, nullptr: none
  const float* x_scale;       // [rows] and
  const float* weight_scale;  // [weight rows]: x and weight are float8_e4m3fn; else nullptr
  int64_t rows;
  int64_t out_stride, x_stride, weight_stride;  // in elements
  int32_t features, columns;
  bool gated;  // out = silu(x gate') * (x up'), the gate's rows first in weight
  Type type;   // of out and bias, and of x and weight unless they are fp8
};
// Any shape. 16-bit and fp8 rows of whole 16 bytes stream their weights at the memory's speed, once
// for each 64 rows at most, on Hopper where gated for each 256; what else there is goes to a plain
// kernel.
cudaError_t linear(const LinearParams& p, const LaunchOptions& how);

// out [rows, width] float8_e4m3fn, scale [rows]: scale = max |x| / 448 (1 for a row of zeros), out
// = x / scale.
struct QuantizeRowsParams {
  void* out;
  float* scale;
  const void* x;
  int64_t rows, out_stride, x_stride;
  int32_t width;
  Type type;
};
cudaError_t quantize_rows(const QuantizeRowsParams& p, const LaunchOptions& how);

}  // namespace stoker::cuda
