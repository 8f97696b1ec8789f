// The kernels compiled for AVX2.
#include <immintrin.h>
#include <cstdint>

#include "cpu/kernel_table.h"

namespace stoker::cpu {
namespace {

#include "cpu/scalar.inl"
//
#include "cpu/vec_avx2.inl"
//
#include "cpu/kernels.inl"

constexpr KernelTable kTable = make_table("avx2");

}  // namespace

const KernelTable& avx2_kernels() { return kTable; }

}  // namespace stoker::cpu
