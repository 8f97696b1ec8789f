// Binds linear layers for few rows and the quantisation of rows.
#include "bind/cuda_common.h"
#include "cuda/linear.h"

namespace py = pybind11;

namespace stoker {
namespace {

void linear(py::handle out, py::handle x, py::handle weight, py::handle bias, py::handle x_scale,
            py::handle weight_scale, bool silu_and_mul) {
  const char* op = "linear";
  const TensorView to = view_of(out, "out"), in = view_of(x, "x"), w = view_of(weight, "weight"),
                   b = optional_view_of(bias, "bias"), xs = optional_view_of(x_scale, "x_scale"),
                   ws = optional_view_of(weight_scale, "weight_scale");
  const TensorMatcher match(op, in.device());
  Dim rows{"T"}, features{"features"}, columns{"in_features"};
  DTypeSlot type{"out"};
  match(to, "out", {rows, features}, free_strides(0)).dtype(type, kModelTypes);
  const int64_t weight_rows = features.value * (silu_and_mul ? 2 : 1);
  match.require(xs.defined() == ws.defined(), "x_scale", "and weight_scale come together");
  if (ws.defined()) {
    match(in, "x", {rows, columns}, free_strides(0)).dtype(DType::float8_e4m3fn);
    match(w, "weight", {weight_rows, columns}, free_strides(0)).dtype(DType::float8_e4m3fn);
    match(xs, "x_scale", {rows}).dtype(DType::float32);
    match(ws, "weight_scale", {weight_rows}).dtype(DType::float32);
  } else {
    match(in, "x", {rows, columns}, free_strides(0)).dtype(type);
    match(w, "weight", {weight_rows, columns}, free_strides(0)).dtype(type);
  }
  if (b.defined()) match(b, "bias", {features}).dtype(type);
  match.require(!(b.defined() && silu_and_mul), "bias", "cannot go with silu_and_mul");
  match.require(columns.value <= 1 << 20 && weight_rows <= 1 << 30, "weight", "is too large");
  const cuda::LinearParams p{.out = to.data(),
                             .x = in.data(),
                             .weight = w.data(),
                             .bias = b.defined() ? b.data() : nullptr,
                             .x_scale = xs.defined() ? xs.data<float>() : nullptr,
                             .weight_scale = ws.defined() ? ws.data<float>() : nullptr,
                             .rows = rows.value,
                             .out_stride = to.stride(0),
                             .x_stride = in.stride(0),
                             .weight_stride = w.stride(0),
                             .features = int32_t(features.value),
                             .columns = int32_t(columns.value),
                             .gated = silu_and_mul,
                             .type = cuda_type(type.value)};
  require_success(cuda::linear(p, launch_options(op, x, in)), op);
}

void quantize_rows(py::handle out, py::handle scale, py::handle x) {
  const char* op = "quantize_rows";
  const TensorView to = view_of(out, "out"), in = view_of(x, "x"), s = view_of(scale, "scale");
  const TensorMatcher match(op, in.device());
  Dim rows{"T"}, width{"H"};
  match(in, "x", {rows, width}, free_strides(0)).dtype_in(kModelTypes);
  match(to, "out", {rows, width}, free_strides(0)).dtype(DType::float8_e4m3fn);
  match(s, "scale", {rows}).dtype(DType::float32);
  const cuda::QuantizeRowsParams p{.out = to.data(),
                                   .scale = s.data<float>(),
                                   .x = in.data(),
                                   .rows = rows.value,
                                   .out_stride = to.stride(0),
                                   .x_stride = in.stride(0),
                                   .width = int32_t(width.value),
                                   .type = cuda_type(in.dtype())};
  require_success(cuda::quantize_rows(p, launch_options(op, x, in)), op);
}

}  // namespace

void register_cuda_linear(py::module_& m) {
  m.def("linear", &linear, py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("x_scale"), py::arg("weight_scale"), py::arg("silu_and_mul"));
  m.def("quantize_rows", &quantize_rows, py::arg("out"), py::arg("scale"), py::arg("x"));
}

}  // namespace stoker
