// Names and sizes of the element types.
#include "tensor/tensor_view.h"

namespace stoker {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float8_e4m3fn:
      return "float8_e4m3fn";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
    case DType::uint8:
      return "uint8";
    case DType::boolean:
      return "bool";
    case DType::float64:
      return "float64";
    case DType::other:
      break;
  }
  return "another dtype";
}

DType dtype_of(dlpack::DataType type) {
  if (type.lanes != 1) return DType::other;
  switch (type.code) {
    case dlpack::kFloat:
      return type.bits == 32   ? DType::float32
             : type.bits == 16 ? DType::float16
             : type.bits == 64 ? DType::float64
                               : DType::other;
    case dlpack::kBfloat:
      return type.bits == 16 ? DType::bfloat16 : DType::other;
    case dlpack::kInt:
      return type.bits == 32 ? DType::int32 : type.bits == 64 ? DType::int64 : DType::other;
    case dlpack::kUInt:
      return type.bits == 8 ? DType::uint8 : DType::other;
    case dlpack::kBool:
      return type.bits == 8 ? DType::boolean : DType::other;
    case dlpack::kFloat8E4m3fn:
      return DType::float8_e4m3fn;
    default:
      return DType::other;
  }
}

int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::float16:
    case DType::bfloat16:
      return 2;
    case DType::float8_e4m3fn:
    case DType::uint8:
    case DType::boolean:
      return 1;
    case DType::other:
      break;
  }
  return 0;
}

}  // namespace stoker
