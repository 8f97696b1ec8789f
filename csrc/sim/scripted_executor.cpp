// Executes a batch on the pretend device and checks what a batch promises.
#include "sim/scripted_executor.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "sched/attention_plan.h"

namespace stoker::sim {

namespace {

constexpr size_t kAlignment = 64;

std::string text(const char* what, int64_t value) {
  return std::string(" ") + what + " " + std::to_string(value);
}

uint64_t checksum(const BatchBuffer& batch) {
  const auto bytes = static_cast<size_t>(batch.header().used_bytes);
  uint64_t sum = bytes;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, batch.data() + i, 8);
    sum = std::rotl(sum ^ word, 23) * 0x9E3779B97F4A7C15ULL;
  }
  return sum;
}

template <typename T>
bool contains(const std::vector<T>& values, T value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

}  // namespace

ScriptedExecutor::ScriptedExecutor(ScriptedConfig config) : config_(std::move(config)) {
  if (config_.overlap_depth < 0) throw InvalidArgument("overlap_depth must be at least 0");
  if (config_.groups.empty()) throw InvalidArgument("groups: at least one KV group is needed");
  if (config_.rule.vocab_size < 2) throw InvalidArgument("vocab_size must be at least 2");
  // Until the layout is known there is nothing to keep a table for.
  kv_ = std::make_unique<FakeKv>(config_.groups, 1, 1);
}

ScriptedExecutor::~ScriptedExecutor() = default;

const std::vector<Violation>& ScriptedExecutor::violations() const { return kv_->violations(); }
int64_t ScriptedExecutor::num_violations() const { return kv_->num_violations(); }

std::byte* ScriptedExecutor::buffer(int32_t index, const BatchLayout& layout) {
  if (index == 0) {
    const auto seats = layout.limits().max_num_seqs + 1;
    kv_ = std::make_unique<FakeKv>(config_.groups, seats, layout.limits().max_blocks_per_req);
    seats_.assign(static_cast<size_t>(seats), {});
  }
  memory_.push_back(std::make_unique<std::byte[]>(layout.bytes() + kAlignment));
  void* at = memory_.back().get();
  size_t space = layout.bytes() + kAlignment;
  return static_cast<std::byte*>(std::align(kAlignment, layout.bytes(), at, space));
}

void ScriptedExecutor::launch(const BatchBuffer& batch) {
  Step step;
  step.batch = batch;
  step.batch_id = batch.header().batch_id;
  step.checksum = checksum(batch);
  step.waits = (batch.header().flags & kBatchLate) != 0;
  kv_->begin_step(step.batch_id);
  if (step.batch_id <= last_launched_) {
    kv_->violate("batches out of order", text("after", last_launched_));
  }
  last_launched_ = step.batch_id;
  if (queue_.size() > static_cast<size_t>(config_.overlap_depth)) {
    kv_->violate("too many steps in flight", text("launched", static_cast<int64_t>(queue_.size())));
  }
  for (const SeatChange& c : batch.used<SeatChange>(Section::seat_changes)) {
    for (const Step& before : queue_) {
      const auto rows = before.batch.used<int32_t>(Section::row_seat);
      if (std::find(rows.begin(), rows.end(), c.seat) != rows.end()) {
        kv_->violate("seat taken while a step in flight uses it",
                     text("seat", c.seat) + text("used by step", before.batch_id));
      }
    }
  }
  queue_.push_back(std::move(step));
  if (mix(static_cast<uint64_t>(last_launched_)) % 100 < config_.eager_percent) {
    execute_until(queue_.size() - 1);
  }
}

void ScriptedExecutor::launch_sample(BatchId batch_id, const LateMasks& late) {
  kv_->begin_step(batch_id);
  if (queue_.empty() || queue_.front().batch_id != batch_id || !queue_.front().waits) {
    kv_->violate("masks for a step that does not wait for them", text("batch", batch_id));
    return;
  }
  Step& step = queue_.front();
  step.waits = false;
  step.mask_row.assign(late.mask_row.begin(), late.mask_row.end());
  step.mask_bits.assign(late.bits.begin(), late.bits.end());
  step.mask_words = late.words;
}

void ScriptedExecutor::collect(StepResult& result) {
  check(!queue_.empty(), "collect without a launched step");
  if (queue_.front().waits) {
    kv_->violate("collected before its masks came", text("batch", queue_.front().batch_id));
    queue_.front().waits = false;
  }
  execute_until(0);
  Step& step = queue_.front();
  result = std::move(step.result);
  kv_->take_finished(result.finished_transfers);
  queue_.pop_front();
}

