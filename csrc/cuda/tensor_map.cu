// Makes tensor maps, and tells whether there is a copy engine to take them.
#include "cuda/tensor_map.h"

#include "cuda/common.cuh"

namespace stoker::cuda {
namespace {

__global__ void probe() {}

using Encode = decltype(&cuTensorMapEncodeTiled);

// From the driver that is loaded, so that nothing links it.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Encode>(function)
             : nullptr;
}

}  // namespace

cudaError_t encode_tensor_map(CUtensorMap& map, const void* data, Type type, const TensorMap& m) {
  static const Encode encode = find_encode();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUresult result = encode(
      &map,
      type == Type::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      4, const_cast<void*>(data), m.sizes, m.strides, m.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Asked for once a thread and device.
bool is_hopper() {
  static thread_local int known_device = -1;
  static thread_local bool known = false;
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  if (device == known_device) return known;
  bool compiled = false;
  known =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
      major == 9 && minor == 0 && compiled_for_clusters(probe, &compiled) == cudaSuccess &&
      compiled;
  known_device = device;
  return known;
}

}  // namespace stoker::cuda
