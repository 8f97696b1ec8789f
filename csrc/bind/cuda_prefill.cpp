// Binds the prefill kernels: what a plan for them must look like, and the launch of a plan's
// prefill items.
#include "bind/cuda_prefill.h"

#include <algorithm>
#include <cstddef>

#include "bind/cuda_common.h"
#include "cuda/prefill.h"
#include "sched/attention_plan.h"
#include "sched/schedule_batch.h"

namespace py = pybind11;

namespace stoker {
namespace {

// The kernel reads what the planner writes.
static_assert(sizeof(cuda::PrefillItem) == sizeof(AttentionWork) &&
              offsetof(cuda::PrefillItem, row) == offsetof(AttentionWork, row) &&
              offsetof(cuda::PrefillItem, q_begin) == offsetof(AttentionWork, q_begin) &&
              offsetof(cuda::PrefillItem, q_count) == offsetof(AttentionWork, q_count) &&
              offsetof(cuda::PrefillItem, kv_begin) == offsetof(AttentionWork, kv_begin) &&
              offsetof(cuda::PrefillItem, kv_end) == offsetof(AttentionWork, kv_end) &&
              offsetof(cuda::PrefillItem, kv_head) == offsetof(AttentionWork, kv_head) &&
              offsetof(cuda::PrefillItem, partial) == offsetof(AttentionWork, partial) &&
              offsetof(cuda::PrefillItem, flags) == offsetof(AttentionWork, flags));
static_assert(cuda::kPrefillSplitPositions == kPrefillSplit);

cuda::PrefillParams shape_params(const TensorView& out, const TensorView& q,
                                 const TensorView& k_cache, const TensorView& v_cache) {
  cuda::PrefillParams p{};
  p.out = out.data();
  p.q = q.data();
  p.k_cache = k_cache.data();
  p.v_cache = v_cache.data();
  p.out_row_stride = out.stride(0);
  p.q_row_stride = q.stride(0);
  p.k_block_stride = k_cache.stride(0);
  p.v_block_stride = v_cache.stride(0);
  p.num_blocks = k_cache.size(0);
  p.num_tokens = q.size(0);
  p.block_size = static_cast<int32_t>(k_cache.size(2));
  p.num_heads = static_cast<int32_t>(q.size(1));
  p.num_kv_heads = static_cast<int32_t>(k_cache.size(1));
  p.head_dim = static_cast<int32_t>(q.size(2));
  p.type = cuda_type(q.dtype());
  p.cache_type = cuda_type(k_cache.dtype());
  p.path = cuda::PrefillPath::automatic;
  return p;
}

// (query tokens of a tile, workers): what AttentionPlanner takes for tensors shaped like these. (0,
// 0): no prefill kernel takes them; 0 workers: the kernel wants whole tiles.
py::tuple prefill_geometry(py::handle q, py::handle k_cache) {
  const TensorView q_view = view_of(q, "q"), k_view = view_of(k_cache, "k_cache");
  const TensorMatcher match("prefill_geometry", q_view.device());
  Dim tokens{"T"}, heads{"Hq"}, kv_heads{"Hk"}, dim{"D"}, blocks{"num_blocks"}, size{"block_size"};
  match(q_view, "q", {tokens, heads, dim}, free_strides(0));
  match(k_view, "k_cache", {blocks, kv_heads, size, dim}, free_strides(0));
  match.require(kv_heads.value > 0 && heads.value % kv_heads.value == 0, "q",
                "must have a number of heads that is a multiple of the KV heads");
  launch_options("prefill_geometry", q, q_view);
  const cuda::PrefillPath path = cuda::prefill_path(shape_params(q_view, q_view, k_view, k_view));
  if (path == cuda::PrefillPath::none) return py::make_tuple(0, 0);
  int workers = 0;
  if (cuda::prefill_path_splits(path)) {
    require_success(
        cudaDeviceGetAttribute(&workers, cudaDevAttrMultiProcessorCount, q_view.device().device_id),
        "prefill_geometry");
  }
  return py::make_tuple(cuda::prefill_tile_tokens(static_cast<int32_t>(heads.value),
                                                  static_cast<int32_t>(kv_heads.value)),
                        std::min(workers, cuda::kMaxPrefillWorkers));
}

}  // namespace

bool run_prefill(const PrefillTensors& t, py::handle plan, const TensorMatcher& match,
                 const PrefillOptions& options, const cuda::LaunchOptions& how) {
  const int32_t slots = py::getattr(plan, "prefill_slots", py::int_(-1)).cast<int32_t>();
  if (slots < 0 || t.q.stride(1) != t.q.size(2) || t.out.stride(1) != t.out.size(2)) return false;
  cuda::PrefillParams p = shape_params(t.out, t.q, t.k_cache, t.v_cache);
  p.path = cuda::prefill_path(p);
  if (p.path == cuda::PrefillPath::none) return false;
  // A plan with slots may hold tiles that are shared out, which only some kernels can merge.
  if (slots > 0 && !cuda::prefill_path_splits(p.path)) return false;
  const py::object work_object = plan.attr("work"), indptr_object = plan.attr("work_indptr"),
                   workspace_object = plan.attr("prefill_workspace");
  const TensorView work = view_of(work_object, "plan.work"),
                   indptr = view_of(indptr_object, "plan.work_indptr"),
                   workspace = view_of(workspace_object, "plan.prefill_workspace");
  match(work, "plan.work", {kAnySize, 8}).dtype(DType::int32);
  match(indptr, "plan.work_indptr", {kAnySize}).dtype(DType::int32);
  match(workspace, "plan.prefill_workspace", {kAnySize}).dtype(DType::uint8);
  match.require(indptr.size(0) >= 4, "plan.work_indptr", "is too short");
  match.require(workspace.numel() >= static_cast<int64_t>(cuda::prefill_workspace_bytes(
                                         slots, p.num_kv_heads, p.head_dim)),
                "plan.prefill_workspace", "is smaller than prefill_workspace_bytes");
  p.block_table = t.block_table.data<int32_t>();
  p.block_table_stride = static_cast<int32_t>(t.block_table.stride(0));
  p.row_seat = t.row_seat.data<int32_t>();
  p.row_indptr = t.row_indptr.data<int32_t>();
  p.row_kv_len = t.row_kv_len.data<int32_t>();
  p.items = work.data<cuda::PrefillItem>();
  p.item_range = indptr.data<int32_t>() + (indptr.size(0) - 3);  // see AttentionPlanner::plan
  p.workspace = workspace.data();
  p.num_partials = slots;
  p.num_workers = plan.attr("num_prefill_workers").cast<int32_t>();
  p.window = options.window;
  p.scale = static_cast<float>(options.scale);
  p.soft_cap = static_cast<float>(options.soft_cap);
  p.k_scale = static_cast<float>(options.k_scale);
  p.v_scale = static_cast<float>(options.v_scale);
  require_success(cuda::prefill_attention(p, how), "paged_attention");
  return true;
}

void register_cuda_prefill(py::module_& m) {
  m.def("prefill_geometry", &prefill_geometry, py::arg("q"), py::arg("k_cache"),
        "(query tokens of a prefill tile, workers) for AttentionPlanner, for tensors shaped like "
        "these; (0, 0) where no "
        "prefill kernel takes them, 0 workers where tiles must stay whole.");
  m.def("prefill_workspace_bytes", &cuda::prefill_workspace_bytes, py::arg("num_slots"),
        py::arg("num_kv_heads"), py::arg("head_dim"), "Of a workspace that is zeroed once.");
}

}  // namespace stoker
