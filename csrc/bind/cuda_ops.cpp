// Binds the CUDA ops but attention: checks the tensors of a call and fills the op's parameters.
#include <optional>

#include "bind/cuda_common.h"

namespace py = pybind11;

namespace stoker {
namespace {

void norm(const char* op, py::handle out, py::handle residual, py::handle x, py::handle weight,
          double eps) {
  const TensorView in = view_of(x, "x"), to = view_of(out, "out"), w = view_of(weight, "weight"),
                   res = optional_view_of(residual, "residual");
  const TensorMatcher match(op, in.device());
  Dim tokens{"T"}, heads{"heads"}, hidden{"H"};
  DTypeSlot type{"x"};
  const bool per_head = in.ndim() == 3 && !res.defined();
  if (per_head) {
    match(in, "x", {tokens, heads, hidden}, free_strides(0, 1)).dtype(type, kModelTypes);
    match(to, "out", {tokens, heads, hidden}, free_strides(0, 1)).dtype(type);
  } else {
    match(in, "x", {tokens, hidden}, free_strides(0)).dtype(type, kModelTypes);
    match(to, "out", {tokens, hidden}, free_strides(0)).dtype(type);
  }
  match(w, "weight", {hidden}).dtype(type);
  if (res.defined()) match(res, "residual", {tokens, hidden}, free_strides(0)).dtype(type);
  const cuda::RmsNormParams p{
      .out = to.data(),
      .residual = res.defined() ? res.data() : nullptr,
      .x = in.data(),
      .weight = w.data(),
      .outer = tokens.value,
      .inner = per_head ? heads.value : 1,
      .out_outer_stride = to.stride(0),
      .out_inner_stride = per_head ? to.stride(1) : 0,
      .x_outer_stride = in.stride(0),
      .x_inner_stride = per_head ? in.stride(1) : 0,
      .residual_stride = res.defined() ? res.stride(0) : 0,
      .hidden = int32_t(hidden.value),
      .eps = float(eps),
      .type = cuda_type(type.value),
  };
  require_success(cuda::rms_norm(p, launch_options(op, x, in)), op);
}

void gated(const char* op, cuda::Activation activation, py::handle out, py::handle x) {
  const TensorView in = view_of(x, "x"), to = view_of(out, "out");
  const TensorMatcher match(op, in.device());
  Dim tokens{"T"}, width{"F"};
  DTypeSlot type{"out"};
  match(to, "out", {tokens, width}, free_strides(0)).dtype(type, kModelTypes);
  match(in, "x", {tokens, 2 * width.value}, free_strides(0)).dtype(type);
  const cuda::GatedParams p{.out = to.data(),
                            .x = in.data(),
                            .rows = tokens.value,
                            .out_stride = to.stride(0),
                            .x_stride = in.stride(0),
                            .width = int32_t(width.value),
                            .activation = activation,
                            .type = cuda_type(type.value)};
  require_success(cuda::gated_activation(p, launch_options(op, x, in)), op);
}

void rope_and_cache(py::handle q, py::handle k, py::handle v, py::handle positions,
                    py::handle cos_sin, py::handle k_cache, py::handle v_cache, py::handle slots,
                    py::handle q_norm, py::handle k_norm, double eps, double k_scale,
                    double v_scale) {
  const char* op = "rope_and_cache";
  const TensorView vq = view_of(q, "q"), vk = view_of(k, "k"), vv = view_of(v, "v"),
                   where = view_of(positions, "positions"), table = view_of(cos_sin, "cos_sin"),
                   kc = view_of(k_cache, "k_cache"), vc = view_of(v_cache, "v_cache"),
                   to = view_of(slots, "slots"), qn = optional_view_of(q_norm, "q_norm"),
                   kn = optional_view_of(k_norm, "k_norm");
  const TensorMatcher match(op, vq.device());
  Dim tokens{"T"}, heads{"Hq"}, kv_heads{"Hk"}, dim{"D"}, blocks{"num_blocks"}, size{"block_size"};
  DTypeSlot type{"q"}, cache{"k_cache"};
  match(vq, "q", {tokens, heads, dim}, free_strides(0, 1)).dtype(type, kModelTypes);
  match(vk, "k", {tokens, kv_heads, dim}, free_strides(0, 1)).dtype(type);
  match(vv, "v", {tokens, kv_heads, dim}, free_strides(0, 1)).dtype(type);
  match(where, "positions", {tokens}).dtype(DType::int32);
  match(to, "slots", {tokens}).dtype(DType::int32);
  match(table, "cos_sin", {kAnySize, kAnySize}).dtype(DType::float32);
  match(kc, "k_cache", {blocks, kv_heads, size, dim}, free_strides(0))
      .dtype(cache, type.value | DType::float8_e4m3fn);
  match(vc, "v_cache", {blocks, kv_heads, size, dim}, free_strides(0)).dtype(cache);
  if (qn.defined()) match(qn, "q_norm", {dim}).dtype(type);
  if (kn.defined()) match(kn, "k_norm", {dim}).dtype(type);
  const int64_t rotary = table.size(1);
  match.require(rotary % 2 == 0 && rotary <= dim.value, "cos_sin",
                "must have an even number of columns, at most the head dim");
  match.require(dim.value % 2 == 0 && dim.value <= 256, "q",
                "must have an even head dim of at most 256");
  match.require(((vq.stride(0) | vq.stride(1) | vk.stride(0) | vk.stride(1) | vv.stride(0) |
                  vv.stride(1) | kc.stride(0) | vc.stride(0)) &
                 1) == 0,
                "q", "k, v and the caches must have even strides");
  const cuda::RopeAndCacheParams p{.q = vq.data(),
                                   .k = vk.data(),
                                   .v = vv.data(),
                                   .positions = where.data<int32_t>(),
                                   .cos_sin = table.data<float>(),
                                   .k_cache = kc.data(),
                                   .v_cache = vc.data(),
                                   .slots = to.data<int32_t>(),
                                   .q_norm = qn.defined() ? qn.data() : nullptr,
                                   .k_norm = kn.defined() ? kn.data() : nullptr,
                                   .tokens = tokens.value,
                                   .q_stride = vq.stride(0),
                                   .q_head_stride = vq.stride(1),
                                   .k_stride = vk.stride(0),
                                   .k_head_stride = vk.stride(1),
                                   .v_stride = vv.stride(0),
                                   .v_head_stride = vv.stride(1),
                                   .k_block_stride = kc.stride(0),
                                   .v_block_stride = vc.stride(0),
                                   .num_q_heads = int32_t(heads.value),
                                   .num_kv_heads = int32_t(kv_heads.value),
                                   .head_dim = int32_t(dim.value),
                                   .rotary_dim = int32_t(rotary),
                                   .block_size = int32_t(size.value),
                                   .eps = float(eps),
                                   .k_scale = float(k_scale),
                                   .v_scale = float(v_scale),
                                   .type = cuda_type(type.value),
                                   .cache_type = cuda_type(cache.value)};
  require_success(cuda::rope_and_cache(p, launch_options(op, q, vq)), op);
}

void gather_tokens(py::handle out, py::handle token_ids, py::handle last_token) {
  const char* op = "gather_tokens";
  const TensorView to = view_of(out, "out"), ids = view_of(token_ids, "token_ids"),
                   last = view_of(last_token, "last_token");
  const TensorMatcher match(op, to.device());
  Dim tokens{"T"};
  match(to, "out", {tokens}).dtype(DType::int32);
  match(ids, "token_ids", {tokens}).dtype(DType::int32);
  match(last, "last_token", {kAnySize}).dtype(DType::int32);
  const cuda::GatherTokensParams p{.out = to.data<int32_t>(),
                                   .token_ids = ids.data<int32_t>(),
                                   .last_token = last.data<int32_t>(),
                                   .count = tokens.value};
  require_success(cuda::gather_tokens(p, launch_options(op, out, to)), op);
}

// Bytes of one block of a pool [num_blocks, ...] whose blocks are dense; -1 where they are not.
int64_t dense_block_bytes(const TensorView& cache) {
  int64_t elements = 1;
  for (int32_t i = cache.ndim() - 1; i > 0; --i) {
    if (cache.size(i) != 1 && cache.stride(i) != elements) return -1;
    elements *= cache.size(i);
  }
  return elements * dtype_bytes(cache.dtype());
}

void copy_blocks(py::handle cache, py::handle pairs) {
  const char* op = "copy_blocks";
  const TensorView pool = view_of(cache, "cache"), list = view_of(pairs, "pairs");
  const TensorMatcher match(op, pool.device());
  match(list, "pairs", {kAnySize, 2}).dtype(DType::int32);
  match.require(pool.ndim() >= 1 && dtype_bytes(pool.dtype()) > 0, "cache",
                "must have blocks and a known dtype");
  const int64_t bytes = dense_block_bytes(pool);
  match.require(bytes >= 0, "cache", "must be dense in all dimensions but the first");
  const int64_t stride = pool.stride(0) * dtype_bytes(pool.dtype());
  const cuda::CopyBlocksParams p{.destination = pool.data(),
                                 .source = pool.data(),
                                 .pairs = list.data<int32_t>(),
                                 .count = list.size(0),
                                 .block_bytes = bytes,
                                 .destination_stride_bytes = stride,
                                 .source_stride_bytes = stride,
                                 .max_blocks_of_grid = 0};
  require_success(cuda::copy_blocks(p, launch_options(op, cache, pool)), op);
}

// With pairs on the host the copy engines do it, a call for each run of neighbouring blocks; with
// pairs on the device a small kernel does, which can be captured in a graph.
void swap_blocks(py::handle device_cache, py::handle host_cache, py::handle pairs, bool to_host) {
  const char* op = "swap_blocks";
  const TensorView device = view_of(device_cache, "device_cache"),
                   host = view_of(host_cache, "host_cache"), list = view_of(pairs, "pairs");
  const bool host_pairs = list.device().device_type != dlpack::kCuda;
  const TensorMatcher match(op, device.device());
  const TensorMatcher match_pairs(op, list.device());
  match_pairs(list, "pairs", {kAnySize, 2}).dtype(DType::int32);
  match.require(device.dtype() == host.dtype() && dtype_bytes(host.dtype()) > 0, "host_cache",
                "must have the dtype of device_cache");
  match.require(host.device().device_type != dlpack::kCuda, "host_cache", "must be host memory");
  const int64_t bytes = dense_block_bytes(device);
  match.require(bytes >= 0 && bytes == dense_block_bytes(host), "host_cache",
                "and device_cache must have blocks of one size, dense but for the first dimension");
  const cuda::LaunchOptions how = launch_options(op, device_cache, device);
  const int64_t element = dtype_bytes(host.dtype());
  const TensorView& from = to_host ? device : host;
  const TensorView& to = to_host ? host : device;
  cuda::CopyBlocksParams p{.destination = to.data(),
                           .source = from.data(),
                           .pairs = list.data<int32_t>(),
                           .count = list.size(0),
                           .block_bytes = bytes,
                           .destination_stride_bytes = to.stride(0) * element,
                           .source_stride_bytes = from.stride(0) * element,
                           .max_blocks_of_grid = 32};
  if (!host_pairs) {
    require_success(cuda::copy_blocks(p, how), op);
    return;
  }
  for (int64_t i = 0; i < p.count; ++i) {
    const int32_t source = p.pairs[2 * i], destination = p.pairs[2 * i + 1];
    match.require(
        0 <= source && source < from.size(0) && 0 <= destination && destination < to.size(0),
        "pairs", "must name blocks of the caches");
  }
  require_success(cuda::swap_blocks(p, how), op);
}

}  // namespace

void register_cuda_ops(py::module_& m) {
  m.def(
      "rms_norm",
      [](py::handle out, py::handle x, py::handle weight, double eps) {
        norm("rms_norm", out, py::none(), x, weight, eps);
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("eps"));
  m.def(
      "add_rms_norm",
      [](py::handle out, py::handle residual, py::handle x, py::handle weight, double eps) {
        norm("add_rms_norm", out, residual, x, weight, eps);
      },
      py::arg("out"), py::arg("residual"), py::arg("x"), py::arg("weight"), py::arg("eps"));
  m.def(
      "silu_and_mul",
      [](py::handle out, py::handle x) { gated("silu_and_mul", cuda::Activation::silu, out, x); },
      py::arg("out"), py::arg("x"));
  m.def(
      "gelu_and_mul",
      [](py::handle out, py::handle x) {
        gated("gelu_and_mul", cuda::Activation::gelu_tanh, out, x);
      },
      py::arg("out"), py::arg("x"));
  m.def("rope_and_cache", &rope_and_cache, py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("positions"), py::arg("cos_sin"), py::arg("k_cache"), py::arg("v_cache"),
        py::arg("slots"), py::arg("q_norm"), py::arg("k_norm"), py::arg("eps"), py::arg("k_scale"),
        py::arg("v_scale"));
  m.def("gather_tokens", &gather_tokens, py::arg("out"), py::arg("token_ids"),
        py::arg("last_token"));
  m.def("copy_blocks", &copy_blocks, py::arg("cache"), py::arg("pairs"));
  m.def("swap_blocks", &swap_blocks, py::arg("device_cache"), py::arg("host_cache"),
        py::arg("pairs"), py::arg("to_host"));
}

}  // namespace stoker
