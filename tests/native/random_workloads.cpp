// Runs random workloads one after the other and says which seeds showed a problem.
//
//   random_workloads [--first SEED] [--count N] [--threads] [--failing-plans] [--bug NAME]
//                    [--list-bugs] [--verbose]
//
// Exit code 0: none; 1: some; 2: called wrongly. With --bug (a build with STOKER_PLANTED_BUGS) it
// stops at the first.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/planted_bugs.h"
#include "short_memory.h"
#include "workload.h"

namespace {

int usage(const char* what) {
  std::fprintf(stderr,
               "%s\nusage: random_workloads [--first SEED] [--count N] [--threads] "
               "[--failing-plans] [--bug NAME] [--list-bugs] [--verbose]\n",
               what);
  return 2;
}

int list_bugs() {
  for (const std::string_view name : stoker::kBugNames) {
    if (name != "none") std::printf("%.*s\n", static_cast<int>(name.size()), name.data());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t first = 0;
  uint64_t count = 100;
  bool threads = false;
  bool failing_plans = false;
  bool verbose = false;
  bool bug = false;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const bool has_value = i + 1 < argc;
    if (arg == "--first" && has_value) {
      first = std::strtoull(argv[++i], nullptr, 10);
    } else if (arg == "--count" && has_value) {
      count = std::strtoull(argv[++i], nullptr, 10);
    } else if (arg == "--threads") {
      threads = true;
    } else if (arg == "--failing-plans") {
#ifdef STOKER_PLANTED_BUGS
      failing_plans = true;
#else
      return usage("--failing-plans needs a build with STOKER_PLANTED_BUGS");
#endif
    } else if (arg == "--verbose") {
      verbose = true;
    } else if (arg == "--list-bugs") {
      return list_bugs();
    } else if (arg == "--bug" && has_value) {
#ifdef STOKER_PLANTED_BUGS
      if (!stoker::plant(argv[++i])) return usage("no bug of that name");
      bug = true;
#else
      return usage("--bug needs a build with STOKER_PLANTED_BUGS");
#endif
    } else {
      return usage(("what is " + arg + "?").c_str());
    }
  }
  uint64_t wrong = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    stoker::test::Workload w = stoker::test::draw(seed);
    w.failing_plans = failing_plans;
    if (verbose) {
      std::printf("%s\n", w.describe().c_str());
      std::fflush(stdout);
    }
    const auto problems = threads ? stoker::test::run_on_threads(w) : stoker::test::run_by_turns(w);
    if (problems.empty()) continue;
    ++wrong;
    std::printf("%s\n", w.describe().c_str());
    for (const std::string& p : problems) std::printf("  %s\n", p.c_str());
    std::fflush(stdout);
    if (bug) break;
  }
  if (failing_plans) {
    const auto failed = static_cast<long long>(stoker::test::short_memory().failed);
    std::printf("%lld plans failed\n", failed);
    wrong += failed == 0;
  }
  std::printf("%llu workloads, %llu with problems\n", static_cast<unsigned long long>(count),
              static_cast<unsigned long long>(wrong));
  return wrong > 0 ? 1 : 0;
}
