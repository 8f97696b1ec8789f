// See short_memory.h.
#include "short_memory.h"

#include <cstddef>
#include <cstdlib>
#include <new>

#include "base/plan_phase.h"

// The sanitizers bring an operator new of their own.
#if defined(STOKER_PLANTED_BUGS) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {

void look_at_plan() {
  using stoker::PlanPhase;
  const PlanPhase phase = stoker::plan_phase();
  if (phase == PlanPhase::none) return;
  if (phase == PlanPhase::deciding) {
    if (stoker::test::asked_while_deciding++ == 0 && std::getenv("STOKER_ABORT") != nullptr)
      std::abort();  // for a debugger
    return;
  }
  auto& memory = stoker::test::short_memory();
  if (memory.fails_in < 0 || memory.fails_in-- > 0) return;
  if (--memory.failures > 0) memory.fails_in = 0;
  ++memory.failed;
  throw std::bad_alloc();
}

void* some(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) {
  look_at_plan();
  return some(std::malloc(size > 0 ? size : 1));
}
void* operator new(std::size_t size, std::align_val_t align) {
  look_at_plan();
  const auto step = static_cast<std::size_t>(align);
  return some(std::aligned_alloc(step, (size + step - 1) / step * step));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#endif