void ScriptedExecutor::execute_until(size_t index) {
  for (size_t i = 0; i <= index; ++i) {
    if (queue_[i].waits) return;
    if (!queue_[i].executed) execute(queue_[i]);
  }
}

void ScriptedExecutor::execute(Step& step) {
  step.executed = true;
  StepResult& result = step.result;
  result.batch_id = step.batch_id;
  kv_->begin_step(step.batch_id);
  const BatchBuffer& batch = step.batch;
  if (checksum(batch) != step.checksum || batch.header().batch_id != step.batch_id) {
    kv_->violate("buffer changed in flight", text("batch", step.batch_id));
  }
  ++steps_;
  const bool fatal = step.batch_id == config_.fatal_step;
  const bool failing = fatal || contains(config_.failing_steps, step.batch_id);
  if (!sane(batch)) {
    result.status = StepStatus::fatal;
    result.message = "the batch is malformed";
    return;
  }
  apply_changes(batch);
  for (const Transfer& t : batch.used<Transfer>(Section::transfers)) kv_->begin_transfer(t);
  write_rows(batch, failing);
  if (failing) {
    std::vector<int32_t> failed;  // seats with a row, or with an output row alone
    for (const Section s : {Section::row_seat, Section::out_seat}) {
      for (const int32_t of : batch.used<int32_t>(s)) {
        if (!contains(failed, of)) failed.push_back(of);
      }
    }
    failed_rows_ += static_cast<int64_t>(failed.size());
    result.status = fatal ? StepStatus::fatal : StepStatus::failed;
    result.message = "step " + std::to_string(step.batch_id) + " failed, as the script says";
  } else {
    check_work(batch);
    read_rows(step);
  }
  // Nothing else happens in a step without tokens: it waits for all copies.
  kv_->complete_transfers(step.batch_id, config_.max_transfer_delay,
                          batch.header().num_tokens == 0);
  tokens_ += batch.header().num_tokens;
  const StepWork work = count_work(batch, 0, 0);
  result.device_time = config_.cost.time(work, 0);
  if (work.host_copies > 0) {
    result.transfer_bytes = work.host_copies * config_.bytes_per_block;
    result.transfer_time =
        static_cast<TimeNs>(static_cast<double>(work.host_copies) * config_.cost.host_copy);
  }
  device_time_ += result.device_time;
}

bool ScriptedExecutor::sane(const BatchBuffer& batch) {
  const BatchHeader& h = batch.header();
  const BatchLayout& layout = batch.layout();
  const BatchLimits& limits = layout.limits();
  const int64_t before = kv_->num_violations();
  const auto expect = [&](bool holds, const char* check, int64_t value) {
    if (!holds) kv_->violate(check, text("value", value));
    return holds;
  };
  expect(h.version == kBatchVersion, "unknown batch version", h.version);
  expect(h.num_tokens >= 0 && h.num_tokens <= limits.max_num_batched_tokens,
         "over the token budget", h.num_tokens);
  expect(h.num_rows >= 0 && h.num_rows <= limits.max_num_seqs, "over the seats", h.num_rows);
  for (size_t s = 0; s < kNumSections; ++s) {
    const auto section = static_cast<Section>(s);
    const SectionSpan span = h.sections[s];
    const int64_t end = span.offset + int64_t{span.count} * BatchLayout::element_bytes(section);
    expect(span.count >= 0 && span.count <= layout.capacity(section), "section over its capacity",
           static_cast<int64_t>(s));
    expect(span.count == 0 || (span.offset == layout.offset(section) && end <= h.used_bytes),
           "section outside of the used bytes", static_cast<int64_t>(s));
  }
  const auto rows = static_cast<size_t>(h.num_rows);
  const auto seats = batch.used<int32_t>(Section::row_seat);
  const auto indptr = batch.used<int32_t>(Section::row_indptr);
  const auto kv_len = batch.used<int32_t>(Section::row_kv_len);
  const auto ids = batch.used<int32_t>(Section::token_ids);
  const auto positions = batch.used<int32_t>(Section::positions);
  const bool sized =
      (rows == 0 || (seats.size() == rows && indptr.size() == rows + 1 && kv_len.size() == rows)) &&
      ids.size() == static_cast<size_t>(h.num_tokens) && positions.size() == ids.size();
  if (!expect(sized, "sections do not agree with the header", h.num_rows)) return false;
  std::vector<bool> seen(seats_.size(), false);
  for (size_t r = 0; r < rows; ++r) {
    const int32_t count = indptr[r + 1] - indptr[r];
    const bool in_range = seats[r] > kNoSeat && static_cast<size_t>(seats[r]) < seats_.size();
    if (!expect(in_range, "row of no seat", seats[r])) return false;
    expect(!seen[static_cast<size_t>(seats[r])], "two rows of one seat", seats[r]);
    seen[static_cast<size_t>(seats[r])] = true;
    if (!expect(count >= 1 && indptr[r] >= 0 && indptr[r + 1] <= h.num_tokens, "row of no tokens",
                static_cast<int64_t>(r))) {
      return false;
    }
    expect(static_cast<int32_t>(r) >= h.num_decode_rows || count == 1, "decode row of many tokens",
           static_cast<int64_t>(r));
    for (int32_t i = 0; i < count; ++i) {
      const auto t = static_cast<size_t>(indptr[r] + i);
      expect(positions[t] == kv_len[r] - count + i, "positions do not end at the KV length",
             positions[t]);
    }
  }
  expect(rows == 0 || indptr[rows] == h.num_tokens, "rows do not cover the tokens", h.num_tokens);
  return kv_->num_violations() == before;
}

