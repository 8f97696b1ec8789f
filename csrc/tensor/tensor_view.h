// A tensor as the ops see it: a pointer, sizes, strides, a type and a device. Owns nothing.
#pragma once

#include <cstdint>

#include "tensor/dlpack.h"

namespace stoker {

enum class DType : uint8_t {
  float32,
  float16,
  bfloat16,
  float8_e4m3fn,
  int32,
  int64,
  uint8,
  boolean,
  float64,
  other,
};

const char* dtype_name(DType dtype);
DType dtype_of(dlpack::DataType type);
int64_t dtype_bytes(DType dtype);  // 0 for `other`

// Valid for as long as the tensor it was made from is kept alive and not resized: one op call.
class TensorView {
 public:
  TensorView() = default;
  explicit TensorView(const dlpack::Tensor& tensor)
      : tensor_(tensor), dtype_(dtype_of(tensor.dtype)) {}

  template <typename T = void>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(tensor_.data) + tensor_.byte_offset);
  }
  int32_t ndim() const { return tensor_.ndim; }
  int64_t size(int32_t dim) const { return tensor_.shape[dim]; }
  int64_t stride(int32_t dim) const { return tensor_.strides[dim]; }  // elements
  DType dtype() const { return dtype_; }
  dlpack::Device device() const { return tensor_.device; }
  bool defined() const { return tensor_.shape != nullptr || tensor_.ndim != 0; }
  int64_t numel() const {
    int64_t count = 1;
    for (int32_t i = 0; i < tensor_.ndim; ++i) count *= tensor_.shape[i];
    return count;
  }

 private:
  dlpack::Tensor tensor_{};
  DType dtype_ = DType::other;
};

}  // namespace stoker
