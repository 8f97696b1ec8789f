// Cuts a product for the Hopper linear kernel and launches it.
#pragma once

#include "cuda/linear_launch.cuh"
#include "cuda/linear_wgmma.cuh"
#include "cuda/linear_wgmma.h"

namespace stoker::cuda::linear_wgmma {

// A product among clusters of so many slices. cost: the time of the busiest block, in chunks.
struct Cut {
  int slices = 0, units = 0, clusters = 0;
  int stages = 0, x_slots = 0, buffers = 0;
  bool resident = false;
  float cost = 0.0f;
};

template <int kRows>
Cut cut_in(int slices, int features, int chunks, int clusters, int shared_bytes) {
  using L = Layout<kRows>;
  Cut cut{.slices = slices, .units = (features + kTile - 1) / kTile};
  cut.clusters = cut.units < clusters ? cut.units : clusters;
  const int rounds = (cut.units + clusters - 1) / clusters;
  const int own = (chunks + slices - 1) / slices;
  cut.buffers = slices == 1 ? 0 : rounds > 1 ? 2 : 1;
  const int room = shared_bytes - L::bytes(0, 0, cut.buffers);
  constexpr int kEnough = 6;  // stages: with fewer the memory idles
  cut.resident = rounds > 1 && own * L::kXBytes + kEnough * L::kWeightBytes <= room;
  cut.stages = cut.resident ? (room - own * L::kXBytes) / L::kWeightBytes
                            : room / (L::kWeightBytes + L::kXBytes);
  if (cut.stages > kMostStages) cut.stages = kMostStages;
  cut.x_slots = cut.resident ? own : cut.stages;
  // Streamed x competes with the weights for L2; sums to send and add cost about two chunks.
  const float chunk = cut.resident ? 1.0f : 1.0f + 0.5f * float(kRows) / kTile;
  cut.cost = float(rounds) * (float(own) * chunk + (slices > 1 ? 2.0f : 1.0f));
  return cut;
}

struct Device {
  int id = -1, clusters = 0, shared_bytes = 0;
};

// Asked for once a thread.
template <typename T, int kRows, int kSlices>
cudaError_t ask(Device& device) {
  int id = 0;
  cudaError_t status = cudaGetDevice(&id);
  if (status != cudaSuccess || id == device.id) return status;
  const auto kernel = linear_wgmma_kernel<T, kRows, kSlices>;
  status = allow_all_shared_memory(kernel, id, &device.shared_bytes);
  if (status == cudaSuccess)
    status = clusters_at_once(kernel, kSlices, kConsumers + kWarp, device.shared_bytes,
                              &device.clusters);
  if (status == cudaSuccess) device.id = id;
  return status;
}

template <typename T, int kRows>
cudaError_t run_rows(const LinearParams& p, const LaunchOptions& how) {
  static thread_local Device devices[4];
  cudaError_t status = ask<T, kRows, 1>(devices[0]);
  if (status == cudaSuccess) status = ask<T, kRows, 2>(devices[1]);
  if (status == cudaSuccess) status = ask<T, kRows, 4>(devices[2]);
  if (status == cudaSuccess) status = ask<T, kRows, 8>(devices[3]);
  if (status != cudaSuccess) return status;
  const int features = p.features * (p.gated ? 2 : 1), chunks = (p.columns + kChunk - 1) / kChunk;
  Cut best;
  for (int i = 0; i < 4; ++i) {
    const Cut cut =
        cut_in<kRows>(1 << i, features, chunks, devices[i].clusters, devices[i].shared_bytes);
    if (i == 0 || cut.cost < best.cost) best = cut;
  }
  Params kernel{.op = p,
                .weights = {},
                .x = {},
                .chunks = chunks,
                .units = best.units,
                .stages = best.stages,
                .x_slots = best.x_slots,
                .buffers = best.buffers,
                .resident = best.resident};
  status = encode_product(kernel.weights, kernel.x, p, kChunk, kTile, kRows);
  if (status != cudaSuccess) return status;
  const Launch where{.grid = dim3(unsigned(best.clusters * best.slices)),
                     .block = dim3(kConsumers + kWarp),
                     .shared_bytes = size_t(devices[0].shared_bytes),
                     .stream = how.stream,
                     .overlap = how.overlap,
                     .cluster = unsigned(best.slices)};
  switch (best.slices) {
    case 1:
      return launch(linear_wgmma_kernel<T, kRows, 1>, where, kernel);
    case 2:
      return launch(linear_wgmma_kernel<T, kRows, 2>, where, kernel);
    case 4:
      return launch(linear_wgmma_kernel<T, kRows, 4>, where, kernel);
    default:
      return launch(linear_wgmma_kernel<T, kRows, 8>, where, kernel);
  }
}

template <typename T>
cudaError_t run_typed(const LinearParams& p, const LaunchOptions& how) {
  return p.rows <= 32 ? run_rows<T, 32>(p, how) : run_rows<T, 64>(p, how);
}

}  // namespace stoker::cuda::linear_wgmma
