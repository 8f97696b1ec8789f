// What the files of _cuda share: element types, launch options of a call, and errors of the CUDA
// runtime.
#pragma once

#include <pybind11/pybind11.h>

#include "bind/tensor_caster.h"
#include "cuda/ops.h"
#include "tensor/tensor_matcher.h"

namespace stoker {

// Launches on torch's current stream of the tensor's device. InvalidArgument where that is no CUDA
// device.
cuda::LaunchOptions launch_options(const char* op, pybind11::handle tensor, const TensorView& view);

cuda::Type cuda_type(DType dtype);

// InternalError with the runtime's words, unless the call went well.
void require_success(cudaError_t status, const char* op);

void register_cuda_ops(pybind11::module_& m);
void register_cuda_linear(pybind11::module_& m);
void register_cuda_attention(pybind11::module_& m);
void register_cuda_sample(pybind11::module_& m);
void register_cuda_step(pybind11::module_& m);

}  // namespace stoker
