// Gated linear layers for many rows on Hopper, up to 256 at once: 16-bit, features in whole eights,
// all of them aligned to 16 bytes. A file each.
#pragma once

#include "cuda/linear.h"

namespace stoker::cuda::linear_gated {

// Tiles of `width` weight rows, half of them the gate's; clusters of `share` blocks.
inline constexpr int kWidths[] = {48, 64, 80, 96, 112, 128, 160, 192, 224};
inline constexpr int kMostShare = 2;
// Rows of x, 64 of a warpgroup, whose sums fit into registers.
constexpr int most_rows(int width) { return width <= 128 ? 256 : 128; }
inline constexpr int kMostRows = 256;
struct Cut {
  int width = 0, share = 1;
};
cudaError_t run_bf16(const LinearParams& p, const LaunchOptions& how, const Cut& cut);
cudaError_t run_fp16(const LinearParams& p, const LaunchOptions& how, const Cut& cut);

}  // namespace stoker::cuda::linear_gated
