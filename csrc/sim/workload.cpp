// Turns a line of a workload into a req.
#include "sim/workload.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "sim/token_hash.h"

namespace stoker::sim {

void Workload::check_shape() const {
  const auto same = [&](size_t given, const char* what) {
    if (given == size()) return;
    throw InvalidArgument("workload: " + std::to_string(size()) + " times, but " +
                          std::to_string(given) + " " + what);
  };
  same(prompt_lens.size(), "prompt_lens");
  same(answer_lens.size(), "answer_lens");
  same(max_tokens.size(), "max_tokens");
  if (!sessions.empty()) same(sessions.size(), "sessions");
  if (!hash_indptr.empty()) same(hash_indptr.size() - 1, "runs of hash_ids");
  if (!hash_indptr.empty() &&
      (hash_indptr.front() != 0 || hash_indptr.back() != static_cast<int64_t>(hash_ids.size()) ||
       !std::is_sorted(hash_indptr.begin(), hash_indptr.end()))) {
    throw InvalidArgument("workload: hash_indptr must rise from 0 to the number of hash_ids");
  }
  if (hash_block < 1) throw InvalidArgument("workload: hash_block must be at least 1");
  if (vocab_size < 2) throw InvalidArgument("workload: vocab_size must be at least 2");
  if (users < 0) throw InvalidArgument("workload: users must be at least 0");
  if (users == 0 && !std::is_sorted(times.begin(), times.end())) {
    throw InvalidArgument("workload: times must not fall");
  }
  for (size_t i = 0; i < size(); ++i) {
    if (times[i] >= 0 && prompt_lens[i] >= 1 && answer_lens[i] >= 1 &&
        max_tokens[i] >= answer_lens[i]) {
      continue;
    }
    throw InvalidArgument("workload: req " + std::to_string(i) +
                          ": time >= 0, prompt and answer of at least 1 token and max_tokens >= "
                          "answer are needed");
  }
}

bool Workload::ends_early() const { return answer_lens != max_tokens; }

void Workload::prompt(size_t i, std::vector<Token>& out) const {
  const auto len = static_cast<size_t>(prompt_lens[i]);
  out.resize(len);
  const auto range = static_cast<uint64_t>(vocab_size - 1);
  // Token 0 ends answers; it is in no prompt. A run of tokens is a Weyl sequence from its id's
  // hash.
  const auto fill = [&](size_t begin, size_t end, uint64_t id) {
    uint32_t x = static_cast<uint32_t>(mix(id));
    for (size_t k = begin; k < end; ++k) {
      x += 0x9E3779B9U;
      const uint32_t y = (x ^ (x >> 15)) * 0x2C1B3C6DU;
      out[k] = static_cast<Token>(1 + ((static_cast<uint64_t>(y) * range) >> 32));
    }
  };
  size_t at = 0;
  if (!hash_indptr.empty()) {
    const auto block = static_cast<size_t>(hash_block);
    for (int64_t h = hash_indptr[i]; h < hash_indptr[i + 1] && at < len; ++h) {
      const size_t end = std::min(len, at + block);
      fill(at, end, static_cast<uint64_t>(hash_ids[static_cast<size_t>(h)]) << 1);
      at = end;
    }
  }
  fill(at, len, (static_cast<uint64_t>(i) << 1) | 1);
}

ReqPtr Workload::req(size_t i, bool lengths_only) const {
  auto made = std::make_shared<Req>();
  made->rid = std::to_string(i);
  if (!lengths_only) {
    // Room for the answer too, or the scheduler's own reserve() would copy the prompt.
    made->tokens.reserve(static_cast<size_t>(prompt_lens[i]) +
                         static_cast<size_t>(std::min(max_tokens[i], 512)));
    prompt(i, made->tokens);
  }
  made->prompt_len = prompt_lens[i];
  made->params.max_tokens = max_tokens[i];
  made->params.has_seed = true;
  made->params.seed = i;
  return made;
}

}  // namespace stoker::sim
