// The thread behind WorkerExecutor: takes launched steps in order, hands finished results back.
#include "loop/worker_executor.h"

#include <exception>
#include <utility>

#include "base/check.h"

namespace stoker {

WorkerExecutor::WorkerExecutor(Executor& inner, int32_t overlap_depth)
    : inner_(inner), overlap_depth_(overlap_depth) {
  if (overlap_depth < 0) throw InvalidArgument("overlap_depth must be at least 0");
  thread_ = std::thread([this] { run(); });
}

WorkerExecutor::~WorkerExecutor() { stop(); }

void WorkerExecutor::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::byte* WorkerExecutor::buffer(int32_t index, const BatchLayout& layout) {
  return inner_.buffer(index, layout);
}

void WorkerExecutor::launch(const BatchBuffer& batch) {
  {
    const std::lock_guard lock(mutex_);
    queued_.push_back(batch);
  }
  changed_.notify_all();
}

void WorkerExecutor::launch_sample(BatchId batch_id, const LateMasks& late) {
  {
    const std::lock_guard lock(mutex_);
    late_for_ = batch_id;
    late_ = late;
  }
  changed_.notify_all();
}

void WorkerExecutor::collect(StepResult& result) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !done_.empty(); });
  std::swap(result, done_.front());
  spare_.push_back(std::move(done_.front()));
  done_.pop_front();
}

bool WorkerExecutor::ready() {
  const std::lock_guard lock(mutex_);
  return !done_.empty();
}

void WorkerExecutor::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || !queued_.empty(); });
    if (stop_) return;
    const BatchBuffer batch = queued_.front();
    queued_.pop_front();
    StepResult result;
    if (!spare_.empty()) {
      result = std::move(spare_.front());
      spare_.pop_front();
      result.clear();
    }
    lock.unlock();
    try {
      inner_.launch(batch);
      if ((batch.header().flags & kBatchLate) != 0) {
        const BatchId id = batch.header().batch_id;
        lock.lock();
        changed_.wait(lock, [&] { return stop_ || late_for_ >= id; });
        if (stop_) return;
        const LateMasks late = late_;
        lock.unlock();
        inner_.launch_sample(id, late);
      }
      inner_.collect(result);
    } catch (const std::exception& error) {
      // An executor must not throw; one that does has lost its device for all we know.
      result.clear();
      result.batch_id = batch.header().batch_id;
      result.status = StepStatus::fatal;
      result.message = error.what();
    }
    lock.lock();
    done_.push_back(std::move(result));
    changed_.notify_all();
  }
}

}  // namespace stoker
