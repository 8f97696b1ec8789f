// Padding: rows without KV of seat 0, tokens without a slot, output rows of seat 0.
#include "sched/step_stager.h"

#include <algorithm>
#include <utility>

namespace stoker {
namespace {

// The smallest bucket that holds `count`; 0: it is too many.
int32_t bucket_of(const std::vector<int32_t>& buckets, int32_t count) {
  const auto it = std::lower_bound(buckets.begin(), buckets.end(), count);
  return it == buckets.end() ? 0 : *it;
}

template <typename T>
void fill(std::span<T> section, int32_t begin, int32_t end, T value) {
  if (begin < end) std::fill(section.begin() + begin, section.begin() + end, value);
}

}  // namespace

StepStager::StepStager(const BatchLayout& layout, StepBuckets buckets, const SeatMirror& seats)
    : layout_(layout), buckets_(std::move(buckets)), seats_(seats) {}

StagedStep StepStager::stage(std::byte* memory, int64_t result) {
  const BatchBuffer batch(&layout_, memory + kStepFrontBytes);
  const BatchHeader& header = batch.header();
  const auto count = [&](Section s) { return header.sections[static_cast<size_t>(s)].count; };
  follow_changes(batch);
  auto& front = *reinterpret_cast<StepFront*>(memory);
  front.num_table_changes = count(Section::table_changes);
  front.num_seat_changes = count(Section::seat_changes);
  front.result = result;
  front.changes_inline = front.num_table_changes <= StepFront::kInlineChanges;
  if (front.changes_inline) {
    const auto changes = batch.used<TableChange>(Section::table_changes);
    std::copy(changes.begin(), changes.end(), front.changes);
  }

  StagedStep step;
  const bool decodes = header.num_tokens == header.num_decode_rows;
  const int32_t bucket =
      header.num_tokens > 0
          ? bucket_of(decodes ? buckets_.decode : buckets_.mixed, header.num_tokens)
          : 0;
  if (bucket > 0) step.graph = decodes ? StepGraph::decode : StepGraph::mixed;
  step.tokens = std::max(bucket, header.num_tokens);
  const bool tokens_only = is_simple(batch);
  if (tokens_only && header.num_outs > 0) step.outs = bucket_of(buckets_.heads, header.num_outs);
  step.simple = tokens_only && bucket > 0 && (step.outs > 0 || header.num_outs == 0);
  pad(batch, step.tokens, step.outs);

  const auto span = [&](Section s) {
    return ByteRange{kStepFrontBytes + layout_.offset(s),
                     int64_t{count(s)} * BatchLayout::element_bytes(s)};
  };
  const ByteRange work = span(Section::work);
  step.body.size = std::max<int64_t>(kStepFrontBytes + layout_.offset(Section::work_indptr),
                                     work.size > 0 ? work.begin + work.size : 0);
  if (!front.changes_inline) step.table_changes = span(Section::table_changes);
  step.seat_changes = span(Section::seat_changes);
  return step;
}

void StepStager::follow_changes(const BatchBuffer& batch) {
  if (batch.header().flags & kBatchFull) {
    const int64_t groups = layout_.limits().num_kv_groups;
    std::fill_n(seats_.tables, groups * seats_.num_seats * seats_.width, 0);
    std::fill_n(seats_.num_logprobs, seats_.num_seats, -1);
    std::fill_n(seats_.has_penalties, seats_.num_seats, uint8_t{0});
  }
  const auto changes = batch.used<TableChange>(Section::table_changes);
  const auto entry = [&](const TableChange& c) -> int32_t& {
    return seats_.tables[(c.group * seats_.num_seats + c.seat) * seats_.width + c.index];
  };
  for (const TableChange& change : changes) entry(change) = change.block;
  for (TableChange& change : changes) change.block = entry(change);
  for (const SeatChange& change : batch.used<SeatChange>(Section::seat_changes)) {
    const auto seat = static_cast<size_t>(change.seat);
    seats_.num_logprobs[seat] = change.num_logprobs;
    seats_.num_prompt_logprobs[seat] = change.num_prompt_logprobs;
    seats_.has_penalties[seat] = (change.flags & kSeatPenalties) != 0;
  }
}

// Whether the device does all there is to do: plain records for new seats, no transfers, nothing
// that comes later, and of every output row a token alone.
bool StepStager::is_simple(const BatchBuffer& batch) const {
  const BatchHeader& header = batch.header();
  if (header.flags != 0 || header.num_outs != header.num_sampled_rows ||
      !batch.used<Transfer>(Section::transfers).empty())
    return false;
  for (const SeatChange& change : batch.used<SeatChange>(Section::seat_changes)) {
    if (change.num_bias > 0 || change.num_stop > 0 || change.flags != 0) return false;
  }
  const auto seats = batch.used<int32_t>(Section::out_seat);
  return std::none_of(seats.begin(), seats.end(), [&](int32_t seat) {
    return seats_.num_logprobs[seat] >= 0 || seats_.has_penalties[seat] != 0;
  });
}

void StepStager::pad(const BatchBuffer& batch, int32_t tokens, int32_t outs) const {
  const BatchHeader& header = batch.header();
  const int32_t n = header.num_tokens, rows = header.num_rows;
  fill(batch.all<int32_t>(Section::token_ids), n, tokens, 0);
  fill(batch.all<int32_t>(Section::positions), n, tokens, 0);
  for (GroupId g = 0; g < layout_.limits().num_kv_groups; ++g) fill(batch.slots(g), n, tokens, -1);
  const int32_t padded = std::min(tokens, layout_.limits().max_num_seqs);
  fill(batch.all<int32_t>(Section::row_seat), rows, padded, 0);
  fill(batch.all<int32_t>(Section::row_kv_len), rows, padded, 0);
  fill(batch.all<int32_t>(Section::row_indptr), rows + 1, padded + 1, n);
  for (const Section s : {Section::out_token, Section::out_seat, Section::out_position})
    fill(batch.all<int32_t>(s), header.num_outs, outs, 0);
}

}  // namespace stoker
