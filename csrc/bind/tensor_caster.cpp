// The lookup of the exchange table, once for each tensor type.
#include "bind/tensor_caster.h"

#include <atomic>
#include <string>

#include "tensor/dlpack.h"

namespace py = pybind11;

namespace stoker {
namespace {

// The table of the type seen last: in practice torch.Tensor, now and then torch.nn.Parameter.
struct Known {
  PyTypeObject* type;
  const dlpack::ExchangeApi* api;
};
std::atomic<const Known*> g_known[2];

const dlpack::ExchangeApi* look_up(PyTypeObject* type) {
  auto attribute = py::reinterpret_steal<py::object>(
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
  if (!attribute) {
    PyErr_Clear();
    return nullptr;
  }
  void* pointer = PyCapsule_GetPointer(attribute.ptr(), "dlpack_exchange_api");
  if (!pointer) throw py::error_already_set();
  const auto* api = static_cast<const dlpack::ExchangeApi*>(pointer);
  while (api && api->header.version.major != 1) {
    api = reinterpret_cast<const dlpack::ExchangeApi*>(api->header.prev_api);
  }
  if (!api || !api->dltensor_from_py_object_no_sync) return nullptr;
  // Types that carry the table live as long as the interpreter; so do these few bytes.
  auto* known = new Known{type, api};
  Py_INCREF(type);
  g_known[1].store(g_known[0].exchange(known, std::memory_order_acq_rel),
                   std::memory_order_release);
  return api;
}

const dlpack::ExchangeApi* api_of(py::handle object) {
  PyTypeObject* type = Py_TYPE(object.ptr());
  for (auto& slot : g_known) {
    const Known* known = slot.load(std::memory_order_acquire);
    if (known && known->type == type) [[likely]]
      return known->api;
  }
  return look_up(type);
}

}  // namespace

TensorView view_of(py::handle tensor, const char* name) {
  const dlpack::ExchangeApi* api = api_of(tensor);
  if (!api) [[unlikely]] {
    throw py::type_error(std::string(name) + " must be a torch.Tensor (torch >= 2.11), not " +
                         Py_TYPE(tensor.ptr())->tp_name);
  }
  dlpack::Tensor raw;
  if (api->dltensor_from_py_object_no_sync(tensor.ptr(), &raw) != 0) throw py::error_already_set();
  return TensorView(raw);
}

TensorView optional_view_of(py::handle tensor, const char* name) {
  return tensor.is_none() ? TensorView() : view_of(tensor, name);
}

void* current_stream(py::handle tensor, dlpack::Device device) {
  const dlpack::ExchangeApi* api = api_of(tensor);
  void* stream = nullptr;
  if (api && api->current_work_stream &&
      api->current_work_stream(device.device_type, device.device_id, &stream) != 0) {
    throw py::error_already_set();
  }
  return stream;
}

}  // namespace stoker
