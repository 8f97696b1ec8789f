// A mask source written in Python, called by the loop with the GIL held.
#pragma once

#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "loop/mask_source.h"

namespace stoker {

// Duck-typed: `fill(rows) -> (masks, failed)` and `forget(key, grammar)`; see
// python/stoker/_core/loop.pyi. An exception from fill ends the step's masked reqs with an error.
class PythonMaskSource final : public MaskSource {
 public:
  explicit PythonMaskSource(pybind11::object source);
  ~PythonMaskSource() override;

  std::span<const int32_t> fill(std::span<const MaskRequest> requests,
                                std::vector<MaskFailure>& failed) override;
  void forget(ReqKey key, int32_t grammar) override;

 private:
  using Masks = pybind11::array_t<int32_t, pybind11::array::c_style>;

  pybind11::object source_, fill_, forget_;
  Masks held_;  // what fill() returned last
};

}  // namespace stoker
