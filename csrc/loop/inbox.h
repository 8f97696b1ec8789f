// What other threads tell the loop: a queue that takes constant time under its lock, and the loop's
// only place to sleep.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "base/ids.h"

namespace stoker {

template <typename Message>
class Inbox {
 public:
  // Any thread. Wakes the loop if it sleeps.
  void push(Message message) {
    {
      const std::lock_guard lock(mutex_);
      messages_.push_back(std::move(message));
    }
    changed_.notify_one();
  }

  // Takes all there is, in order; `out` is cleared first and its memory goes round.
  void drain(std::vector<Message>& out) {
    out.clear();
    const std::lock_guard lock(mutex_);
    std::swap(out, messages_);
  }

  // Sleeps until there is a message, the time is over (negative: never), or interrupt() was called
  // since the last sleep. A drain in between does not undo an interrupt: whoever stops the loop may
  // come between the loop's look at its stop flag and its turn.
  void sleep(TimeNs timeout_ns) {
    std::unique_lock lock(mutex_);
    const auto awake = [this] { return interrupted_ || !messages_.empty(); };
    if (timeout_ns < 0) {
      changed_.wait(lock, awake);
    } else {
      changed_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), awake);
    }
    interrupted_ = false;
  }

  void interrupt() {
    {
      const std::lock_guard lock(mutex_);
      interrupted_ = true;
    }
    changed_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Message> messages_;
  bool interrupted_ = false;
};

}  // namespace stoker
