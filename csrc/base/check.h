// Typed errors and checks: throw what a caller can cause, assert what would be our own bug.
#pragma once

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

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_check(const char* what, const char* file,
                                                              int line, const char* function) {
  throw InternalError(std::string("internal error: ") + what + " (" + file + ":" +
                      std::to_string(line) + " in " + function + "); please report it");
}

// Throws InternalError naming the place when `holds` is false. Cheap enough to stay on in release
// builds. (The place comes from builtins: clang 14, the fuzz build's, has no std::source_location.)
inline void check(bool holds, const char* what, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE(), const char* function = __builtin_FUNCTION()) {
  if (!holds) [[unlikely]]
    fail_check(what, file, line, function);
}

}  // namespace stoker
