// Matching and the messages. Strings are made only when something is wrong.
#include "tensor/tensor_matcher.h"

#include <string>

#include "base/check.h"

namespace stoker {
namespace {

std::string shape_text(const TensorView& tensor) {
  std::string text = "[";
  for (int32_t i = 0; i < tensor.ndim(); ++i) {
    if (i) text += ", ";
    text += std::to_string(tensor.size(i));
  }
  return text + "]";
}

std::string pattern_text(std::initializer_list<Extent> shape) {
  std::string text = "[";
  for (const Extent& extent : shape) {
    if (text.size() > 1) text += ", ";
    if (extent.dim) {
      text += extent.dim->name;
      if (extent.dim->value >= 0) {
        text += "=";
        text += std::to_string(extent.dim->value);
      }
    } else {
      text += extent.value == kAnySize ? "*" : std::to_string(extent.value);
    }
  }
  return text + "]";
}

std::string device_text(dlpack::Device device) {
  switch (device.device_type) {
    case dlpack::kCpu:
      return "cpu";
    case dlpack::kCudaHost:
      return "cpu (pinned)";
    case dlpack::kCuda:
      return "cuda:" + std::to_string(device.device_id);
    default:
      return "device type " + std::to_string(device.device_type);
  }
}

// Pinned host memory is CPU memory to everything that runs on the CPU.
bool same_device(dlpack::Device a, dlpack::Device b) {
  const int32_t type_a = a.device_type == dlpack::kCudaHost ? dlpack::kCpu : a.device_type;
  const int32_t type_b = b.device_type == dlpack::kCudaHost ? dlpack::kCpu : b.device_type;
  return type_a == type_b && (type_a == dlpack::kCpu || a.device_id == b.device_id);
}

std::string set_text(DTypeSet allowed) {
  std::string text;
  for (int i = 0; i < int(DType::other); ++i) {
    if (!(allowed >> i & 1)) continue;
    if (!text.empty()) text += " or ";
    text += dtype_name(DType(i));
  }
  return text;
}

}  // namespace

void TensorMatcher::fail(const char* name, const char* what) const {
  throw InvalidArgument(std::string(op_) + ": " + name + " " + what);
}

TensorMatcher::Argument TensorMatcher::operator()(const TensorView& tensor, const char* name,
                                                  std::initializer_list<Extent> shape,
                                                  uint32_t free) const {
  if (tensor.ndim() != int32_t(shape.size())) [[unlikely]] {
    fail(name, ("has shape " + shape_text(tensor) + ", expected " + pattern_text(shape)).c_str());
  }
  int32_t i = 0;
  for (const Extent& extent : shape) {
    const int64_t size = tensor.size(i);
    const int64_t wanted = extent.dim ? extent.dim->value : extent.value;
    if (wanted < 0) {
      if (extent.dim) extent.dim->value = size;
    } else if (size != wanted) [[unlikely]] {
      fail(name, ("has size " + std::to_string(size) + " in dimension " + std::to_string(i) +
                  ", expected " + pattern_text(shape) + ", got " + shape_text(tensor))
                     .c_str());
    }
    ++i;
  }
  if (!same_device(tensor.device(), device_)) [[unlikely]] {
    fail(name,
         ("is on " + device_text(tensor.device()) + ", expected " + device_text(device_)).c_str());
  }
  int64_t dense = 1;
  for (int32_t dim = tensor.ndim() - 1; dim >= 0; --dim) {
    const int64_t size = tensor.size(dim);
    // A dimension of size 1 or 0 has no stride that matters.
    if (size > 1 && tensor.stride(dim) != dense && !(free >> dim & 1)) [[unlikely]] {
      fail(name, ("has stride " + std::to_string(tensor.stride(dim)) + " in dimension " +
                  std::to_string(dim) + ", expected " + std::to_string(dense))
                     .c_str());
    }
    dense *= size;
  }
  return {*this, tensor, name};
}

void TensorMatcher::Argument::dtype(DType wanted) const {
  if (tensor_.dtype() != wanted) [[unlikely]]
    fail_dtype(dtype_name(wanted));
}

void TensorMatcher::Argument::dtype(DTypeSlot& slot, DTypeSet allowed) const {
  if (slot.value == DType::other) {
    dtype_in(allowed);
    slot.value = tensor_.dtype();
  } else if (tensor_.dtype() != slot.value) [[unlikely]] {
    fail_dtype((std::string(dtype_name(slot.value)) + ", the dtype of " + slot.of).c_str());
  }
}

void TensorMatcher::Argument::dtype_in(DTypeSet allowed) const {
  if (!(allowed >> int(tensor_.dtype()) & 1) || tensor_.dtype() == DType::other) [[unlikely]]
    fail_dtype(set_text(allowed).c_str());
}

void TensorMatcher::Argument::fail_dtype(const char* wanted) const {
  matcher_.fail(
      name_, (std::string("is ") + dtype_name(tensor_.dtype()) + ", expected " + wanted).c_str());
}

}  // namespace stoker
