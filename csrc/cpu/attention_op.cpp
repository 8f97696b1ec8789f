// Cuts a batch of attention rows into walks for the threads. How it is cut changes no result, only
// who computes it.
#include <algorithm>
#include <vector>

#include "cpu/kernel_table.h"
#include "cpu/ops.h"
#include "cpu/thread_pool.h"

namespace stoker::cpu {

namespace {

int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
int64_t splits_of(int64_t length) { return (length + kSplit - 1) / kSplit; }

// KV positions that a walk reads, which is what it costs, more or less.
int64_t walked(const AttentionParams& p, int64_t first_kv_len, int64_t tokens) {
  const int64_t longest = first_kv_len + tokens - 1;
  return p.window > 0 ? std::min(longest, p.window + tokens - 1) : longest;
}

// A walk that is too long for one thread: its splits are items of their own, merged afterwards.
struct Merge {
  AttentionItem item;
  int64_t first_split, num_splits;
  size_t partial_offset;
};

}  // namespace

int64_t attention_scratch_bytes(int64_t head_dim) {
  const int64_t width = padded(head_dim);
  const int64_t floats =
      width * (3 * kMaxRows + 2 * kTile + 1) + kMaxRows * kTile + 6 * padded(kMaxRows);
  return floats * 4 + 64;
}

double attention_work_ns(const AttentionParams& p, const AttentionRows& rows) {
  double pairs = 0, positions = 0;
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t tokens = rows.indptr[r + 1] - rows.indptr[r];
    if (tokens <= 0) continue;
    const auto length = double(walked(p, rows.kv_len[r] - tokens + 1, tokens));
    positions += length;
    pairs += length * double(tokens);
  }
  // Measured on one AVX-512 core: 4 flops an element of a pair at about 60 GFLOP/s, and reading KV
  // at about 10 GB/s.
  const double heads = double(p.kv_heads * p.group);
  const double element = p.cache_type == Type::float32 ? 4 : 2;
  return pairs * heads * double(p.head_dim) * 0.067 +
         positions * double(p.kv_heads * p.head_dim) * 2 * element * 0.1;
}

void paged_attention(const AttentionParams& p, const AttentionRows& rows, double work_ns) {
  const KernelTable& table = kernels();
  const auto scratch_bytes = size_t(attention_scratch_bytes(p.head_dim));
  const int threads = work_ns > 30e3 ? num_threads() : 1;

  std::vector<AttentionItem> items;
  std::vector<Merge> merges;
  size_t partial_floats = 0;
  int64_t total = 0;
  for (int64_t r = 0; r < rows.count; ++r) {
    total += walked(p, rows.kv_len[r], 1) * std::max(0, rows.indptr[r + 1] - rows.indptr[r]);
  }
  total *= p.kv_heads;
  // A single walk should not be more than this share of all, else the last thread works alone.
  const int64_t longest_walk =
      threads > 1 ? std::max<int64_t>(total / (4 * threads), kSplit) : INT64_MAX;

  const int64_t heads_a_walk = std::min(p.group, kMaxRows);
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t tokens = rows.indptr[r + 1] - rows.indptr[r];
    const int64_t first_kv_len = rows.kv_len[r] - tokens + 1;
    for (int64_t kv_head = 0; kv_head < p.kv_heads; ++kv_head) {
      for (int64_t head = 0; head < p.group; head += heads_a_walk) {
        const int64_t heads = std::min(heads_a_walk, p.group - head);
        const int64_t tokens_a_walk = std::max<int64_t>(1, kMaxRows / heads);
        for (int64_t token = 0; token < tokens; token += tokens_a_walk) {
          AttentionItem item;
          item.token_begin = rows.indptr[r] + token;
          item.num_tokens = std::min(tokens_a_walk, tokens - token);
          item.first_kv_len = first_kv_len + token;
          item.seat = rows.seat[r];
          item.kv_head = int32_t(kv_head);
          item.head_begin = int32_t(head);
          item.num_heads = int32_t(heads);
          item.partials = nullptr;
          const int64_t longest = item.first_kv_len + item.num_tokens - 1;
          const int64_t left =
              p.window > 0 ? std::max<int64_t>(0, item.first_kv_len - p.window) : 0;
          item.split_begin = left / kSplit;
          item.split_end = splits_of(longest);
          const int64_t num_splits = item.split_end - item.split_begin;
          const int64_t cost = walked(p, item.first_kv_len, item.num_tokens) * item.num_tokens;
          if (num_splits <= 1 || cost <= longest_walk) {
            items.push_back(item);
            continue;
          }
          merges.push_back({item, item.split_begin, num_splits, partial_floats});
          partial_floats +=
              size_t(num_splits * item.num_tokens * item.num_heads * (padded(p.head_dim) + 2));
        }
      }
    }
  }

  std::vector<float> partials(partial_floats);
  for (Merge& merge : merges) {
    const int64_t rows_a_split =
        merge.item.num_tokens * merge.item.num_heads * (padded(p.head_dim) + 2);
    float* start = partials.data() + merge.partial_offset;
    for (int64_t i = 0; i < merge.num_splits; ++i) {
      AttentionItem item = merge.item;
      item.split_begin = merge.first_split + i;
      item.split_end = item.split_begin + 1;
      item.partials = start + i * rows_a_split;
      items.push_back(item);
    }
    merge.item.partials = start;
  }

  parallel_for(int64_t(items.size()), work_ns, [&](int64_t i) {
    auto* scratch = reinterpret_cast<float*>(thread_scratch(scratch_bytes));
    table.attention(p, items[size_t(i)], scratch);
  });
  if (merges.empty()) return;
  parallel_for(int64_t(merges.size()), double(partial_floats) * 0.5, [&](int64_t i) {
    auto* scratch = reinterpret_cast<float*>(thread_scratch(scratch_bytes));
    table.attention_merge(p, merges[size_t(i)].item, merges[size_t(i)].num_splits, scratch);
  });
}

}  // namespace stoker::cpu
