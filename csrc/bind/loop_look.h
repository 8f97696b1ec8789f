// A ReqLook as a Python dict.
#pragma once

#include <pybind11/pybind11.h>

#include "loop/req_look.h"

namespace stoker {

pybind11::dict as_dict(const ReqLook& look);

}  // namespace stoker
