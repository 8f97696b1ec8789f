// Turns a Python tensor into a TensorView through its type's DLPack exchange table: 40 ns a tensor,
// no reference taken. Compiled into _core and _cuda alike. Call with the GIL held; the view lives
// as long as the Python argument.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "tensor/tensor_view.h"

namespace stoker {

// A tensor argument. `name` goes into the TypeError when the object is no tensor.
TensorView view_of(pybind11::handle tensor, const char* name);

// None gives an undefined view (`!view.defined()`).
TensorView optional_view_of(pybind11::handle tensor, const char* name);

// torch's current stream on that tensor's device (null on the CPU).
void* current_stream(pybind11::handle tensor, dlpack::Device device);

}  // namespace stoker
