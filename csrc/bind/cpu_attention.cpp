// _core.cpu: what touches the KV cache, rope_and_cache and paged_attention.
#include "bind/cpu_kernel.h"

namespace py = pybind11;

namespace stoker {

void register_cpu_attention(py::module_& ops);

namespace {

constexpr double kRopeNs = 0.3;  // an element, on one thread: for deciding about threads

void check_cache(const TensorMatcher& match, const TensorView& k_cache, const TensorView& v_cache,
                 Dim& kv_heads, Dim& head_dim, DType model_type, Dim& blocks, Dim& block_size) {
  match(k_cache, "k_cache", {blocks, kv_heads, block_size, head_dim}, free_strides(0))
      .dtype_in((1u << int(model_type)) | DType::float8_e4m3fn);
  match(v_cache, "v_cache", {blocks, kv_heads, block_size, head_dim}, free_strides(0))
      .dtype(k_cache.dtype());
  match.require(block_size.value > 0 && block_size.value % 8 == 0, "k_cache",
                "must have a block size (dimension 2) that is a multiple of 8");
  match.require(head_dim.value % 8 == 0 && head_dim.value > 0 && head_dim.value <= 512, "k_cache",
                "must have a head dim (dimension 3) that is a multiple of 8 and at most 512");
}

void rope_and_cache(py::handle q_, py::handle k_, py::handle v_, py::handle positions_,
                    py::handle cos_sin_, py::handle k_cache_, py::handle v_cache_,
                    py::handle slots_, py::handle q_norm_, py::handle k_norm_, double eps,
                    double k_scale, double v_scale) {
  const TensorView q = view_of(q_, "q"), k = view_of(k_, "k"), v = view_of(v_, "v"),
                   positions = view_of(positions_, "positions"),
                   cos_sin = view_of(cos_sin_, "cos_sin"), k_cache = view_of(k_cache_, "k_cache"),
                   v_cache = view_of(v_cache_, "v_cache"), slots = view_of(slots_, "slots"),
                   q_norm = optional_view_of(q_norm_, "q_norm"),
                   k_norm = optional_view_of(k_norm_, "k_norm");
  Dim tokens{"T"}, q_heads{"Hq"}, kv_heads{"Hk"}, head_dim{"D"}, rotary{"rotary_dim"},
      max_position{"max_position"}, blocks{"num_blocks"}, block_size{"block_size"};
  DTypeSlot type{"q"};
  const TensorMatcher match("rope_and_cache", kCpuDevice);
  match(q, "q", {tokens, q_heads, head_dim}, free_strides(0, 1)).dtype(type, kModelTypes);
  match(k, "k", {tokens, kv_heads, head_dim}, free_strides(0, 1)).dtype(type);
  match(v, "v", {tokens, kv_heads, head_dim}, free_strides(0, 1)).dtype(type);
  match(positions, "positions", {tokens}).dtype(DType::int32);
  match(slots, "slots", {tokens}).dtype(DType::int32);
  match(cos_sin, "cos_sin", {max_position, rotary}).dtype(DType::float32);
  match.require(rotary.value % 2 == 0 && rotary.value <= head_dim.value, "cos_sin",
                "must have an even rotary_dim (dimension 1) of at most D");
  check_cache(match, k_cache, v_cache, kv_heads, head_dim, type.value, blocks, block_size);
  if (q_norm.defined()) match(q_norm, "q_norm", {head_dim}).dtype(type);
  if (k_norm.defined()) match(k_norm, "k_norm", {head_dim}).dtype(type);
  cpu::RopeParams p{};
  p.q = q.data();
  p.k = k.data();
  p.v = v.data();
  p.k_cache = k_cache.data();
  p.v_cache = v_cache.data();
  p.q_norm = q_norm.defined() ? q_norm.data() : nullptr;
  p.k_norm = k_norm.defined() ? k_norm.data() : nullptr;
  p.positions = positions.data<int32_t>();
  p.slots = slots.data<int32_t>();
  p.cos_sin = cos_sin.data<float>();
  p.tokens = tokens.value;
  p.q_heads = q_heads.value;
  p.kv_heads = kv_heads.value;
  p.head_dim = head_dim.value;
  p.rotary_dim = rotary.value;
  p.block_size = block_size.value;
  p.q_stride = q.stride(0);
  p.q_head_stride = q.stride(1);
  p.k_stride = k.stride(0);
  p.k_head_stride = k.stride(1);
  p.v_stride = v.stride(0);
  p.v_head_stride = v.stride(1);
  p.k_block_stride = k_cache.stride(0);
  p.v_block_stride = v_cache.stride(0);
  p.eps = float(eps);
  p.k_inverse_scale = float(1.0 / k_scale);
  p.v_inverse_scale = float(1.0 / v_scale);
  p.type = type_of(type.value);
  p.cache_type = type_of(k_cache.dtype());
  const int64_t num_slots = blocks.value * block_size.value;
  for (int64_t i = 0; i < p.tokens; ++i) {
    if (p.slots[i] < 0) continue;
    match.require(p.slots[i] < num_slots, "slots", "names a slot outside the cache");
    match.require(p.positions[i] >= 0 && p.positions[i] < max_position.value, "positions",
                  "has an entry outside [0, max_position)");
  }
  const double work_ns =
      double(p.tokens) * double((p.q_heads + 2 * p.kv_heads) * p.head_dim) * kRopeNs;
  const auto kernel = cpu::kernels().rope_and_cache;
  run_kernel(work_ns, [&] {
    cpu::parallel_rows(p.tokens, work_ns,
                       [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  });
}

void paged_attention(py::handle out_, py::handle q_, py::handle k_cache_, py::handle v_cache_,
                     py::handle block_table_, py::handle row_seat_, py::handle row_indptr_,
                     py::handle row_kv_len_, double scale, int64_t window, double soft_cap,
                     double k_scale, double v_scale, py::handle /*num_decode_rows*/,
                     py::handle /*plan*/) {
  const TensorView out = view_of(out_, "out"), q = view_of(q_, "q"),
                   k_cache = view_of(k_cache_, "k_cache"), v_cache = view_of(v_cache_, "v_cache"),
                   block_table = view_of(block_table_, "block_table"),
                   row_seat = view_of(row_seat_, "row_seat"),
                   row_indptr = view_of(row_indptr_, "row_indptr"),
                   row_kv_len = view_of(row_kv_len_, "row_kv_len");
  Dim tokens{"T"}, q_heads{"Hq"}, kv_heads{"Hk"}, head_dim{"D"}, blocks{"num_blocks"},
      block_size{"block_size"}, seats{"seats"}, max_blocks{"max_blocks"}, rows{"R"};
  DTypeSlot type{"q"};
  const TensorMatcher match("paged_attention", kCpuDevice);
  match(q, "q", {tokens, q_heads, head_dim}, free_strides(0, 1)).dtype(type, kModelTypes);
  match(out, "out", {tokens, q_heads, head_dim}, free_strides(0, 1)).dtype(type);
  check_cache(match, k_cache, v_cache, kv_heads, head_dim, type.value, blocks, block_size);
  match(block_table, "block_table", {seats, max_blocks}, free_strides(0)).dtype(DType::int32);
  match(row_seat, "row_seat", {rows}).dtype(DType::int32);
  match(row_kv_len, "row_kv_len", {rows}).dtype(DType::int32);
  match(row_indptr, "row_indptr", {rows.value + 1}).dtype(DType::int32);
  match.require(kv_heads.value > 0 && q_heads.value % kv_heads.value == 0, "q",
                "must have a multiple of k_cache's heads (dimension 1)");
  match.require(window >= 0, "window", "must not be negative");
  match.require(soft_cap >= 0, "soft_cap", "must not be negative");
  cpu::AttentionParams p{};
  p.out = out.data();
  p.q = q.data();
  p.k_cache = k_cache.data();
  p.v_cache = v_cache.data();
  p.block_table = block_table.data<int32_t>();
  p.head_dim = head_dim.value;
  p.block_size = block_size.value;
  p.kv_heads = kv_heads.value;
  p.group = q_heads.value / kv_heads.value;
  p.q_stride = q.stride(0);
  p.q_head_stride = q.stride(1);
  p.out_stride = out.stride(0);
  p.out_head_stride = out.stride(1);
  p.k_block_stride = k_cache.stride(0);
  p.v_block_stride = v_cache.stride(0);
  p.table_stride = block_table.stride(0);
  p.score_scale = float(scale * k_scale);
  p.soft_cap = float(soft_cap);
  p.v_scale = float(v_scale);
  p.window = window;
  p.type = type_of(type.value);
  p.cache_type = type_of(k_cache.dtype());
  const cpu::AttentionRows list{row_seat.data<int32_t>(), row_indptr.data<int32_t>(),
                                row_kv_len.data<int32_t>(), rows.value};
  match.require(rows.value == 0 || list.indptr[0] >= 0, "row_indptr", "must begin at 0 or later");
  for (int64_t r = 0; r < rows.value; ++r) {
    const int64_t count = list.indptr[r + 1] - list.indptr[r];
    match.require(count >= 0, "row_indptr", "must not decrease");
    if (count == 0) continue;
    match.require(list.indptr[r + 1] <= tokens.value, "row_indptr", "goes past the tokens of q");
    match.require(list.seat[r] >= 0 && list.seat[r] < seats.value, "row_seat",
                  "names a seat outside block_table");
    match.require(list.kv_len[r] >= count, "row_kv_len", "is shorter than its row's query tokens");
    match.require(list.kv_len[r] <= max_blocks.value * block_size.value, "row_kv_len",
                  "is longer than block_table's row can hold");
    const int32_t* table = p.block_table + list.seat[r] * p.table_stride;
    const int64_t left = window > 0 ? list.kv_len[r] - count + 1 - window : 0;
    const int64_t last = (list.kv_len[r] - 1) / p.block_size;
    for (int64_t b = left > 0 ? left / p.block_size : 0; b <= last; ++b) {
      match.require(table[b] >= 0 && table[b] < blocks.value, "block_table",
                    "names a block outside the cache");
    }
  }
  const double work_ns = cpu::attention_work_ns(p, list);
  run_kernel(work_ns, [&] { cpu::paged_attention(p, list, work_ns); });
}

}  // namespace

void register_cpu_attention(py::module_& ops) {
  ops.def("rope_and_cache", &rope_and_cache);
  ops.def("paged_attention", &paged_attention);
}

}  // namespace stoker
