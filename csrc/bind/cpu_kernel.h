// What the bindings of the CPU ops share: how a dtype is named to the kernels, and when the GIL is
// given back.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "bind/tensor_caster.h"
#include "cpu/kernel_table.h"
#include "cpu/ops.h"
#include "cpu/thread_pool.h"
#include "tensor/tensor_matcher.h"

namespace stoker {

inline constexpr dlpack::Device kCpuDevice{dlpack::kCpu, 0};

inline cpu::Type type_of(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return cpu::Type::float16;
    case DType::bfloat16:
      return cpu::Type::bfloat16;
    case DType::float8_e4m3fn:
      return cpu::Type::float8_e4m3fn;
    default:
      return cpu::Type::float32;
  }
}

// Runs `body` without the GIL where it is long enough for another Python thread to make use of it.
template <typename Body>
void run_kernel(double work_ns, const Body& body) {
  std::optional<pybind11::gil_scoped_release> released;
  if (work_ns > 50e3) released.emplace();
  body();
}

}  // namespace stoker