void ScriptedExecutor::apply_changes(const BatchBuffer& batch) {
  if ((batch.header().flags & kBatchFull) != 0) kv_->forget_tables();
  auto changes = batch.used<TableChange>(Section::table_changes);
  if (planted(Bug::device_lost_table_change) && changes.size() > 2) {
    changes = changes.first(changes.size() - 1);
  }
  for (const TableChange& c : changes) kv_->set_table(c);
  const auto data = batch.used<int32_t>(Section::seat_data);
  for (const SeatChange& c : batch.used<SeatChange>(Section::seat_changes)) {
    if (c.seat <= kNoSeat || static_cast<size_t>(c.seat) >= seats_.size()) {
      kv_->violate("seat change out of range", text("seat", c.seat));
      continue;
    }
    SeatState& s = seat(c.seat);
    const uint64_t seed_before = s.seed;
    s = {};
    s.seed = (static_cast<uint64_t>(c.seed_high) << 32) | c.seed_low;
    if (planted(Bug::device_stale_seed) && seed_before != 0) s.seed = seed_before;
    s.min_position = c.min_position;
    s.num_logprobs = c.num_logprobs;
    const auto stop_begin = static_cast<size_t>(c.data_begin + 2 * c.num_bias);
    const auto stop_count = static_cast<size_t>(c.num_stop);
    if (c.data_begin < 0 || stop_begin + stop_count > data.size()) {
      if (c.num_stop > 0) kv_->violate("seat data out of range", text("seat", c.seat));
      continue;
    }
    const auto stop = data.subspan(stop_begin, stop_count);
    s.stop.assign(stop.begin(), stop.end());
  }
}

void ScriptedExecutor::write_rows(const BatchBuffer& batch, bool failing) {
  const BatchHeader& h = batch.header();
  const auto row_seat = batch.used<int32_t>(Section::row_seat);
  const auto indptr = batch.used<int32_t>(Section::row_indptr);
  const auto kv_len = batch.used<int32_t>(Section::row_kv_len);
  const auto ids = batch.used<int32_t>(Section::token_ids);
  const auto positions = batch.used<int32_t>(Section::positions);
  if (failing) {  // also who only reads a row of another seat
    for (const Seat of : batch.used<int32_t>(Section::out_seat)) seat(of).tainted = true;
  }
  for (int32_t r = 0; r < h.num_rows; ++r) {
    const Seat at = row_seat[static_cast<size_t>(r)];
    SeatState& s = seat(at);
    if (failing) s.tainted = true;
    const int32_t first = positions[static_cast<size_t>(indptr[static_cast<size_t>(r)])];
    if (s.seq_len >= 0 && s.seq_len != first && !s.tainted) {
      kv_->violate("row does not continue its seat",
                   text("seat", at) + text("holds", s.seq_len) + text("row begins at", first));
    }
    s.seq_len = kv_len[static_cast<size_t>(r)];
    for (int32_t t = indptr[static_cast<size_t>(r)]; t < indptr[static_cast<size_t>(r) + 1]; ++t) {
      const auto i = static_cast<size_t>(t);
      Token token = ids[i];
      if (token < 0) {
        const Seat of = -1 - token;
        if (of != at) {
          kv_->violate("last token of another seat", text("seat", at) + text("names", of));
        }
        token = s.last_token;
        if (s.last_position != positions[i] && !s.tainted) {
          kv_->violate(
              "last token of another position",
              text("seat", at) + text("position", positions[i]) + text("has", s.last_position));
        }
      }
      for (GroupId g = 0; g < kv_->num_groups(); ++g) {
        kv_->write(g, at, positions[i], batch.slots(g)[i], token, s.tainted);
      }
    }
  }
}

