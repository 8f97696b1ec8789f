// The prefill half of paged attention on the GPU, as cuda_attention.cpp calls it and as Python sees
// it.
#pragma once

#include <pybind11/pybind11.h>

#include "cuda/ops.h"
#include "tensor/tensor_matcher.h"

namespace stoker {

// The checked tensors of a paged_attention call.
struct PrefillTensors {
  const TensorView &out, &q, &k_cache, &v_cache, &block_table, &row_seat, &row_indptr, &row_kv_len;
};

struct PrefillOptions {
  double scale;
  int32_t window;
  double soft_cap;
  double k_scale, v_scale;
};

// Runs the plan's prefill items: the rows after the decode rows. False, and nothing done, where no
// prefill kernel takes these tensors or the plan was made without prefill tiles.
bool run_prefill(const PrefillTensors& tensors, pybind11::handle plan, const TensorMatcher& match,
                 const PrefillOptions& options, const cuda::LaunchOptions& how);

void register_cuda_prefill(pybind11::module_& m);

}  // namespace stoker
