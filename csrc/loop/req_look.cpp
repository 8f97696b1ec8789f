// The loop's answer to who asks how the reqs stand: made between two steps, by the thread that
// drives.
#include "loop/req_look.h"

#include <algorithm>
#include <chrono>
#include <future>

#include "loop/engine_loop.h"

namespace stoker {

namespace {

ReqLook look_at(ReqKey key, const Req& req, const WaitReason& wait, int32_t place) {
  const auto held =
      req.tables.empty()
          ? 0
          : std::ranges::count_if(req.tables[0], [](BlockId block) { return block != kNullBlock; });
  ReqLook look{.key = key,
               .rid = req.rid,
               .tenant = req.tenant,
               .state = req.state,
               .prefilling = req.state == ReqState::running && req.is_prefilling(),
               .wait = wait,
               .place = place,
               .prompt_len = req.prompt_len,
               .num_outputs = req.num_outputs(),
               .computed = req.computed,
               .length_limit = req.length_limit,
               .num_blocks = static_cast<int32_t>(held),
               .priority = req.priority,
               .account = req.account};
  look.account.decode_steps = std::max(look.account.decode_steps, req.decode_steps);
  return look;
}

}  // namespace

std::optional<std::vector<ReqLook>> EngineLoop::look(const std::string& rid, size_t max_waiting,
                                                     TimeNs timeout_ns) {
  const auto answer = std::make_shared<std::promise<std::vector<ReqLook>>>();
  std::future<std::vector<ReqLook>> future = answer->get_future();
  call([this, answer, rid, max_waiting](Scheduler&) {
    answer->set_value(take_look(rid, max_waiting));
  });
  if (future.wait_for(std::chrono::nanoseconds(timeout_ns)) != std::future_status::ready) {
    return std::nullopt;
  }
  return future.get();
}

std::vector<ReqLook> EngineLoop::take_look(const std::string& rid, size_t max_waiting) const {
  std::vector<ReqLook> looks;
  if (!failure_.empty()) return looks;
  const auto wanted = [&rid](const Req& req) {
    return rid.empty() || req.rid == rid || req.parent_rid == rid;
  };
  std::vector<ReqPtr> queue;
  scheduler_.waiting(queue);
  for (const auto& [key, req] : live_) {
    const bool queued = req->state == ReqState::waiting || req->state == ReqState::retracted ||
                        req->state == ReqState::swapped;
    if (queued || req->finished() || !wanted(*req)) continue;
    looks.push_back(look_at(key, *req, scheduler_.explain(*req), -1));
  }
  std::ranges::sort(looks, {}, &ReqLook::key);
  int32_t place = -1;
  for (const ReqPtr& req : queue) {
    ++place;
    if (max_waiting == 0) break;
    if (!wanted(*req)) continue;
    --max_waiting;
    looks.push_back(
        look_at(owners_[static_cast<size_t>(req->id)].key, *req, scheduler_.explain(*req), place));
  }
  return looks;
}

}  // namespace stoker
