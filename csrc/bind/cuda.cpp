// stoker._cuda: the ops for NVIDIA GPUs. A table of contents; every function is in one of the files
// it names.
#include "bind/cuda_common.h"
#include "bind/cuda_prefill.h"

#include <string>

#include "base/check.h"

namespace py = pybind11;

namespace stoker {

cuda::LaunchOptions launch_options(const char* op, py::handle tensor, const TensorView& view) {
  if (view.device().device_type != dlpack::kCuda) {
    throw InvalidArgument(std::string(op) + ": tensors must be on a CUDA device");
  }
  // Two calls of the runtime, a few tens of nanoseconds: launches go to the tensor's device.
  int device = -1;
  require_success(cudaGetDevice(&device), op);
  if (device != view.device().device_id) {
    require_success(cudaSetDevice(view.device().device_id), op);
  }
  return {.stream = static_cast<cudaStream_t>(current_stream(tensor, view.device())),
          .overlap = true};
}

cuda::Type cuda_type(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return cuda::Type::float16;
    case DType::bfloat16:
      return cuda::Type::bfloat16;
    case DType::float8_e4m3fn:
      return cuda::Type::float8_e4m3fn;
    default:
      return cuda::Type::float32;
  }
}

void require_success(cudaError_t status, const char* op) {
  if (status == cudaSuccess) [[likely]]
    return;
  throw InternalError(std::string(op) + ": CUDA error " + std::to_string(int(status)) + ", " +
                      cudaGetErrorString(status));
}

}  // namespace stoker

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() =
      "Stoker's ops for NVIDIA GPUs (stoker.ops calls them). Links no torch; the CUDA runtime is "
      "inside.";
  stoker::register_cuda_ops(m);
  stoker::register_cuda_linear(m);
  stoker::register_cuda_attention(m);
  stoker::register_cuda_prefill(m);
  stoker::register_cuda_sample(m);
  stoker::register_cuda_step(m);
}
