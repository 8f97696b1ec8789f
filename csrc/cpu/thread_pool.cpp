// Finds torch's OpenMP at run time (no link dependency), and keeps a small pool for when there is
// none.
#include "cpu/thread_pool.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"

namespace stoker::cpu {
namespace {

// What we use of OpenMP's run-time library. libgomp exports these; so do LLVM's and Intel's, for
// programs built by gcc.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*max_threads)() = nullptr;
};

// The path of the loaded library that serves torch: one named libgomp beside libtorch_cpu, else any
// libgomp.
std::string loaded_openmp_path() {
  struct Found {
    std::string torch_folder, beside_torch, any;
    std::vector<std::string> gomps;
  } found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto& out = *static_cast<Found*>(data);
        const std::string path = info->dlpi_name ? info->dlpi_name : "";
        const size_t slash = path.rfind('/');
        const std::string folder = slash == std::string::npos ? "" : path.substr(0, slash);
        const std::string file = slash == std::string::npos ? path : path.substr(slash + 1);
        if (file.starts_with("libtorch_cpu.")) out.torch_folder = folder;
        if (file.starts_with("libgomp")) out.gomps.push_back(path);
        return 0;
      },
      &found);
  for (const std::string& path : found.gomps) {
    if (!found.torch_folder.empty() && path.starts_with(found.torch_folder)) return path;
  }
  // Without torch nobody's threads spin, and a team of our own would be no better than our pool.
  return found.torch_folder.empty() || found.gomps.empty() ? "" : found.gomps.front();
}

OpenMp find_openmp() {
  const std::string path = loaded_openmp_path();
  if (path.empty()) return {};
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return {};
  OpenMp found;
  found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(library, "GOMP_parallel"));
  found.max_threads =
      reinterpret_cast<decltype(found.max_threads)>(dlsym(library, "omp_get_max_threads"));
  return found.parallel && found.max_threads ? found : OpenMp{};
}

// Our own threads: they sleep between loops. One loop at a time; who comes second runs alone.
class OwnPool {
 public:
  void run(int threads, void (*body)(void*), void* context) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) {
      body(context);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (int(workers_.size()) < threads - 1) workers_.emplace_back([this] { work(); });
      body_ = body;
      context_ = context;
      wanted_ = threads - 1;
    }
    wake_.notify_all();
    body(context);
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;  // who has not begun need not: the tasks are all taken
    done_.wait(lock, [this] { return running_ == 0; });
  }

  ~OwnPool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return stop_ || wanted_ > 0; });
      if (stop_) return;
      --wanted_;
      ++running_;
      auto* body = body_;
      void* context = context_;
      lock.unlock();
      body(context);
      lock.lock();
      if (--running_ == 0) done_.notify_all();
    }
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  int wanted_ = 0;
  int running_ = 0;
  bool stop_ = false;
};

enum class Choice { automatic, torch, own };

struct State {
  OpenMp openmp = find_openmp();
  std::atomic<int> num_threads{0};
  std::atomic<Choice> choice{Choice::automatic};
  std::atomic<bool> forked{false};
  // Leaked on purpose: joining threads while the interpreter tears down helps nobody.
  OwnPool* own = new OwnPool;
};

State& state() {
  static State* const instance = [] {
    auto* made = new State;
    static State* shared;
    shared = made;
    pthread_atfork(nullptr, nullptr, [] { shared->forked.store(true); });
    return made;
  }();
  return *instance;
}

bool uses_openmp(const State& s) {
  return s.openmp.parallel && s.choice.load(std::memory_order_relaxed) != Choice::own;
}

struct Scratch {
  std::byte* data = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(data); }

  std::byte* at_least(size_t wanted) {
    if (bytes < wanted) {
      std::free(data);
      bytes = (wanted + 4095) / 4096 * 4096;
      data = static_cast<std::byte*>(std::aligned_alloc(64, bytes));
      if (!data) {
        bytes = 0;
        throw std::bad_alloc();
      }
    }
    return data;
  }
};
thread_local Scratch t_scratch, t_caller_scratch;

}  // namespace

int num_threads() {
  State& s = state();
  if (s.forked.load(std::memory_order_relaxed)) return 1;
  if (const int set = s.num_threads.load(std::memory_order_relaxed)) return set;
  if (s.openmp.max_threads) return s.openmp.max_threads();
  const int cores = int(std::thread::hardware_concurrency());
  return cores > 0 ? cores : 1;
}

void set_num_threads(int count) {
  if (count < 0 || count > 1024) {
    throw InvalidArgument("set_num_threads: count is " + std::to_string(count) +
                          ", allowed are 1 to 1024, or 0 for the default");
  }
  state().num_threads.store(count);
}

const char* thread_pool() { return uses_openmp(state()) ? "torch" : "own"; }

void set_thread_pool(const char* name) {
  State& s = state();
  if (std::strcmp(name, "auto") == 0) {
    s.choice.store(Choice::automatic);
  } else if (std::strcmp(name, "own") == 0) {
    s.choice.store(Choice::own);
  } else if (std::strcmp(name, "torch") == 0 && s.openmp.parallel) {
    s.choice.store(Choice::torch);
  } else {
    throw InvalidArgument(std::string("set_thread_pool: '") + name + "' is not one of auto, own" +
                          (s.openmp.parallel ? ", torch" : ""));
  }
}

std::byte* thread_scratch(size_t bytes) { return t_scratch.at_least(bytes); }

std::byte* caller_scratch(size_t bytes) { return t_caller_scratch.at_least(bytes); }

void detail::run_on_threads(int threads, void (*body)(void*), void* context) {
  State& s = state();
  if (s.forked.load(std::memory_order_relaxed)) {
    body(context);
  } else if (uses_openmp(s)) {
    s.openmp.parallel(body, context, unsigned(threads), 0);
  } else {
    s.own->run(threads, body, context);
  }
}

}  // namespace stoker::cpu
