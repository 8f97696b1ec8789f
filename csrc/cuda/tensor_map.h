// Tensor maps: what the copy engine of sm_90 has to know of a matrix in device memory.
#pragma once

#include <cuda.h>

#include "cuda/ops.h"

namespace stoker::cuda {

// Boxes of 64 columns of a 16-bit tensor of four dimensions, innermost first; what lies past the
// ends comes as zeros.
struct TensorMap {
  cuuint64_t sizes[4];
  cuuint64_t strides[3];  // bytes, of all dimensions but the innermost
  cuuint32_t box[4];
};
cudaError_t encode_tensor_map(CUtensorMap& map, const void* data, Type type, const TensorMap& m);

// Whether this thread's device is a Hopper and the code was compiled for it: PTX for sm_80 runs
// there too.
bool is_hopper();

}  // namespace stoker::cuda
