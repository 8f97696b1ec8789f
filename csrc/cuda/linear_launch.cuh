// What launching the linear kernels has in common: how many clusters run at once, and the tensor
// maps of a product.
#pragma once

#include "cuda/common.cuh"
#include "cuda/linear.h"
#include "cuda/tensor_map.h"

namespace stoker::cuda {

// Clusters of `size` blocks that the device runs at once, at least 1, where each block takes all
// the shared memory that one may have (`shared_bytes`) and with it a multiprocessor.
template <typename Kernel>
cudaError_t clusters_at_once(Kernel kernel, int size, int threads, int shared_bytes,
                             int* clusters) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(size);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(size));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
  if (status == cudaSuccess && *clusters < 1) *clusters = 1;
  return status;
}

// The shared memory that a block of `kernel` may have, all of which it is allowed to ask for.
template <typename Kernel>
cudaError_t allow_all_shared_memory(Kernel kernel, int device, int* bytes) {
  const cudaError_t status =
      cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return status != cudaSuccess
             ? status
             : cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, *bytes);
}

// weights: boxes of `columns` columns and `weight_rows` rows, where gated by turns 8 of the gate
// and the 8 of up that belong to them. x: boxes of `columns` and `x_rows`.
inline cudaError_t encode_product(CUtensorMap& weights, CUtensorMap& x, const LinearParams& p,
                                  int columns, int weight_rows, int x_rows) {
  const auto width = cuuint64_t(p.columns), stride = cuuint64_t(p.weight_stride) * 2;
  const auto features = cuuint64_t(p.features);
  const cuuint32_t parts = p.gated ? 2 : 1;
  const cudaError_t status =
      encode_tensor_map(weights, p.weight, p.type,
                        {{width, 8, parts, features / 8},
                         {stride, stride * features, stride * 8},
                         {cuuint32_t(columns), 8, parts, cuuint32_t(weight_rows) / 8 / parts}});
  if (status != cudaSuccess) return status;
  const auto rows = cuuint64_t(p.rows), x_stride = cuuint64_t(p.x_stride) * 2;
  return encode_tensor_map(x, p.x, p.type,
                           {{width, rows, 1, 1},
                            {x_stride, x_stride * rows, x_stride * rows},
                            {cuuint32_t(columns), cuuint32_t(x_rows), 1, 1}});
}

}  // namespace stoker::cuda
