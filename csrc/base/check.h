// Typed errors and checks: throw what a caller can cause, assert what would be our own bug.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace stoker {

// The caller gave something that cannot be used. Becomes ValueError in Python.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A broken invariant of our own: always a bug in stoker. Becomes RuntimeError in Python.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// Throws InternalError naming the place when `holds` is false. Cheap enough to stay on in release
// builds.
inline void check(bool holds, const char* what,
                  std::source_location at = std::source_location::current()) {
  if (!holds) [[unlikely]] {
    throw InternalError(std::string("internal error: ") + what + " (" + at.file_name() + ":" +
                        std::to_string(at.line()) + " in " + at.function_name() +
                        "); please report it");
  }
}

}  // namespace stoker
