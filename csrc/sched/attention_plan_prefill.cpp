// The prefill half of the attention work list: which tiles of query tokens there are, in which
// order, and which of them are shared out split by split.
#include <algorithm>

#include "base/check.h"
#include "sched/attention_plan.h"

namespace stoker {
namespace {

constexpr int32_t kTilePositions = 128;  // what a kernel takes of KV at a time: the unit of cost

int32_t div_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Tile `index` of a row of `tokens` query tokens, whole.
AttentionWork tile_of(const AttentionGeometry& geometry, int32_t row, int32_t index, int32_t tokens,
                      int32_t kv_len) {
  AttentionWork item{};
  item.row = row;
  item.q_begin = index * geometry.prefill_tile_tokens;
  item.q_count = std::min(geometry.prefill_tile_tokens, tokens - item.q_begin);
  const int32_t first_position = kv_len - tokens + item.q_begin;
  item.kv_begin = geometry.window > 0 ? std::max(0, first_position - geometry.window + 1) : 0;
  item.kv_end = first_position + item.q_count;
  item.kv_head = -1;
  item.partial = -1;
  item.flags = 1 << 16;
  return item;
}

int64_t cost_of(const AttentionWork& item) {
  return div_up(item.kv_end, kTilePositions) - item.kv_begin / kTilePositions;
}

}  // namespace

int32_t AttentionPlanner::prefill_slot_capacity(const AttentionGeometry& geometry) {
  if (geometry.num_prefill_workers == 0) return 0;
  // Every worker has a split of its own for every KV head, and some to spare.
  return 2 * div_up(geometry.num_prefill_workers, geometry.num_kv_heads) + 32;
}

void AttentionPlanner::survey_chunks(std::span<const int32_t> row_indptr,
                                     std::span<const int32_t> row_kv_len, int32_t num_decode_rows) {
  order_.clear();
  prefill_steps_ = num_tiles_ = 0;
  if (geometry_.prefill_tile_tokens == 0) return;
  for (int32_t row = num_decode_rows; row < int32_t(row_kv_len.size()); ++row) {
    const int32_t kv_len = row_kv_len[size_t(row)];
    if (kv_len <= 0) continue;
    const int32_t tokens = row_indptr[size_t(row) + 1] - row_indptr[size_t(row)];
    const int32_t tiles = div_up(tokens, geometry_.prefill_tile_tokens);
    order_.push_back(row);
    num_tiles_ += tiles;
    for (int32_t index = 0; index < tiles; ++index)
      prefill_steps_ += cost_of(tile_of(geometry_, row, index, tokens, kv_len));
  }
}

int32_t AttentionPlanner::plan_prefill(std::span<const int32_t> row_indptr,
                                       std::span<const int32_t> row_kv_len,
                                       std::span<AttentionWork> work, int32_t begin,
                                       int32_t* num_slots) {
  *num_slots = 0;
  const auto tokens_of = [&](int32_t row) {
    return row_indptr[size_t(row) + 1] - row_indptr[size_t(row)];
  };
  const auto tiles_of = [&](int32_t row) {
    return div_up(tokens_of(row), geometry_.prefill_tile_tokens);
  };
  // The longest rows first and a row's tiles from its end, so that the last to be taken are light;
  // a row's tiles together, since they read the same KV.
  std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
    const int32_t x = row_kv_len[size_t(a)], y = row_kv_len[size_t(b)];
    return x != y ? x > y : a < b;
  });
  const int32_t max_slots = prefill_slot_capacity(geometry_);
  int32_t end = begin;
  const auto add = [&](const AttentionWork& item) {
    check(size_t(end) < work.size(), "attention plan: the list is too small");
    work[size_t(end++)] = item;
  };
  for (const int32_t row : order_) {
    for (int32_t index = tiles_of(row) - 1; index >= 0; --index) {
      AttentionWork item = tile_of(geometry_, row, index, tokens_of(row), row_kv_len[size_t(row)]);
      const int32_t kv_begin = item.kv_begin, kv_end = item.kv_end;
      const int32_t first_split = kv_begin / kPrefillSplit;
      const int32_t splits = div_up(kv_end, kPrefillSplit) - first_split;
      // Shared when it alone would take half as long again as an even share of everything, and more
      // than a split's worth.
      const bool share = cost_of(item) * kTilePositions > kPrefillSplit &&
                         cost_of(item) * geometry_.num_prefill_workers * 2 >
                             prefill_steps_ * geometry_.num_kv_heads * 3;
      if (!share || splits < 2 || *num_slots + splits > max_slots) {
        add(item);
        continue;
      }
      item.partial = *num_slots;
      *num_slots += splits;
      for (int32_t split = 0; split < splits; ++split) {
        item.kv_begin = std::max(kv_begin, (first_split + split) * kPrefillSplit);
        item.kv_end = std::min(kv_end, (first_split + split + 1) * kPrefillSplit);
        item.flags = split | splits << 16;
        add(item);
      }
    }
  }
  return end;
}

}  // namespace stoker
