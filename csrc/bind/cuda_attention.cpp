// Binds paged attention: checks the tensors, then decode rows by the planned kernel and whatever it
// does not take by the plain one.
#include <algorithm>
#include <cstddef>

#include "bind/cuda_common.h"
#include "bind/cuda_prefill.h"
#include "cuda/decode.h"
#include "sched/attention_plan.h"

namespace py = pybind11;

namespace stoker {
namespace {

// The kernel reads what the planner writes.
static_assert(sizeof(cuda::DecodeItem) == sizeof(DecodeWork) &&
              offsetof(cuda::DecodeItem, row) == offsetof(DecodeWork, row) &&
              offsetof(cuda::DecodeItem, seat) == offsetof(DecodeWork, seat) &&
              offsetof(cuda::DecodeItem, kv_begin) == offsetof(DecodeWork, kv_begin) &&
              offsetof(cuda::DecodeItem, kv_len) == offsetof(DecodeWork, kv_len) &&
              offsetof(cuda::DecodeItem, unit_begin) == offsetof(DecodeWork, unit_begin) &&
              offsetof(cuda::DecodeItem, unit_end) == offsetof(DecodeWork, unit_end) &&
              offsetof(cuda::DecodeItem, split_shift) == offsetof(DecodeWork, split_shift) &&
              offsetof(cuda::DecodeItem, partial) == offsetof(DecodeWork, partial));

struct Tensors {
  TensorView out, q, k_cache, v_cache, block_table, row_seat, row_indptr, row_kv_len;
};

bool has_fast_decode(int64_t head_dim) {
  return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}

void run_plain(const Tensors& t, int64_t first_row, int64_t rows, double scale, int32_t window,
               double soft_cap, double k_scale, double v_scale, const cuda::LaunchOptions& how) {
  const cuda::PlainAttentionParams p{.out = t.out.data(),
                                     .q = t.q.data(),
                                     .k_cache = t.k_cache.data(),
                                     .v_cache = t.v_cache.data(),
                                     .block_table = t.block_table.data<int32_t>(),
                                     .row_seat = t.row_seat.data<int32_t>() + first_row,
                                     .row_indptr = t.row_indptr.data<int32_t>() + first_row,
                                     .row_kv_len = t.row_kv_len.data<int32_t>() + first_row,
                                     .rows = rows,
                                     .tokens = t.q.size(0),
                                     .out_stride = t.out.stride(0),
                                     .out_head_stride = t.out.stride(1),
                                     .q_stride = t.q.stride(0),
                                     .q_head_stride = t.q.stride(1),
                                     .k_block_stride = t.k_cache.stride(0),
                                     .v_block_stride = t.v_cache.stride(0),
                                     .table_stride = t.block_table.stride(0),
                                     .num_q_heads = int32_t(t.q.size(1)),
                                     .num_kv_heads = int32_t(t.k_cache.size(1)),
                                     .head_dim = int32_t(t.q.size(2)),
                                     .block_size = int32_t(t.k_cache.size(2)),
                                     .window = window,
                                     .scale = float(scale),
                                     .soft_cap = float(soft_cap),
                                     .k_scale = float(k_scale),
                                     .v_scale = float(v_scale),
                                     .type = cuda_type(t.q.dtype()),
                                     .cache_type = cuda_type(t.k_cache.dtype())};
  require_success(cuda::plain_attention(p, how), "paged_attention");
}

cuda::DecodeParams decode_params(const Tensors& t, double scale, double soft_cap, double k_scale,
                                 double v_scale) {
  cuda::DecodeParams p{};
  p.out = t.out.data();
  p.q = t.q.data();
  p.k_cache = t.k_cache.data();
  p.v_cache = t.v_cache.data();
  p.block_table = t.block_table.data<int32_t>();
  p.out_stride = t.out.stride(0);
  p.out_head_stride = t.out.stride(1);
  p.q_stride = t.q.stride(0);
  p.q_head_stride = t.q.stride(1);
  p.k_block_stride = t.k_cache.stride(0);
  p.v_block_stride = t.v_cache.stride(0);
  p.table_stride = t.block_table.stride(0);
  p.num_q_heads = int32_t(t.q.size(1));
  p.num_kv_heads = int32_t(t.k_cache.size(1));
  p.head_dim = int32_t(t.q.size(2));
  p.block_size = int32_t(t.k_cache.size(2));
  p.scale = float(scale);
  p.soft_cap = float(soft_cap);
  p.k_scale = float(k_scale);
  p.v_scale = float(v_scale);
  p.type = cuda_type(t.q.dtype());
  p.cache_type = cuda_type(t.k_cache.dtype());
  return p;
}

bool multiple_of(const TensorView& tensor, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.data()) % uintptr_t(bytes) == 0 &&
         tensor.stride(0) * dtype_bytes(tensor.dtype()) % bytes == 0;
}

// `plan` has the attributes work, work_indptr, workspace, counters (tensors), early and overlap
// (bools): ops/attention_plan.py. beside: right behind this step's chunks.
void run_decode(const Tensors& t, py::handle plan, const TensorMatcher& match, double scale,
                double soft_cap, double k_scale, double v_scale, bool beside,
                const cuda::LaunchOptions& how) {
  cuda::DecodeParams p = decode_params(t, scale, soft_cap, k_scale, v_scale);
  const py::object work_object = plan.attr("work"), indptr_object = plan.attr("work_indptr"),
                   workspace_object = plan.attr("workspace"),
                   counters_object = plan.attr("counters");
  const TensorView work = view_of(work_object, "plan.work"),
                   indptr = view_of(indptr_object, "plan.work_indptr"),
                   workspace = view_of(workspace_object, "plan.workspace"),
                   counters = view_of(counters_object, "plan.counters");
  match(work, "plan.work", {kAnySize, 8}).dtype(DType::int32);
  match(indptr, "plan.work_indptr", {kAnySize}).dtype(DType::int32);
  match(workspace, "plan.workspace", {kAnySize}).dtype(DType::float32);
  match(counters, "plan.counters", {kAnySize}).dtype(DType::int32);
  p.workers = int32_t(indptr.size(0)) - 4;  // see AttentionPlanner::indptr_size
  match.require(p.workers > 0 && work.size(0) >= p.workers, "plan.work",
                "has fewer entries than the plan has workers");
  match.require(counters.size(0) >= p.workers * kMaxDecodeSplits, "plan.counters",
                "has fewer entries than the planner's decode_slot_capacity");
  match.require(
      workspace.numel() >= p.workers * kMaxDecodeSplits *
                               cuda::decode_slot_words(p.num_q_heads, p.num_kv_heads, p.head_dim),
      "plan.workspace", "is smaller than decode_slot_words for each decode slot");
  match.require(reinterpret_cast<uintptr_t>(work.data()) % 16 == 0, "plan.work",
                "must be aligned to 16 bytes");
  match.require(multiple_of(t.k_cache, 16) && multiple_of(t.v_cache, 16), "k_cache",
                "and v_cache must have blocks aligned to 16 bytes");
  match.require(multiple_of(t.out, 8) && t.out.stride(1) % 4 == 0 && multiple_of(t.q, 4) &&
                    t.q.stride(1) % 2 == 0,
                "out", "must have heads aligned to 8 bytes, q to 4");
  p.work = work.data<cuda::DecodeItem>();
  p.work_indptr = indptr.data<int32_t>();
  p.workspace = workspace.data<float>();
  p.counters = counters.data<int32_t>();
  p.beside = beside;
  p.early = !beside && plan.attr("early").cast<bool>();
  cuda::LaunchOptions where = how;
  where.overlap = beside || plan.attr("overlap").cast<bool>();
  require_success(cuda::decode_attention(p, where), "paged_attention");
}

void paged_attention(py::handle out, py::handle q, py::handle k_cache, py::handle v_cache,
                     py::handle block_table, py::handle row_seat, py::handle row_indptr,
                     py::handle row_kv_len, double scale, int32_t window, double soft_cap,
                     double k_scale, double v_scale, py::handle num_decode_rows, py::handle plan) {
  const char* op = "paged_attention";
  const Tensors t{view_of(out, "out"),
                  view_of(q, "q"),
                  view_of(k_cache, "k_cache"),
                  view_of(v_cache, "v_cache"),
                  view_of(block_table, "block_table"),
                  view_of(row_seat, "row_seat"),
                  view_of(row_indptr, "row_indptr"),
                  view_of(row_kv_len, "row_kv_len")};
  const TensorMatcher match(op, t.q.device());
  Dim tokens{"T"}, heads{"Hq"}, kv_heads{"Hk"}, dim{"D"}, blocks{"num_blocks"}, size{"block_size"},
      rows{"R"};
  DTypeSlot type{"q"}, cache{"k_cache"};
  match(t.q, "q", {tokens, heads, dim}, free_strides(0, 1)).dtype(type, kModelTypes);
  match(t.out, "out", {tokens, heads, dim}, free_strides(0, 1)).dtype(type);
  match(t.k_cache, "k_cache", {blocks, kv_heads, size, dim}, free_strides(0))
      .dtype(cache, type.value | DType::float8_e4m3fn);
  match(t.v_cache, "v_cache", {blocks, kv_heads, size, dim}, free_strides(0)).dtype(cache);
  match(t.block_table, "block_table", {kAnySize, kAnySize}, free_strides(0)).dtype(DType::int32);
  match(t.row_seat, "row_seat", {rows}).dtype(DType::int32);
  match(t.row_indptr, "row_indptr", {rows.value + 1}).dtype(DType::int32);
  match(t.row_kv_len, "row_kv_len", {rows}).dtype(DType::int32);
  match.require(kv_heads.value > 0 && heads.value % kv_heads.value == 0, "q",
                "must have a number of heads that is a multiple of the KV heads");
  match.require(size.value % 8 == 0 && size.value > 0, "k_cache",
                "must have a block size that is a multiple of 8");
  match.require(dim.value <= 256, "q", "must have a head dim of at most 256");
  if (tokens.value == 0 || rows.value == 0) return;
  const cuda::LaunchOptions how = launch_options(op, q, t.q);
  int64_t decode_rows = num_decode_rows.is_none() ? 0 : num_decode_rows.cast<int64_t>();
  match.require(0 <= decode_rows && decode_rows <= rows.value, "num_decode_rows",
                "must be between 0 and the number of rows");
  const bool planned =
      !plan.is_none() && type.value != DType::float32 && has_fast_decode(dim.value);
  // A caller that runs decode rows and chunks on two streams asks for one half at a time.
  const auto wants = [&](const char* half) {
    return !planned || py::getattr(plan, half, py::bool_(true)).cast<bool>();
  };
  if (!planned) decode_rows = 0;
  const bool decodes = decode_rows > 0 && wants("run_decode");
  const bool chunks = decode_rows < rows.value && wants("run_prefill");
  const PrefillTensors parts{t.out,         t.q,        t.k_cache,    t.v_cache,
                             t.block_table, t.row_seat, t.row_indptr, t.row_kv_len};
  const auto run_chunks = [&] {
    const PrefillOptions options{scale, window, soft_cap, k_scale, v_scale};
    return planned && run_prefill(parts, plan, match, options, how);
  };
  const auto run_decodes = [&](bool beside) {
    run_decode(t, plan, match, scale, soft_cap, k_scale, v_scale, beside, how);
  };
  if (decodes && chunks && py::getattr(plan, "side_by_side", py::bool_(false)).cast<bool>() &&
      run_chunks()) {
    run_decodes(true);
    return;
  }
  if (decodes) run_decodes(false);
  if (chunks && !run_chunks())
    run_plain(t, decode_rows, rows.value - decode_rows, scale, window, soft_cap, k_scale, v_scale,
              how);
}

int32_t decode_workers(py::handle q, py::handle k_cache) {
  Tensors t{};
  t.q = t.out = view_of(q, "q");
  t.k_cache = t.v_cache = view_of(k_cache, "k_cache");
  const char* op = "decode_workers";
  const TensorMatcher match(op, t.q.device());
  Dim tokens{"T"}, heads{"Hq"}, kv_heads{"Hk"}, dim{"D"}, blocks{"num_blocks"}, size{"block_size"};
  match(t.q, "q", {tokens, heads, dim}, free_strides(0, 1));
  match(t.k_cache, "k_cache", {blocks, kv_heads, size, dim}, free_strides(0));
  match.require(kv_heads.value > 0 && heads.value % kv_heads.value == 0, "q",
                "must have a number of heads that is a multiple of the KV heads");
  launch_options(op, q, t.q);
  cuda::DecodeParams p{};
  p.num_q_heads = int32_t(heads.value);
  p.num_kv_heads = int32_t(kv_heads.value);
  p.head_dim = int32_t(dim.value);
  p.type = cuda_type(t.q.dtype());
  p.cache_type = cuda_type(t.k_cache.dtype());
  int32_t workers = 1;
  if (t.q.dtype() != DType::float32 && has_fast_decode(dim.value)) {
    require_success(cuda::decode_workers(p, &workers), op);
  }
  return workers;
}

}  // namespace

void register_cuda_attention(py::module_& m) {
  m.def("paged_attention", &paged_attention, py::arg("out"), py::arg("q"), py::arg("k_cache"),
        py::arg("v_cache"), py::arg("block_table"), py::arg("row_seat"), py::arg("row_indptr"),
        py::arg("row_kv_len"), py::arg("scale"), py::arg("window"), py::arg("soft_cap"),
        py::arg("k_scale"), py::arg("v_scale"), py::arg("num_decode_rows"), py::arg("plan"));
  m.def("decode_workers", &decode_workers, py::arg("q"), py::arg("k_cache"),
        "Blocks of the decode kernel that fill the device, for tensors shaped like these.");
  m.def("decode_heads", &cuda::virtual_kv_heads, py::arg("num_q_heads"), py::arg("num_kv_heads"),
        "Heads of a decode unit: KV heads, or several to a KV head whose group is larger than 8.");
  m.def("decode_slot_words", &cuda::decode_slot_words, py::arg("num_q_heads"),
        py::arg("num_kv_heads"), py::arg("head_dim"),
        "float32 words of one decode slot of the workspace.");
}

}  // namespace stoker
