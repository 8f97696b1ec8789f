// _core.cpu: copies of KV blocks, within the cache and to and from host memory.
#include "bind/cpu_kernel.h"

namespace py = pybind11;

namespace stoker {

void register_cpu_blocks(py::module_& ops);

namespace {

// Blocks are copied as bytes: any dtype, the first stride free, the rest dense.
struct BlockView {
  char* data;
  int64_t blocks, stride_bytes, block_bytes;
};
BlockView block_view(const TensorMatcher& match, const TensorView& cache, const char* name) {
  match.require(cache.ndim() >= 1, name, "must have a dimension of blocks");
  const int64_t element = dtype_bytes(cache.dtype());
  match.require(element > 0, name, "has a dtype that is not supported");
  int64_t dense = 1;
  for (int32_t dim = cache.ndim() - 1; dim > 0; --dim) {
    match.require(cache.size(dim) <= 1 || cache.stride(dim) == dense, name,
                  "must be dense behind its first dimension");
    dense *= cache.size(dim);
  }
  return {cache.data<char>(), cache.size(0), cache.stride(0) * element, dense * element};
}

void check_pairs(const TensorMatcher& match, const TensorView& pairs, int64_t sources,
                 int64_t destinations) {
  Dim count{"n"};
  match(pairs, "pairs", {count, 2}).dtype(DType::int32);
  const auto* data = pairs.data<int32_t>();
  for (int64_t i = 0; i < count.value; ++i) {
    match.require(data[2 * i] >= 0 && data[2 * i] < sources, "pairs",
                  "names a source block that does not exist");
    match.require(data[2 * i + 1] >= 0 && data[2 * i + 1] < destinations, "pairs",
                  "names a destination block that does not exist");
  }
}

void copy_between(const BlockView& from, const BlockView& to, const TensorView& pairs) {
  const cpu::BlockCopy copy{from.data,       to.data,          from.stride_bytes,
                            to.stride_bytes, from.block_bytes, pairs.data<int32_t>(),
                            pairs.size(0)};
  run_kernel(double(copy.count) * double(copy.block_bytes) * 0.2, [&] { cpu::copy_blocks(copy); });
}

void copy_blocks(py::handle cache_, py::handle pairs_) {
  const TensorView cache = view_of(cache_, "cache"), pairs = view_of(pairs_, "pairs");
  const TensorMatcher match("copy_blocks", kCpuDevice);
  const BlockView view = block_view(match, cache, "cache");
  check_pairs(match, pairs, view.blocks, view.blocks);
  copy_between(view, view, pairs);
}

void swap_blocks(py::handle device_cache_, py::handle host_cache_, py::handle pairs_,
                 bool to_host) {
  const TensorView device_cache = view_of(device_cache_, "device_cache"),
                   host_cache = view_of(host_cache_, "host_cache"),
                   pairs = view_of(pairs_, "pairs");
  const TensorMatcher match("swap_blocks", kCpuDevice);
  BlockView from = block_view(match, device_cache, "device_cache"),
            to = block_view(match, host_cache, "host_cache");
  match.require(from.block_bytes == to.block_bytes && device_cache.dtype() == host_cache.dtype(),
                "host_cache", "must have blocks of device_cache's shape and dtype");
  if (!to_host) std::swap(from, to);
  check_pairs(match, pairs, from.blocks, to.blocks);
  copy_between(from, to, pairs);
}

}  // namespace

void register_cpu_blocks(py::module_& ops) {
  ops.def("copy_blocks", &copy_blocks);
  ops.def("swap_blocks", &swap_blocks);
}

}  // namespace stoker
