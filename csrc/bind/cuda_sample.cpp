// Binds sample: the tensors of a SeatTable, one by one, checked against the logits.
#include <cstddef>

#include "bind/cuda_common.h"
#include "cuda/sample.h"
#include "sched/schedule_batch.h"

namespace py = pybind11;

namespace stoker {
namespace {

// The kernel reads what the scheduler writes.
static_assert(sizeof(cuda::SeatRecord) == sizeof(SeatChange) &&
              offsetof(cuda::SeatRecord, temperature) == offsetof(SeatChange, temperature) &&
              offsetof(cuda::SeatRecord, top_k) == offsetof(SeatChange, top_k) &&
              offsetof(cuda::SeatRecord, repetition_penalty) ==
                  offsetof(SeatChange, repetition_penalty) &&
              offsetof(cuda::SeatRecord, num_logprobs) == offsetof(SeatChange, num_logprobs) &&
              offsetof(cuda::SeatRecord, seed_low) == offsetof(SeatChange, seed_low) &&
              offsetof(cuda::SeatRecord, min_position) == offsetof(SeatChange, min_position) &&
              offsetof(cuda::SeatRecord, num_bias) == offsetof(SeatChange, num_bias) &&
              offsetof(cuda::SeatRecord, num_stop) == offsetof(SeatChange, num_stop));

void sample(py::handle out_tokens, py::handle logits, py::handle records, py::handle bias_ids,
            py::handle bias_values, py::handle stop_ids, py::handle penalty_counts,
            py::handle row_seat, py::handle row_position, py::handle mask, py::handle mask_row,
            py::handle sampled, py::handle rank, py::handle top_ids, py::handle top_logprobs) {
  const char* op = "sample";
  const TensorView out = view_of(out_tokens, "out_tokens"), values = view_of(logits, "logits"),
                   seats = view_of(records, "seats.records"),
                   bias = view_of(bias_ids, "seats.bias_ids"),
                   bias_value = view_of(bias_values, "seats.bias_values"),
                   stop = view_of(stop_ids, "seats.stop_ids"),
                   counts = optional_view_of(penalty_counts, "seats.penalty_counts"),
                   seat = view_of(row_seat, "row_seat"),
                   position = view_of(row_position, "row_position"),
                   bits = optional_view_of(mask, "mask"),
                   bits_row = optional_view_of(mask_row, "mask_row"),
                   logprob = optional_view_of(sampled, "logprobs.sampled"),
                   ranks = optional_view_of(rank, "logprobs.rank"),
                   best_ids = optional_view_of(top_ids, "logprobs.top_ids"),
                   best_logprobs = optional_view_of(top_logprobs, "logprobs.top_logprobs");
  const TensorMatcher match(op, values.device());
  Dim rows{"N"}, vocab{"V"}, num_seats{"seats"}, width{"bias"}, best{"K"};
  match(values, "logits", {rows, vocab}, free_strides(0)).dtype_in(kModelTypes);
  match.require(vocab.value <= cuda::kMaxSampledVocab, "logits",
                "must have at most 1,048,575 columns, whose probabilities are summed exactly");
  match(out, "out_tokens", {rows}).dtype(DType::int32);
  match(seats, "seats.records", {num_seats, int64_t(sizeof(SeatChange) / 4)}).dtype(DType::int32);
  match(bias, "seats.bias_ids", {num_seats, width}, free_strides(0)).dtype(DType::int32);
  match(bias_value, "seats.bias_values", {num_seats, width}, free_strides(0)).dtype(DType::float32);
  match(stop, "seats.stop_ids", {num_seats, kAnySize}, free_strides(0)).dtype(DType::int32);
  if (counts.defined())
    match(counts, "seats.penalty_counts", {num_seats, vocab}, free_strides(0)).dtype(DType::int32);
  match(seat, "row_seat", {rows}).dtype(DType::int32);
  match(position, "row_position", {rows}).dtype(DType::int32);
  const bool masked = bits.defined() && bits_row.defined();
  if (masked) {
    match(bits, "mask", {kAnySize, (vocab.value + 31) / 32}, free_strides(0)).dtype(DType::int32);
    match(bits_row, "mask_row", {rows}).dtype(DType::int32);
  }
  if (logprob.defined()) {
    match(logprob, "logprobs.sampled", {rows}).dtype(DType::float32);
    match(ranks, "logprobs.rank", {rows}).dtype(DType::int32);
    match(best_ids, "logprobs.top_ids", {rows, best}, free_strides(0)).dtype(DType::int32);
    match(best_logprobs, "logprobs.top_logprobs", {rows, best}, free_strides(0))
        .dtype(DType::float32);
    match.require(best_ids.stride(0) == best_logprobs.stride(0), "logprobs.top_logprobs",
                  "must have the row stride of top_ids");
  }
  const cuda::SampleParams p{
      .out_tokens = out.data<int32_t>(),
      .logits = values.data(),
      .seats = seats.data<cuda::SeatRecord>(),
      .bias_ids = bias.data<int32_t>(),
      .bias_values = bias_value.data<float>(),
      .stop_ids = stop.data<int32_t>(),
      .penalty_counts = counts.defined() ? counts.data<int32_t>() : nullptr,
      .row_seat = seat.data<int32_t>(),
      .row_position = position.data<int32_t>(),
      .mask = masked ? bits.data<int32_t>() : nullptr,
      .mask_row = masked ? bits_row.data<int32_t>() : nullptr,
      .sampled_logprob = logprob.defined() ? logprob.data<float>() : nullptr,
      .rank = logprob.defined() ? ranks.data<int32_t>() : nullptr,
      .top_ids = logprob.defined() ? best_ids.data<int32_t>() : nullptr,
      .top_logprobs = logprob.defined() ? best_logprobs.data<float>() : nullptr,
      .rows = rows.value,
      .logits_stride = values.stride(0),
      .bias_stride = bias.stride(0),
      .bias_value_stride = bias_value.stride(0),
      .stop_stride = stop.stride(0),
      .counts_stride = counts.defined() ? counts.stride(0) : 0,
      .mask_stride = masked ? bits.stride(0) : 0,
      .top_stride = logprob.defined() ? best_ids.stride(0) : 0,
      .vocab = int32_t(vocab.value),
      .max_top = logprob.defined() ? int32_t(best.value) : 0,
      .type = cuda_type(values.dtype())};
  require_success(cuda::sample(p, launch_options(op, logits, values)), op);
}

}  // namespace

void register_cuda_sample(py::module_& m) {
  m.def("sample", &sample, py::arg("out_tokens"), py::arg("logits"), py::arg("records"),
        py::arg("bias_ids"), py::arg("bias_values"), py::arg("stop_ids"), py::arg("penalty_counts"),
        py::arg("row_seat"), py::arg("row_position"), py::arg("mask"), py::arg("mask_row"),
        py::arg("sampled"), py::arg("rank"), py::arg("top_ids"), py::arg("top_logprobs"));
}

}  // namespace stoker
