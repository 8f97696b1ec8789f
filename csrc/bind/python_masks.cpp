// The calls into a Python mask source, and what becomes of its exceptions.
#include "bind/python_masks.h"

#include <string>
#include <utility>

#include "base/check.h"

namespace stoker {

namespace py = pybind11;

PythonMaskSource::PythonMaskSource(py::object source) : source_(std::move(source)) {
  for (const char* name : {"fill", "forget"}) {
    if (!py::hasattr(source_, name)) {
      throw InvalidArgument(std::string("masks: has no attribute '") + name +
                            "'; see stoker._core.loop for what a mask source must have");
    }
  }
  fill_ = source_.attr("fill");
  forget_ = source_.attr("forget");
}

PythonMaskSource::~PythonMaskSource() {
  const py::gil_scoped_acquire gil;
  held_ = Masks();
  fill_ = py::object();
  forget_ = py::object();
  source_ = py::object();
}

std::span<const int32_t> PythonMaskSource::fill(std::span<const MaskRequest> requests,
                                                std::vector<MaskFailure>& failed) {
  const py::gil_scoped_acquire gil;
  try {
    py::list rows(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      const MaskRequest& r = requests[i];
      py::list tokens(r.new_tokens.size());
      for (size_t t = 0; t < r.new_tokens.size(); ++t) tokens[t] = r.new_tokens[t];
      rows[i] = py::make_tuple(r.key, r.grammar, r.num_outputs, std::move(tokens));
    }
    const py::tuple made = fill_(rows);
    held_ = made[0].cast<Masks>();
    if (held_.ndim() != 2 || held_.shape(0) != static_cast<py::ssize_t>(requests.size())) {
      throw InvalidArgument("masks.fill must return an int32 array of a row a request");
    }
    for (const py::handle one : made[1]) {
      auto [row, why] = one.cast<std::pair<size_t, std::string>>();
      if (row < requests.size()) failed.push_back({row, std::move(why)});
    }
    return {held_.data(), static_cast<size_t>(held_.size())};
  } catch (const std::exception& error) {
    for (size_t i = 0; i < requests.size(); ++i)
      failed.push_back({i, std::string("its grammar gave no mask: ") + error.what()});
    return {};
  }
}

void PythonMaskSource::forget(ReqKey key, int32_t grammar) {
  const py::gil_scoped_acquire gil;
  try {
    forget_(key, grammar);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("stoker: masks.forget");
  }
}

}  // namespace stoker
