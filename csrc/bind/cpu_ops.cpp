// _core.cpu: the ops on CPU tensors, norms, activations and linear here. Checks every argument,
// then hands raw pointers to csrc/cpu.
//
// Arguments are positional: pybind11's keyword handling would cost more than the checks.
#include <pybind11/pybind11.h>

#include "bind/cpu_kernel.h"

namespace py = pybind11;

namespace stoker {

void register_cpu_ops(py::module_& m);
void register_cpu_attention(py::module_& ops);
void register_cpu_sample(py::module_& ops);
void register_cpu_blocks(py::module_& ops);

namespace {

// Rough costs on one thread, for deciding about threads: ns an element.
constexpr double kNormNs = 0.15, kActivationNs = 0.4;

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
  ops.def("linear", &linear);
  ops.def("gather_tokens", &gather_tokens);
  register_cpu_attention(ops);
  register_cpu_sample(ops);
  register_cpu_blocks(ops);
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
