// Cuts a linear layer's rows and features into tasks for the threads. How it is cut changes no
// result.
#include <algorithm>

#include "cpu/kernel_table.h"
#include "cpu/ops.h"
#include "cpu/thread_pool.h"

namespace stoker::cpu {
namespace {

// Elements of a row once it is laid out: whole steps of the widest vectors.
int64_t padded(int64_t inner) { return (inner + 31) / 32 * 32; }

// Rows that are laid out at once: whole register blocks, and so many that reading the weights again
// for the next ones costs little.
constexpr int64_t kRowsAtOnce = 240;
// A task's weights stay in the second level cache while the rows go by.
constexpr int64_t kTaskBytes = 256 << 10;

}  // namespace

double linear_work_ns(const LinearParams& p) {
  // Measured on one AVX-512 core: weights come in at about 10 GB/s, a product takes 0.02 ns.
  const double elements = double(p.features) * double(p.inner);
  const double bytes = p.type == Type::float32 ? 4 : 2;
  return elements * std::max(bytes * 0.1, double(p.rows) * 0.02);
}

void linear(const LinearParams& all, double work_ns) {
  const KernelTable& table = kernels();
  const int64_t element = all.type == Type::float32 ? 4 : 2;
  const int64_t width = padded(all.inner);
  const int64_t by_size = kTaskBytes / (element * std::max<int64_t>(width, 1)) / 4 * 4;
  const int64_t block = std::clamp<int64_t>(by_size, 4, kLinearBlock);
  LinearParams p = all;
  p.laid_out_stride = width;
  p.laid_out = reinterpret_cast<float*>(
      caller_scratch(size_t(std::min(all.rows, kRowsAtOnce) * width) * sizeof(float)));
  for (int64_t row = 0; row < all.rows; row += kRowsAtOnce) {
    p.rows = std::min(kRowsAtOnce, all.rows - row);
    p.x = static_cast<const char*>(all.x) + row * all.x_stride * element;
    p.out = static_cast<char*>(all.out) + row * all.out_stride * element;
    parallel_rows(p.rows, double(p.rows * width) * 0.3,
                  [&](int64_t begin, int64_t end) { table.linear_lay_out(p, begin, end); });
    parallel_for((p.features + block - 1) / block, work_ns, [&](int64_t task) {
      table.linear(p, task * block, std::min(p.features, (task + 1) * block));
    });
  }
}

}  // namespace stoker::cpu
