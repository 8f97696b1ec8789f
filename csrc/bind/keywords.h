// Makes a bound struct from keyword arguments.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>

namespace stoker {

namespace py = pybind11;

// Sets attributes from keywords; a name that does not exist is a TypeError, as for any Python call.
template <typename T>
std::unique_ptr<T> from_keywords(const char* what, const py::type& type, const py::kwargs& given) {
  auto made = std::make_unique<T>();
  const py::object self = py::cast(made.get(), py::return_value_policy::reference);
  for (const auto& [key, value] : given) {
    if (!py::hasattr(type, key)) {
      throw py::type_error(std::string(what) + " has no field '" +
                           py::str(key).cast<std::string>() + "'");
    }
    py::setattr(self, key, value);
  }
  return made;
}

}  // namespace stoker
