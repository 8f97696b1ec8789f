// The scheduler's event log in a file: written in large pieces, and whenever there is nothing to
// do.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "sched/event_log.h"

namespace stoker {

class EventLogFile {
 public:
  // Throws InvalidArgument if the file cannot be made.
  EventLogFile(const std::string& path, const SchedulerConfig& config);
  ~EventLogFile();  // writes what is left
  EventLogFile(const EventLogFile&) = delete;
  EventLogFile& operator=(const EventLogFile&) = delete;

  EventLog& log() { return log_; }
  // After each turn of the loop: `idle`, or enough has come together.
  void turn(bool idle);

 private:
  void write();

  EventLog log_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

}  // namespace stoker