FakeKv::ReadResult ScriptedExecutor::context(Seat at, int32_t kv_len) {
  FakeKv::ReadResult all = kv_->read(0, at, kv_len);
  for (GroupId g = 1; g < kv_->num_groups(); ++g) {
    const FakeKv::ReadResult one = kv_->read(g, at, kv_len);
    all.hash = mix(all.hash ^ std::rotl(one.hash, g));
    all.sound = all.sound && one.sound;
  }
  return all;
}

void ScriptedExecutor::read_rows(Step& step) {
  const BatchBuffer& batch = step.batch;
  StepResult& result = step.result;
  const BatchHeader& h = batch.header();
  const auto indptr = batch.used<int32_t>(Section::row_indptr);
  const auto kv_len = batch.used<int32_t>(Section::row_kv_len);
  const auto row_seat = batch.used<int32_t>(Section::row_seat);
  const auto out_token = batch.used<int32_t>(Section::out_token);
  const auto out_kind = batch.used<int32_t>(Section::out_kind);
  result.row_status.assign(out_token.size(), RowStatus::ok);
  if (std::any_of(out_kind.begin(), out_kind.end(),
                  [](int32_t k) { return k == static_cast<int32_t>(OutKind::score); })) {
    result.scores.assign(out_token.size(), 0.0F);
  }
  std::vector<bool> read(static_cast<size_t>(h.num_rows), false);
  for (size_t o = 0; o < out_token.size(); ++o) {
    const int32_t t = out_token[o];
    const auto above = std::upper_bound(indptr.begin(), indptr.end(), t);
    const auto row = static_cast<int32_t>(above - indptr.begin()) - 1;
    if (t < 0 || row < 0 || row >= h.num_rows) {
      kv_->violate("output of no row", text("token", t));
      result.row_status[o] = RowStatus::failed;
      if (out_kind[o] == static_cast<int32_t>(OutKind::sample)) result.token_ids.push_back(-1);
      continue;
    }
    const auto r = static_cast<size_t>(row);
    const int32_t len = kv_len[r] - (indptr[r + 1] - 1 - t);
    if (len == kv_len[r]) read[r] = true;
    sample_out(step, static_cast<int32_t>(o), row, len);
  }
  if (!result.logprob_indptr.empty()) {
    result.logprob_indptr.resize(out_token.size() + 1, result.logprob_indptr.back());
    result.logprob_ranks.resize(out_token.size(), 0);
  }
  for (size_t r = 0; r < read.size(); ++r) {
    if (read[r] || !config_.read_all_rows) continue;
    // Taint travels with the KV: what was computed from a worthless context is worthless.
    if (!context(row_seat[r], kv_len[r]).sound) seat(row_seat[r]).tainted = true;
  }
}

