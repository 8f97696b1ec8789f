// The kernels compiled for AVX-512 with bf16 dot products.
#include <immintrin.h>
#include <cstdint>

#include "cpu/kernel_table.h"

namespace stoker::cpu {
namespace {

#include "cpu/scalar.inl"
//
#include "cpu/vec_avx512.inl"
//
#include "cpu/kernels.inl"

constexpr KernelTable kTable = make_table("avx512_bf16");

}  // namespace

const KernelTable& avx512_bf16_kernels() { return kTable; }

}  // namespace stoker::cpu
