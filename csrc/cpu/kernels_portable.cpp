// The kernels compiled for any processor.

#include <cstdint>

#include "cpu/kernel_table.h"

namespace stoker::cpu {
namespace {

#include "cpu/scalar.inl"
//
#include "cpu/vec_portable.inl"
//
#include "cpu/kernels.inl"

constexpr KernelTable kTable = make_table("portable");

}  // namespace

const KernelTable& portable_kernels() { return kTable; }

}  // namespace stoker::cpu
