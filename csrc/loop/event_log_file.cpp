// Writing the event log away. A disk that is full ends the log, not the engine.
#include "loop/event_log_file.h"

#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace stoker {
namespace {

constexpr size_t kPiece = size_t{1} << 18;

}  // namespace

EventLogFile::EventLogFile(const std::string& path, const SchedulerConfig& config)
    : log_(config), file_(std::fopen(path.c_str(), "wb"), &std::fclose) {
  if (!file_) throw InvalidArgument("event_log '" + path + "': " + std::strerror(errno));
}

EventLogFile::~EventLogFile() { write(); }

void EventLogFile::turn(bool idle) {
  if (log_.bytes().empty() || (!idle && log_.bytes().size() < kPiece)) return;
  write();
}

void EventLogFile::write() {
  const std::string& bytes = log_.bytes();
  std::fwrite(bytes.data(), 1, bytes.size(), file_.get());
  std::fflush(file_.get());
  log_.clear();
}

}  // namespace stoker
