// Writing the event log, and the digest by which a replayed batch is compared.
#include "sched/event_log.h"

#include <array>

#include "sched/event_codec.h"

namespace stoker {
namespace {

constexpr std::string_view kMagic = "stoker-events-3\n";

uint64_t mixed(uint64_t hash, const void* data, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3ULL;
  return hash;
}

}  // namespace

std::string_view event_log_magic() { return kMagic; }

EventLog::EventLog(const SchedulerConfig& config) : bytes_(kMagic) {
  Encoder c(bytes_);
  describe_config(c, config);
  c.field(static_cast<uint32_t>(config.kv_groups.size()));
  for (const KVGroup& group : config.kv_groups) describe_group(c, group);
}

void EventLog::add(const Req& req, TimeNs now) {
  Encoder c(bytes_);
  c.field(EventKind::add);
  c.field(now);
  describe_req(c, req);
}

void EventLog::abort(std::string_view rid, TimeNs now) {
  Encoder c(bytes_);
  c.field(EventKind::abort);
  c.field(rid);
  c.field(now);
}

void EventLog::fail(std::string_view rid, std::string_view why, TimeNs now) {
  Encoder c(bytes_);
  c.field(EventKind::fail);
  c.field(rid);
  c.field(why);
  c.field(now);
}

void EventLog::grammar_ready(std::string_view rid) {
  Encoder c(bytes_);
  c.field(EventKind::grammar_ready);
  c.field(rid);
}

void EventLog::schedule(TimeNs now, const BatchBuffer* batch) {
  Encoder c(bytes_);
  c.field(EventKind::schedule);
  c.field(now);
  const BatchDigest made = batch == nullptr ? BatchDigest{} : digest(*batch);
  c.field(made.decisions);
  c.field(made.bytes);
}

void EventLog::commit(BatchId id, StepStatus status, std::string_view message,
                      std::span<const int32_t> row_indptr, std::span<const Token> tokens,
                      std::span<const RowStatus> row_status,
                      std::span<const Ticket> finished_transfers, TimeNs now) {
  Encoder c(bytes_);
  c.field(EventKind::commit);
  c.field(id);
  c.field(status);
  c.field(message);
  c.field(row_indptr);
  c.field(tokens);
  c.field(row_status);
  c.field(finished_transfers);
  c.field(now);
}

void EventLog::policy_key(std::string_view rid, double key) {
  Encoder c(bytes_);
  c.field(EventKind::policy_key);
  c.field(rid);
  c.field(key);
}

void EventLog::pause(int32_t how) {
  Encoder c(bytes_);
  c.field(EventKind::pause);
  c.field(how);
}

void EventLog::take_events() { Encoder(bytes_).field(EventKind::take_events); }

void EventLog::flush() { Encoder(bytes_).field(EventKind::flush); }

void EventLog::pin(std::span<const Token> tokens, std::string_view salt) {
  Encoder c(bytes_);
  c.field(EventKind::pin);
  c.field(tokens);
  c.field(salt);
}

void EventLog::unpin(int64_t pin) {
  Encoder c(bytes_);
  c.field(EventKind::unpin);
  c.field(pin);
}

void EventLog::rates(double ns_per_token, double ns_per_byte) {
  Encoder c(bytes_);
  c.field(EventKind::rates);
  c.field(ns_per_token);
  c.field(ns_per_byte);
}

BatchDigest digest(const BatchBuffer& batch) {
  constexpr std::array decided = {Section::row_seat,      Section::row_indptr, Section::row_kv_len,
                                  Section::out_token,     Section::out_seat,   Section::out_kind,
                                  Section::out_position,  Section::positions,  Section::slots,
                                  Section::table_changes, Section::transfers};
  BatchDigest made{.decisions = 0xcbf29ce484222325ULL, .bytes = 0x9e3779b97f4a7c15ULL};
  const BatchHeader& header = batch.header();
  const auto whole = [&](Section s) {
    const auto& span = header.sections[static_cast<size_t>(s)];
    return std::pair(
        batch.data() + span.offset,
        static_cast<size_t>(span.count) * static_cast<size_t>(BatchLayout::element_bytes(s)));
  };
  made.decisions = mixed(made.decisions, &header.batch_id, sizeof header.batch_id);
  for (const Section s : decided) {
    if (s == Section::slots) {  // with several groups the section has gaps
      for (GroupId g = 0; g < batch.layout().limits().num_kv_groups; ++g) {
        made.decisions = mixed(made.decisions, batch.slots(g).data(),
                               static_cast<size_t>(header.num_tokens) * sizeof(int32_t));
      }
      continue;
    }
    const auto [data, size] = whole(s);
    made.decisions = mixed(made.decisions, data, size);
  }
  made.bytes = mixed(made.bytes, &made.decisions, sizeof made.decisions);
  for (const Section s :
       {Section::token_ids, Section::out_target, Section::seat_changes, Section::seat_data}) {
    const auto [data, size] = whole(s);
    made.bytes = mixed(made.bytes, data, size);
  }
  return made;
}

}  // namespace stoker
