// Calls of the CUDA runtime, in order, until one fails.
#include "cuda/step_launcher.h"

#include <algorithm>

namespace stoker::cuda {
namespace {

// The first error of a sequence of calls.
class Calls {
 public:
  template <typename Call>
  Calls& then(Call call) {
    if (status_ == cudaSuccess) status_ = call();
    return *this;
  }
  operator cudaError_t() const { return status_; }

 private:
  cudaError_t status_ = cudaSuccess;
};

}  // namespace

StepLauncher::~StepLauncher() {
  for (const auto& of_kind : graphs_) {
    for (const auto& [bucket, graph] : of_kind) cudaGraphExecDestroy(graph);
  }
  for (const Entry& entry : entries_) {
    cudaEventDestroy(entry.began);
    cudaEventDestroy(entry.ended);
  }
}

cudaError_t StepLauncher::add_entry(const std::byte* host) {
  Entry entry{host, nullptr, nullptr, nullptr, {}};
  const cudaError_t status = Calls()
                                 .then([&] { return cudaSetDevice(device_index_); })
                                 .then([&] { return cudaEventCreate(&entry.began); })
                                 .then([&] { return cudaEventCreate(&entry.ended); });
  if (status == cudaSuccess) entries_.push_back(entry);
  return status;
}

cudaError_t StepLauncher::set_graph(StepGraph kind, int32_t bucket, cudaGraph_t graph) {
  cudaGraphExec_t made = nullptr;
  const cudaError_t status =
      Calls().then([&] { return cudaGraphInstantiate(&made, graph, 0); }).then([&] {
        return cudaGraphUpload(made, stream_);
      });
  if (status != cudaSuccess) {
    if (made != nullptr) cudaGraphExecDestroy(made);
    return status;
  }
  cudaGraphExec_t& place = graphs_[static_cast<size_t>(kind)][bucket];
  if (place != nullptr) cudaGraphExecDestroy(place);
  place = made;
  return cudaSuccess;
}

void StepLauncher::drop_graphs(StepGraph kind) {
  auto& of_kind = graphs_[static_cast<size_t>(kind)];
  for (const auto& [bucket, graph] : of_kind) cudaGraphExecDestroy(graph);
  of_kind.clear();
}

cudaError_t StepLauncher::begin(size_t entry) {
  entries_[entry].before = nullptr;
  // The loop's thread may be another one than that which made this.
  return Calls().then([&] { return cudaSetDevice(device_index_); }).then([&] {
    return cudaEventRecord(entries_[entry].began, stream_);
  });
}

cudaError_t StepLauncher::upload(size_t entry, const Upload& what) {
  const std::byte* host = entries_[entry].host;
  const auto copy = [&](int64_t begin, int64_t bytes) {
    if (bytes == 0) return cudaSuccess;
    return cudaMemcpyAsync(device_ + begin, host + begin, static_cast<size_t>(bytes),
                           cudaMemcpyHostToDevice, stream_);
  };
  return Calls()
      .then([&] { return copy(0, what.body); })
      .then([&] { return copy(what.table_begin, what.table_bytes); })
      .then([&] { return copy(what.seat_begin, what.seat_bytes); });
}

cudaGraphExec_t StepLauncher::find(StepGraph kind, int32_t bucket) const {
  const auto& of_kind = graphs_[static_cast<size_t>(kind)];
  const auto found = of_kind.find(bucket);
  return found == of_kind.end() ? nullptr : found->second;
}

cudaError_t StepLauncher::replay(StepGraph kind, int32_t bucket) {
  cudaGraphExec_t graph = find(kind, bucket);
  return graph == nullptr ? cudaErrorInvalidValue : cudaGraphLaunch(graph, stream_);
}

cudaError_t StepLauncher::end(size_t entry) {
  newest_ = entries_[entry].ended;
  return cudaEventRecord(newest_, stream_);
}

cudaError_t StepLauncher::launch(size_t entry, StepGraph kind, int32_t tokens, int32_t outs,
                                 const Upload& what) {
  cudaGraphExec_t whole =
      kind == StepGraph::decode && outs == tokens ? find(StepGraph::whole, tokens) : nullptr;
  if (whole != nullptr && newest_ != nullptr) {
    entries_[entry].before = newest_;
    entries_[entry].launched = Clock::now();
    return Calls()
        .then([&] { return cudaSetDevice(device_index_); })
        .then([&] { return upload(entry, what); })
        .then([&] { return cudaGraphLaunch(whole, stream_); })
        .then([&] { return end(entry); });
  }
  return Calls()
      .then([&] { return begin(entry); })
      .then([&] { return upload(entry, what); })
      .then([&] { return replay(kind, tokens); })
      .then([&] { return outs > 0 ? replay(StepGraph::head, outs) : cudaSuccess; })
      .then([&] { return end(entry); });
}

cudaError_t StepLauncher::wait(size_t entry, float* milliseconds) {
  const Entry& e = entries_[entry];
  const cudaError_t status = cudaEventSynchronize(e.ended);
  if (status != cudaSuccess) return status;
  if (e.before == nullptr) return cudaEventElapsedTime(milliseconds, e.began, e.ended);
  // It began when the one before had ended, unless it was launched later.
  const std::chrono::duration<float, std::milli> since = Clock::now() - e.launched;
  const cudaError_t measured = cudaEventElapsedTime(milliseconds, e.before, e.ended);
  *milliseconds = std::min(*milliseconds, since.count());
  return measured;
}

bool StepLauncher::is_done(size_t entry) const {
  return cudaEventQuery(entries_[entry].ended) != cudaErrorNotReady;
}

}  // namespace stoker::cuda
