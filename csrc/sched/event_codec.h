// How the event log's fields are laid down and read back. One description of each record serves
// both ways.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "sched/config.h"
#include "sched/req.h"

namespace stoker {

class Encoder {
 public:
  explicit Encoder(std::string& out) : out_(out) {}
  template <typename T>
  void field(const T& value) {
    if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      out_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    } else {
      field(static_cast<uint32_t>(value.size()));
      for (const auto& item : value) {
        if constexpr (requires { item.first; }) {
          field(item.first);
          field(item.second);
        } else {
          field(item);
        }
      }
    }
  }

 private:
  std::string& out_;
};

class Decoder {
 public:
  explicit Decoder(std::string_view in) : in_(in) {}
  bool at_end() const { return in_.empty(); }
  template <typename T>
  void field(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte;
      field(byte);
      value = byte != 0;
    } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      take(&value, sizeof(T));
    } else {
      uint32_t size;
      field(size);
      if (size > in_.size()) throw InvalidArgument("event log: a list is longer than the log");
      value.clear();
      for (uint32_t i = 0; i < size; ++i) {
        typename T::value_type item{};
        if constexpr (requires { item.first; }) {
          field(item.first);
          field(item.second);
        } else {
          field(item);
        }
        value.push_back(item);
      }
    }
  }

 private:
  void take(void* to, size_t size) {
    if (size > in_.size()) throw InvalidArgument("event log: it ends in the middle of a record");
    std::memcpy(to, in_.data(), size);
    in_.remove_prefix(size);
  }
  std::string_view in_;
};

template <typename Codec, typename Group>
void describe_group(Codec& c, Group& g) {
  c.field(g.kind);
  c.field(g.window);
  c.field(g.block_size);
  c.field(g.num_blocks);
  c.field(g.num_host_blocks);
  c.field(g.bytes_per_block);
}

template <typename Codec, typename Config>
void describe_config(Codec& c, Config& s) {
  c.field(s.max_num_seqs);
  c.field(s.max_num_batched_tokens);
  c.field(s.max_model_len);
  c.field(s.vocab_size);
  c.field(s.eos_token_ids);
  c.field(s.overlap_depth);
  c.field(s.enable_prefix_caching);
  c.field(s.batching);
  c.field(s.schedule_policy);
  c.field(s.admission);
  c.field(s.schedule_conservativeness);
  c.field(s.head_of_line);
  c.field(s.bypass_limit);
  c.field(s.aging_limit);
  c.field(s.preemption);
  c.field(s.preemption_victim);
  c.field(s.prefix_eviction);
  c.field(s.prefill_split);
  c.field(s.max_running_per_tenant);
  c.field(s.max_queued_per_tenant);
  c.field(s.long_prefill_token_threshold);
  c.field(s.urgent_prefill_token_threshold);
  c.field(s.max_queued_reqs);
  c.field(s.seed);
}

template <typename Codec, typename R>
void describe_req(Codec& c, R& r) {
  c.field(r.rid);
  c.field(r.tokens);
  c.field(r.cache_salt);
  c.field(r.priority);
  c.field(r.tenant);
  c.field(r.tenant_weight);
  c.field(r.deadline_ttft);
  c.field(r.deadline_tpot);
  c.field(r.drop_when_late);
  c.field(r.pool);
  c.field(r.grammar);
  c.field(r.grammar_ready);
  c.field(r.policy_key);
  auto& p = r.params;
  c.field(p.temperature);
  c.field(p.top_p);
  c.field(p.min_p);
  c.field(p.top_k);
  c.field(p.repetition_penalty);
  c.field(p.presence_penalty);
  c.field(p.frequency_penalty);
  c.field(p.max_tokens);
  c.field(p.min_tokens);
  c.field(p.ignore_eos);
  c.field(p.has_seed);
  c.field(p.seed);
  c.field(p.n);
  c.field(p.num_logprobs);
  c.field(p.prompt_logprobs);
  c.field(p.stop_token_ids);
  c.field(p.logit_bias);
}

}  // namespace stoker
