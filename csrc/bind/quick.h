// Short ways around pybind11's dispatch for what Python calls at each step: 100 to 200 ns a call,
// a tenth of a small step. The bound method stays behind for all other arguments, errors of these,
// and documentation.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

namespace stoker {

// The object of a bound class whose type was checked.
template <typename C>
C& bound(PyObject* object) {
  auto* const instance = reinterpret_cast<pybind11::detail::instance*>(object);
  auto* const value = static_cast<C*>(instance->get_value_and_holder().value_ptr());
  if (value == nullptr) throw pybind11::type_error("the object was not made by its __init__");
  return *value;
}

template <typename Call>
PyObject* or_error(Call&& call) {
  try {
    return call();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (...) {
    pybind11::detail::try_translate_exceptions();
  }
  return nullptr;
}

// kCall(self, arguments, count): the result, or an empty object where the arguments are not the
// usual ones.
template <typename C, pybind11::object (*kCall)(C&, PyObject* const*, Py_ssize_t)>
class QuickMethod {
 public:
  static void add(pybind11::handle type, const char* name) {
    slow_ = pybind11::object(type.attr(name)).release().ptr();
    doc_ = pybind11::str(type.attr(name).attr("__doc__"));
    method_ = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)),
               METH_FASTCALL | METH_KEYWORDS, doc_.c_str()};
    auto* const of = reinterpret_cast<PyTypeObject*>(type.ptr());
    type.attr(name) =
        pybind11::reinterpret_steal<pybind11::object>(PyDescr_NewMethod(of, &method_));
  }

 private:
  static PyObject* call(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                        PyObject* keywords) {
    return or_error([&]() -> PyObject* {
      if (keywords == nullptr) {
        if (pybind11::object result = kCall(bound<C>(self), arguments, count))
          return result.release().ptr();
      }
      const Py_ssize_t all = count + (keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords));
      std::vector<PyObject*> with_self{self};
      with_self.insert(with_self.end(), arguments, arguments + all);
      return PyObject_Vectorcall(slow_, with_self.data(), size_t(count) + 1, keywords);
    });
  }

  static inline PyObject* slow_;
  static inline std::string doc_;
  static inline PyMethodDef method_;
};

// kGet(self), read only.
template <typename C, pybind11::object (*kGet)(const C&)>
void add_quick_property(pybind11::handle type, const char* name) {
  static PyGetSetDef property{
      name,
      [](PyObject* self, void*) {
        return or_error([&] { return kGet(bound<C>(self)).release().ptr(); });
      },
      nullptr, nullptr, nullptr};
  auto* const of = reinterpret_cast<PyTypeObject*>(type.ptr());
  type.attr(name) = pybind11::reinterpret_steal<pybind11::object>(PyDescr_NewGetSet(of, &property));
}

}  // namespace stoker
