// Checks the tensors of one op call: a line an argument, sizes by name. The first tensor that has a
// named size binds it, later ones must agree; an error names the op, the argument and the
// dimension.
//
//   Dim tokens{"T"}, hidden{"H"};
//   DTypeSlot type{"x"};
//   TensorMatcher match("rms_norm", x.device());
//   match(x, "x", {tokens, hidden}, free_strides(0)).dtype(type, kModelTypes);
//   match(weight, "weight", {hidden}).dtype(type);
#pragma once

#include <cstdint>
#include <initializer_list>

#include "tensor/tensor_view.h"

namespace stoker {

// A size that the first tensor binds.
struct Dim {
  const char* name;
  int64_t value = -1;
};

// An element type that the first tensor binds; `of` is that tensor's name, for messages.
struct DTypeSlot {
  const char* of;
  DType value = DType::other;
};

// What a dimension must be: a Dim, a number, or anything (kAnySize).
struct Extent {
  Extent(Dim& named) : dim(&named) {}  // NOLINT: conversion is the point
  Extent(int64_t number) : value(number) {}
  Dim* dim = nullptr;
  int64_t value = -1;
};
inline constexpr int64_t kAnySize = -1;

using DTypeSet = uint32_t;
constexpr DTypeSet operator|(DType a, DType b) { return (1u << int(a)) | (1u << int(b)); }
constexpr DTypeSet operator|(DTypeSet a, DType b) { return a | (1u << int(b)); }
inline constexpr DTypeSet kModelTypes = DType::float32 | DType::float16 | DType::bfloat16;

// Dimensions whose stride may be anything (rows of a wider tensor): free_strides(0),
// free_strides(0, 1).
template <typename... Index>
constexpr uint32_t free_strides(Index... dims) {
  return (0u | ... | (1u << dims));
}

class TensorMatcher {
 public:
  // Every tensor must be on `device`.
  TensorMatcher(const char* op, dlpack::Device device) : op_(op), device_(device) {}

  // What operator() gives back: the dtype is checked in the same line.
  class Argument {
   public:
    Argument(const TensorMatcher& matcher, const TensorView& tensor, const char* name)
        : matcher_(matcher), tensor_(tensor), name_(name) {}
    void dtype(DType wanted) const;
    // Binds the slot to one of `allowed`, or asks for what it is bound to.
    void dtype(DTypeSlot& slot, DTypeSet allowed = ~0u) const;
    void dtype_in(DTypeSet allowed) const;

   private:
    [[noreturn]] void fail_dtype(const char* wanted) const;

    const TensorMatcher& matcher_;
    const TensorView& tensor_;
    const char* name_;
  };

  // Shape, device and strides: dense row-major, except for the strides named free.
  Argument operator()(const TensorView& tensor, const char* name,
                      std::initializer_list<Extent> shape, uint32_t free = 0) const;

  // Throws InvalidArgument: "<op>: <name> <what>".
  [[noreturn]] void fail(const char* name, const char* what) const;
  void require(bool holds, const char* name, const char* what) const {
    if (!holds) [[unlikely]]
      fail(name, what);
  }

 private:
  const char* op_;
  dlpack::Device device_;
};

}  // namespace stoker