void ScriptedExecutor::sample_out(Step& step, int32_t out, int32_t row, int32_t kv_len) {
  const BatchBuffer& batch = step.batch;
  StepResult& result = step.result;
  const auto o = static_cast<size_t>(out);
  const Seat of = batch.used<int32_t>(Section::out_seat)[o];
  const auto kind = static_cast<OutKind>(batch.used<int32_t>(Section::out_kind)[o]);
  const int32_t position = batch.used<int32_t>(Section::out_position)[o];
  const Seat row_seat = batch.used<int32_t>(Section::row_seat)[static_cast<size_t>(row)];
  if (of <= kNoSeat || static_cast<size_t>(of) >= seats_.size()) {
    kv_->violate("output of no seat", text("seat", of));
    return;
  }
  SeatState& s = seat(of);
  const FakeKv::ReadResult seen = context(row_seat, kv_len);
  const bool sound = seen.sound && !seat(row_seat).tainted && !s.tainted;
  if (position != kv_len) {
    kv_->violate("output of another position", text("position", position) + text("sees", kv_len));
  }
  if (kind == OutKind::score) {
    result.scores[o] = sound ? score(seen.hash) : 1.0F;  // no logprob: worthless
    return;
  }
  if (kind == OutKind::pool) {
    result.pooled.push_back(static_cast<float>(seen.hash % 1000) / 1000.0F);
    result.pooled_width = 1;
    return;
  }
  std::span<const int32_t> mask;
  if (o < step.mask_row.size() && step.mask_row[o] >= 0) {
    mask = std::span(step.mask_bits)
               .subspan(static_cast<size_t>(step.mask_row[o] * step.mask_words),
                        static_cast<size_t>(step.mask_words));
  }
  Token token = sample(config_.rule, seen.hash, s.seed, position, s.min_position, s.stop, mask);
  // A worthless token is one that no req can be expected to hold.
  if (!sound) token = config_.rule.vocab_size + 7;
  if (sound && row_fails(seen.hash, s.seed, position, config_.row_failures_per_million)) {
    result.row_status[o] = RowStatus::failed;
    token = -1;
    const auto indptr =
        batch.used<int32_t>(Section::row_indptr).subspan(static_cast<size_t>(row), 2);
    for (int32_t t = indptr[0]; t < indptr[1] && of == row_seat; ++t) {
      for (GroupId g = 0; g < kv_->num_groups(); ++g)
        kv_->taint(g, batch.slots(g)[static_cast<size_t>(t)]);
    }
  }
  ++sampled_;
  s.tainted = s.tainted || !sound || result.row_status[o] == RowStatus::failed;
  if (!planted(Bug::device_stale_last_token) || position % 4 != 0) s.last_token = token;
  s.last_position = position;
  result.token_ids.push_back(token);
  if (s.num_logprobs >= 0) {
    result.logprob_indptr.resize(o + 1, static_cast<int32_t>(result.logprob_ids.size()));
    for (int32_t j = 0; j <= s.num_logprobs; ++j) {
      result.logprob_ids.push_back((token + j) % config_.rule.vocab_size);
      result.logprobs.push_back(-0.25F * static_cast<float>(j + 1));
    }
    result.logprob_ranks.resize(o + 1, 0);
    result.logprob_ranks[o] = 1;
    result.logprob_indptr.push_back(static_cast<int32_t>(result.logprob_ids.size()));
  }
}

// Each list's items are of rows of this step and of their KV: decode items of workers, then chunks'
// tiles.
void ScriptedExecutor::check_work(const BatchBuffer& batch) {
  if (batch.used<AttentionWork>(Section::work).empty()) return;
  const BatchHeader& h = batch.header();
  const BatchLimits& limits = batch.layout().limits();
  const auto workers = static_cast<size_t>(limits.num_attention_workers);
  const auto indptr = batch.used<int32_t>(Section::row_indptr);
  const auto kv_len = batch.used<int32_t>(Section::row_kv_len);
  for (int32_t list = 0; list < limits.num_attention_lists; ++list) {
    const auto work = batch.all<AttentionWork>(Section::work)
                          .subspan(static_cast<size_t>(list * limits.max_attention_work),
                                   static_cast<size_t>(limits.max_attention_work));
    const auto ends = batch.all<int32_t>(Section::work_indptr)
                          .subspan(static_cast<size_t>(list) * (workers + 4), workers + 4);
    for (size_t i = 0; i < static_cast<size_t>(ends[workers]); ++i) {
      const auto& w = reinterpret_cast<const DecodeWork&>(work[i]);
      if (w.row == -1 && i < workers) continue;  // a worker without work
      const bool ok = w.row >= 0 && w.row < h.num_decode_rows &&
                      w.kv_len == kv_len[static_cast<size_t>(w.row)] && w.kv_begin < w.kv_len &&
                      w.unit_begin < w.unit_end;
      if (!ok) kv_->violate("attention work of a decode row is wrong", text("row", w.row));
    }
    for (int32_t i = ends[workers + 1]; i < ends[workers + 2]; ++i) {
      const AttentionWork& w = work[static_cast<size_t>(i)];
      const bool ok = w.row >= h.num_decode_rows && w.row < h.num_rows && w.q_begin >= 0 &&
                      w.q_count > 0 &&
                      w.q_begin + w.q_count <= indptr[static_cast<size_t>(w.row) + 1] -
                                                   indptr[static_cast<size_t>(w.row)] &&
                      w.kv_begin >= 0 && w.kv_begin < w.kv_end &&
                      w.kv_end <= kv_len[static_cast<size_t>(w.row)];
      if (!ok) kv_->violate("attention work of a chunk is wrong", text("row", w.row));
    }
  }
}

}  // namespace stoker::sim
