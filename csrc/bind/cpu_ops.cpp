// _core.cpu: the ops on CPU tensors. Checks every argument, then hands raw pointers to csrc/cpu.
//
// Arguments are positional: pybind11's keyword handling would cost more than the checks.
#include <pybind11/pybind11.h>

#include <optional>
#include <utility>

#include "base/check.h"
#include "bind/tensor_caster.h"
#include "cpu/kernel_table.h"
#include "cpu/ops.h"
#include "cpu/thread_pool.h"
#include "tensor/tensor_matcher.h"

namespace py = pybind11;

namespace stoker {

void register_cpu_ops(py::module_& m);

namespace {

using cpu::Type;

constexpr dlpack::Device kCpuDevice{dlpack::kCpu, 0};

Type type_of(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return Type::float16;
    case DType::bfloat16:
      return Type::bfloat16;
    case DType::float8_e4m3fn:
      return Type::float8_e4m3fn;
    default:
      return Type::float32;
  }
}

// Runs `body` without the GIL where it is long enough for another Python thread to make use of it.
template <typename Body>
void run_kernel(double work_ns, const Body& body) {
  std::optional<py::gil_scoped_release> released;
  if (work_ns > 50e3) released.emplace();
  body();
}

// Rough costs on one thread, for deciding about threads: ns an element.
constexpr double kNormNs = 0.15, kActivationNs = 0.4, kRopeNs = 0.3, kSampleNs = 0.7;

void rms_norm(py::handle out_, py::handle x_, py::handle weight_, double eps) {
  const TensorView out = view_of(out_, "out"), x = view_of(x_, "x"),
                   weight = view_of(weight_, "weight");
  Dim tokens{"T"}, heads{"heads"}, size{"H"};
  DTypeSlot type{"x"};
  const TensorMatcher match("rms_norm", kCpuDevice);
  cpu::NormParams p{};
  if (x.ndim() == 3) {
    match(x, "x", {tokens, heads, size}, free_strides(0, 1)).dtype(type, kModelTypes);
    match(out, "out", {tokens, heads, size}, free_strides(0, 1)).dtype(type);
    p.heads = heads.value;
    p.x_head_stride = x.stride(1);
    p.out_head_stride = out.stride(1);
  } else {
    match(x, "x", {tokens, size}, free_strides(0)).dtype(type, kModelTypes);
    match(out, "out", {tokens, size}, free_strides(0)).dtype(type);
    p.heads = 1;
  }
  match(weight, "weight", {size}).dtype(type);
  p.out = out.data();
  p.x = x.data();
  p.weight = weight.data();
  p.rows = tokens.value * p.heads;
  p.size = size.value;
  p.x_stride = x.stride(0);
  p.out_stride = out.stride(0);
  p.eps = float(eps);
  p.type = type_of(type.value);
  const double work_ns = double(p.rows) * double(p.size) * kNormNs;
  const auto kernel = cpu::kernels().rms_norm;
  run_kernel(work_ns, [&] {
    cpu::parallel_rows(p.rows, work_ns, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  });
}

void add_rms_norm(py::handle out_, py::handle residual_, py::handle x_, py::handle weight_,
                  double eps) {
  const TensorView out = view_of(out_, "out"), residual = view_of(residual_, "residual"),
                   x = view_of(x_, "x"), weight = view_of(weight_, "weight");
  Dim tokens{"T"}, size{"H"};
  DTypeSlot type{"x"};
  const TensorMatcher match("add_rms_norm", kCpuDevice);
  match(x, "x", {tokens, size}, free_strides(0)).dtype(type, kModelTypes);
  match(residual, "residual", {tokens, size}, free_strides(0)).dtype(type);
  match(out, "out", {tokens, size}, free_strides(0)).dtype(type);
  match(weight, "weight", {size}).dtype(type);
  cpu::NormParams p{};
  p.out = out.data();
  p.x = x.data();
  p.residual = residual.data();
  p.weight = weight.data();
  p.rows = tokens.value;
  p.heads = 1;
  p.size = size.value;
  p.x_stride = x.stride(0);
  p.out_stride = out.stride(0);
  p.residual_stride = residual.stride(0);
  p.eps = float(eps);
  p.type = type_of(type.value);
  const double work_ns = double(p.rows) * double(p.size) * 2 * kNormNs;
  const auto kernel = cpu::kernels().add_rms_norm;
  run_kernel(work_ns, [&] {
    cpu::parallel_rows(p.rows, work_ns, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  });
}

void activation_and_mul(const char* op, cpu::Activation activation, py::handle out_,
                        py::handle x_) {
  const TensorView out = view_of(out_, "out"), x = view_of(x_, "x");
  Dim tokens{"T"}, size{"F"};
  DTypeSlot type{"out"};
  const TensorMatcher match(op, kCpuDevice);
  match(out, "out", {tokens, size}, free_strides(0)).dtype(type, kModelTypes);
  match(x, "x", {tokens, 2 * size.value}, free_strides(0)).dtype(type);
  cpu::ActivationParams p{};
  p.out = out.data();
  p.x = x.data();
  p.rows = tokens.value;
  p.size = size.value;
  p.out_stride = out.stride(0);
  p.x_stride = x.stride(0);
  p.activation = activation;
  p.type = type_of(type.value);
  const double work_ns = double(p.rows) * double(p.size) * kActivationNs;
  const auto kernel = cpu::kernels().activation_and_mul;
  run_kernel(work_ns, [&] {
    cpu::parallel_rows(p.rows, work_ns, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  });
}

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

void linear(py::handle out_, py::handle x_, py::handle weight_, py::handle bias_) {
  const TensorView out = view_of(out_, "out"), x = view_of(x_, "x"),
                   weight = view_of(weight_, "weight"), bias = optional_view_of(bias_, "bias");
  Dim rows{"T"}, inner{"K"}, features{"F"};
  DTypeSlot type{"x"};
  const TensorMatcher match("linear", kCpuDevice);
  match(x, "x", {rows, inner}, free_strides(0)).dtype(type, kModelTypes);
  match(weight, "weight", {features, inner}, free_strides(0)).dtype(type);
  match(out, "out", {rows, features}, free_strides(0)).dtype(type);
  cpu::LinearParams p{};
  if (bias.defined()) {
    match(bias, "bias", {features}).dtype(type);
    p.bias = bias.data();
  }
  p.out = out.data();
  p.x = x.data();
  p.weight = weight.data();
  p.rows = rows.value;
  p.inner = inner.value;
  p.features = features.value;
  p.out_stride = out.stride(0);
  p.x_stride = x.stride(0);
  p.weight_stride = weight.stride(0);
  p.type = type_of(type.value);
  const double work_ns = cpu::linear_work_ns(p);
  run_kernel(work_ns, [&] { cpu::linear(p, work_ns); });
}

void sample(py::handle out_, py::handle logits_, py::handle records_, py::handle bias_ids_,
            py::handle bias_values_, py::handle stop_ids_, py::handle counts_, py::handle row_seat_,
            py::handle row_position_, py::handle mask_, py::handle mask_row_, py::handle sampled_,
            py::handle rank_, py::handle top_ids_, py::handle top_logprobs_) {
  const TensorView out = view_of(out_, "out_tokens"), logits = view_of(logits_, "logits"),
                   records = view_of(records_, "seats.records"),
                   bias_ids = view_of(bias_ids_, "seats.bias_ids"),
                   bias_values = view_of(bias_values_, "seats.bias_values"),
                   stop_ids = view_of(stop_ids_, "seats.stop_ids"),
                   counts = optional_view_of(counts_, "seats.penalty_counts"),
                   row_seat = view_of(row_seat_, "row_seat"),
                   row_position = view_of(row_position_, "row_position"),
                   mask = optional_view_of(mask_, "mask"),
                   mask_row = optional_view_of(mask_row_, "mask_row"),
                   sampled = optional_view_of(sampled_, "logprobs.sampled");
  Dim rows{"N"}, vocab{"V"}, seats{"seats"}, bias_width{"bias_width"}, stop_width{"stop_width"},
      top_width{"K"};
  const TensorMatcher match("sample", kCpuDevice);
  match(logits, "logits", {rows, vocab}, free_strides(0)).dtype_in(kModelTypes);
  match(out, "out_tokens", {rows}).dtype(DType::int32);
  match(records, "seats.records", {seats, int64_t(sizeof(cpu::SeatRecord) / 4)})
      .dtype(DType::int32);
  match(bias_ids, "seats.bias_ids", {seats, bias_width}).dtype(DType::int32);
  match(bias_values, "seats.bias_values", {seats, bias_width}).dtype(DType::float32);
  match(stop_ids, "seats.stop_ids", {seats, stop_width}).dtype(DType::int32);
  match(row_seat, "row_seat", {rows}).dtype(DType::int32);
  match(row_position, "row_position", {rows}).dtype(DType::int32);
  match.require(vocab.value > 0, "logits", "must have at least one token (dimension 1)");
  cpu::SampleParams p{};
  p.out_tokens = out.data<int32_t>();
  p.logits = logits.data();
  p.seats = records.data<cpu::SeatRecord>();
  p.bias_ids = bias_ids.data<int32_t>();
  p.bias_values = bias_values.data<float>();
  p.stop_ids = stop_ids.data<int32_t>();
  p.row_seat = row_seat.data<int32_t>();
  p.row_position = row_position.data<int32_t>();
  p.rows = rows.value;
  p.vocab = vocab.value;
  p.logits_stride = logits.stride(0);
  p.bias_width = bias_width.value;
  p.stop_width = stop_width.value;
  p.type = type_of(logits.dtype());
  if (counts.defined()) {
    match(counts, "seats.penalty_counts", {seats, vocab}).dtype(DType::int32);
    p.penalty_counts = counts.data<int32_t>();
  }
  match.require(mask.defined() == mask_row.defined(), "mask", "and mask_row go together");
  int64_t mask_rows = 0;
  if (mask.defined()) {
    match(mask, "mask", {kAnySize, (vocab.value + 31) / 32}, free_strides(0)).dtype(DType::int32);
    match(mask_row, "mask_row", {rows}).dtype(DType::int32);
    p.mask = mask.data<int32_t>();
    p.mask_row = mask_row.data<int32_t>();
    p.mask_stride = mask.stride(0);
    mask_rows = mask.size(0);
  }
  if (sampled.defined()) {
    const TensorView rank = view_of(rank_, "logprobs.rank"),
                     top_ids = view_of(top_ids_, "logprobs.top_ids"),
                     top_logprobs = view_of(top_logprobs_, "logprobs.top_logprobs");
    match(sampled, "logprobs.sampled", {rows}).dtype(DType::float32);
    match(rank, "logprobs.rank", {rows}).dtype(DType::int32);
    match(top_ids, "logprobs.top_ids", {rows, top_width}).dtype(DType::int32);
    match(top_logprobs, "logprobs.top_logprobs", {rows, top_width}).dtype(DType::float32);
    p.logprob = sampled.data<float>();
    p.rank = rank.data<int32_t>();
    p.top_ids = top_ids.data<int32_t>();
    p.top_logprobs = top_logprobs.data<float>();
    p.top_width = top_width.value;
  }
  for (int64_t i = 0; i < p.rows; ++i) {
    match.require(p.row_seat[i] >= 0 && p.row_seat[i] < seats.value, "row_seat",
                  "names a seat outside the table");
    match.require(!p.mask || p.mask_row[i] < mask_rows, "mask_row", "names a row outside mask");
  }
  const double work_ns = double(p.rows) * double(p.vocab) * kSampleNs;
  const auto kernel = cpu::kernels().sample;
  const auto scratch_bytes = size_t(cpu::sample_scratch_bytes(p.vocab));
  run_kernel(work_ns, [&] {
    cpu::parallel_for(p.rows, work_ns,
                      [&](int64_t row) { kernel(p, row, cpu::thread_scratch(scratch_bytes)); });
  });
}

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

void gather_tokens(py::handle out_, py::handle token_ids_, py::handle last_token_) {
  const TensorView out = view_of(out_, "out"), token_ids = view_of(token_ids_, "token_ids"),
                   last_token = view_of(last_token_, "last_token");
  Dim tokens{"T"}, seats{"seats"};
  const TensorMatcher match("gather_tokens", kCpuDevice);
  match(token_ids, "token_ids", {tokens}).dtype(DType::int32);
  match(out, "out", {tokens}).dtype(DType::int32);
  match(last_token, "last_token", {seats}).dtype(DType::int32);
  const auto *ids = token_ids.data<int32_t>(), *last = last_token.data<int32_t>();
  auto* result = out.data<int32_t>();
  for (int64_t i = 0; i < tokens.value; ++i) {
    const int64_t seat = -1 - int64_t(ids[i]);
    match.require(seat < seats.value, "token_ids", "names a seat outside last_token");
    result[i] = ids[i] >= 0 ? ids[i] : last[seat];
  }
}

py::list isas() {
  const char* names[4];
  const int32_t count = cpu::supported_isas(names);
  py::list result;
  for (int32_t i = 0; i < count; ++i) result.append(names[i]);
  return result;
}

}  // namespace

void register_cpu_ops(py::module_& m) {
  py::module_ ops = m.def_submodule("cpu", "Ops on CPU tensors; see stoker.ops for what they do.");
  ops.def("rms_norm", &rms_norm);
  ops.def("add_rms_norm", &add_rms_norm);
  ops.def("silu_and_mul", [](py::handle out, py::handle x) {
    activation_and_mul("silu_and_mul", cpu::Activation::silu, out, x);
  });
  ops.def("gelu_and_mul", [](py::handle out, py::handle x) {
    activation_and_mul("gelu_and_mul", cpu::Activation::gelu_tanh, out, x);
  });
  ops.def("rope_and_cache", &rope_and_cache);
  ops.def("paged_attention", &paged_attention);
  ops.def("linear", &linear);
  ops.def("sample", &sample);
  ops.def("copy_blocks", &copy_blocks);
  ops.def("swap_blocks", &swap_blocks);
  ops.def("gather_tokens", &gather_tokens);
  ops.def("isa", [] { return cpu::kernels().isa; }, "The instruction set in use.");
  ops.def("isas", &isas, "What this processor has, best last.");
  ops.def(
      "set_isa", [](const char* name) { cpu::set_isa(name); },
      "Chooses by name; '' is the best. For tests and measurements.");
  ops.def("num_threads", &cpu::num_threads);
  ops.def("set_num_threads", &cpu::set_num_threads,
          "How many threads an op may use; 0: torch's number.");
  ops.def("thread_pool", &cpu::thread_pool, "'torch' (its OpenMP team) or 'own'.");
  ops.def("set_thread_pool", &cpu::set_thread_pool, "'auto', 'torch' or 'own'.");
}

}  // namespace stoker
