// _core.cpu.sample: one token a row of logits.
#include "bind/cpu_kernel.h"

namespace py = pybind11;

namespace stoker {

void register_cpu_sample(py::module_& ops);

namespace {

constexpr double kSampleNs = 0.7;  // a logit, on one thread: for deciding about threads

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

}  // namespace

void register_cpu_sample(py::module_& ops) { ops.def("sample", &sample); }

}  // namespace stoker
