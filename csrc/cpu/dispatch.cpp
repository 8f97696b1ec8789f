// Chooses the instruction set: the best that the processor and the operating system support, unless
// told otherwise.
#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/check.h"
#include "cpu/kernel_table.h"

namespace stoker::cpu {
namespace {

using TableGetter = const KernelTable& (*)();

int32_t supported(TableGetter (&getters)[4]) {
  int32_t count = 0;
  getters[count++] = portable_kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx2) getters[count++] = avx2_kernels;
  if (avx512) getters[count++] = avx512_kernels;
  if (avx512 && __builtin_cpu_supports("avx512bf16")) getters[count++] = avx512_bf16_kernels;
#endif
  return count;
}

const KernelTable& find(const char* name) {
  TableGetter getters[4];
  const int32_t count = supported(getters);
  if (!name || !*name) return getters[count - 1]();
  std::string known;
  for (int32_t i = 0; i < count; ++i) {
    const KernelTable& table = getters[i]();
    if (std::string_view(name) == table.isa) return table;
    known += i ? ", " : "";
    known += table.isa;
  }
  throw InvalidArgument("STOKER_CPU_ISA: '" + std::string(name) +
                        "' is not available here; this processor has " + known);
}

std::atomic<const KernelTable*> g_table{nullptr};

}  // namespace

const KernelTable& kernels() {
  const KernelTable* table = g_table.load(std::memory_order_acquire);
  if (!table) [[unlikely]] {
    table = &find(std::getenv("STOKER_CPU_ISA"));
    g_table.store(table, std::memory_order_release);
  }
  return *table;
}

void set_isa(const char* name) { g_table.store(&find(name), std::memory_order_release); }

int32_t supported_isas(const char* (&names)[4]) {
  TableGetter getters[4];
  const int32_t count = supported(getters);
  for (int32_t i = 0; i < count; ++i) names[i] = getters[i]().isa;
  return count;
}

// x, weights, candidates and spare of the row, the buckets, the sums of blocks, and rounding to 64
// bytes.
int64_t sample_scratch_bytes(int64_t vocab) {
  const int64_t size = (vocab + 63) / 64 * 64;
  return size * 32 + 4096 * 12 + (size / 256 + 1) * 8 + 64;
}

}  // namespace stoker::cpu
