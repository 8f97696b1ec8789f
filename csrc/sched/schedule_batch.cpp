// Offsets and capacities of the flat batch buffer. Every rank computes the same ones from
// BatchLimits.
#include "sched/schedule_batch.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace stoker {
namespace {

constexpr int64_t kAlign = 64;

int64_t capacity_of(Section s, const BatchLimits& limits) {
  const int64_t tokens = limits.max_num_batched_tokens;
  const int64_t seqs = limits.max_num_seqs;
  const int64_t groups = limits.num_kv_groups;
  // A row a seat; output rows may also score every token, and several may read one hidden row.
  const int64_t rows = seqs;
  const int64_t outs = tokens + seqs;
  switch (s) {
    case Section::row_seat:
    case Section::row_kv_len:
      return rows;
    case Section::row_indptr:
      return rows + 1;
    case Section::out_token:
    case Section::out_seat:
    case Section::out_kind:
    case Section::out_target:
    case Section::out_position:
      return outs;
    case Section::token_ids:
    case Section::positions:
      return tokens;
    case Section::slots:
      return groups * tokens;
    case Section::work_indptr:
      return int64_t{limits.num_attention_lists} * (limits.num_attention_workers + 4);
    case Section::work:
      return int64_t{limits.num_attention_lists} * limits.max_attention_work;
    case Section::table_changes:
      // Growth of every row, plus whole tables of reqs that take a seat: admission stops when this
      // many are written.
      return groups * (tokens / std::max<int64_t>(limits.min_block_size, 1) + 2 * seqs +
                       std::max<int64_t>(2 * limits.max_blocks_per_req, 4096));
    case Section::seat_changes:
      return seqs;
    case Section::seat_data:
      return limits.max_seat_words;
    case Section::transfers:
      return std::max<int64_t>(2 * groups * limits.max_blocks_per_req, 1024);
    case Section::adapter_ids:
    case Section::draft_tokens:
    case Section::count:
      return 0;
  }
  return 0;
}

}  // namespace

int32_t BatchLayout::element_bytes(Section s) {
  switch (s) {
    case Section::work:
      return sizeof(AttentionWork);
    case Section::table_changes:
      return sizeof(TableChange);
    case Section::seat_changes:
      return sizeof(SeatChange);
    case Section::transfers:
      return sizeof(Transfer);
    default:
      return sizeof(int32_t);
  }
}

BatchLayout::BatchLayout(const BatchLimits& limits) : limits_(limits) {
  if (limits.max_num_seqs < 1 || limits.max_num_batched_tokens < 1 || limits.num_kv_groups < 1) {
    throw InvalidArgument(
        "BatchLimits: max_num_seqs, max_num_batched_tokens and num_kv_groups must be at least 1");
  }
  int64_t at = kHeaderBytes;
  for (size_t i = 0; i < kNumSections; ++i) {
    const auto s = static_cast<Section>(i);
    const int64_t count = capacity_of(s, limits);
    offsets_[i] = static_cast<int32_t>(at);
    capacities_[i] = static_cast<int32_t>(count);
    at += (count * element_bytes(s) + kAlign - 1) / kAlign * kAlign;
    if (at > std::numeric_limits<int32_t>::max()) {
      throw InvalidArgument(
          "BatchLimits: one step's buffer would be over 2 GiB; lower max_num_batched_tokens or "
          "max_model_len");
    }
  }
  bytes_ = static_cast<size_t>(at);
}

}  // namespace stoker
