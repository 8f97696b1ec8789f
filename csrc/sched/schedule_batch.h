// One step's work as arrays in one flat buffer: what the scheduler writes and every executor reads.
//
// The buffer is memory that the executor owns (pinned, where there is a GPU). Offsets follow from
// BatchLimits alone, so views are made once at start-up and one contiguous copy of the first
// `used_bytes` takes a step to the device. It holds no pointers: it can be sent to other ranks as
// it is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/ids.h"

namespace stoker {

inline constexpr int32_t kBatchVersion = 1;

// What bounds a step; the sections' capacities follow from it.
struct BatchLimits {
  int32_t max_num_seqs = 0;            // seats, not counting seat 0
  int32_t max_num_batched_tokens = 0;  // tokens a step
  int32_t num_kv_groups = 1;
  int32_t max_blocks_per_req = 0;  // widest block table row over the groups
  int32_t min_block_size = 16;     // smallest block size over the groups
  int32_t max_attention_work =
      0;  // entries of the attention work list (0: the executor takes none)
  int32_t num_attention_workers = 0;  // fixed grid that walks the work list
  int32_t num_attention_lists = 0;    // one a window that the model's layers use
  int32_t max_seat_words = 0;         // int32 words of seat_data a step
};

// In the order they lie in the buffer: small ones first, so that a decode step uploads little.
// A row is one req's run of query tokens in this step: decode rows (one token) first, then prefill
// chunks.
enum class Section : int32_t {
  row_seat,      // [rows] int32
  row_indptr,    // [rows + 1] int32: row r's tokens are [row_indptr[r], row_indptr[r+1])
  row_kv_len,    // [rows] int32: KV length that the row's last token sees, itself included
  out_token,     // [outs] int32: index into the step's tokens of the hidden row that is read
  out_seat,      // [outs] int32
  out_kind,      // [outs] int32: OutKind
  out_target,    // [outs] int32: score: the token whose logprob is wanted; else -1
  out_position,  // [outs] int32: position in the req of the token that is sampled or scored
  token_ids,     // [tokens] int32: a token, or -1 - seat: the last token of that seat, known to the
                 // device only
  positions,     // [tokens] int32
  slots,         // [groups][max tokens] int32: block * block_size + offset; group g starts at g *
                 // max_num_batched_tokens
  work_indptr,   // [lists][workers + 4] int32: worker w's items, and the chunks' (attention_plan.h)
  work,          // [lists][max_attention_work] AttentionWork
  table_changes,  // [n] TableChange
  seat_changes,   // [n] SeatChange
  seat_data,      // [n] int32: variable-length parts of the seat changes
  transfers,      // [n] Transfer
  adapter_ids,    // [0] later
  draft_tokens,   // [0] later
  count
};
inline constexpr size_t kNumSections = static_cast<size_t>(Section::count);

enum class OutKind : int32_t { sample = 0, score = 1, pool = 2 };

// block_table[group][seat][index] = block
struct TableChange {
  int32_t group, seat, index, block;
};

// A req takes a seat: everything the device keeps for it. Sent once, not at each step.
struct SeatChange {
  int32_t seat;
  int32_t flags;  // SeatFlag
  float temperature, top_p, min_p;
  int32_t top_k;  // <= 0: all
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t num_logprobs;  // -1: none; k: the sampled token's and the k best
  uint32_t seed_low, seed_high;
  int32_t min_position;  // positions below this may not sample a stop token (min_tokens)
  int32_t prompt_len;
  int32_t data_begin;  // into seat_data: num_bias ids, num_bias float bits, num_stop ids,
                       // num_context tokens
  int32_t num_bias, num_stop, num_context;
  int32_t req;                  // ReqId, for the executor's own records
  int32_t num_prompt_logprobs;  // score rows: the target's logprob and those of this many best
};
static_assert(sizeof(SeatChange) == 80);

enum SeatFlag : int32_t {
  kSeatPenalties =
      1,  // context (prompt, then output) tokens are in seat_data; the executor keeps counts
  kSeatMask = 2,  // rows of this seat take a grammar mask
};

enum class Tier : int32_t { device = 0, host = 1 };

// One block to copy, after the step `after_step` has run. On one tier: before the rows of this
// batch, and in the order of the batches. Between tiers: at any time from then on; no row of this
// or a later batch touches the destination, and none writes the source, before
// StepResult::finished_transfers has brought the ticket back. A batch without rows waits for all
// copies.
struct Transfer {
  int64_t ticket;
  int64_t after_step;
  int32_t group;
  int32_t source_tier, source_block;
  int32_t destination_tier, destination_block;
  int32_t reserved;  // 0
};
static_assert(sizeof(Transfer) == 40);

// A piece of attention for one worker. See sched/attention_plan.h, which makes them.
struct AttentionWork {
  int32_t row;
  int32_t q_begin, q_count;  // tokens of the row, relative to its first
  int32_t kv_begin, kv_end;  // positions
  int32_t kv_head;           // -1: all of them
  int32_t partial;           // workspace slot for the unmerged result; -1: the whole of its row
  int32_t flags;
};
static_assert(sizeof(AttentionWork) == 32);

struct SectionSpan {
  int32_t offset;  // bytes from the buffer's start
  int32_t count;   // elements in use this step
};

// First in the buffer, padded to kHeaderBytes.
struct BatchHeader {
  int32_t version;
  int32_t flags;  // BatchFlag
  int64_t batch_id;
  int32_t num_reqs;
  int32_t num_tokens;
  int32_t num_rows;
  int32_t num_decode_rows;
  int32_t num_outs;
  int32_t num_sampled_rows;
  int32_t used_bytes;    // the prefix of the buffer that this step uses
  int32_t num_partials;  // workspace slots that the work list uses
  std::array<SectionSpan, kNumSections> sections;
};
inline constexpr size_t kHeaderBytes = 256;
static_assert(sizeof(BatchHeader) <= kHeaderBytes);

enum BatchFlag : int32_t {
  kBatchFull = 1,  // all seats are resent: forget every table first
  kBatchLate = 2,  // some sampled row takes a grammar mask: sample when launch_sample() brings it
};

// Where each section lies and how many elements it may hold. The same on every rank.
class BatchLayout {
 public:
  explicit BatchLayout(const BatchLimits& limits);

  const BatchLimits& limits() const { return limits_; }
  int32_t offset(Section s) const { return offsets_[static_cast<size_t>(s)]; }
  int32_t capacity(Section s) const { return capacities_[static_cast<size_t>(s)]; }
  static int32_t element_bytes(Section s);
  size_t bytes() const { return bytes_; }

 private:
  BatchLimits limits_;
  std::array<int32_t, kNumSections> offsets_{};
  std::array<int32_t, kNumSections> capacities_{};
  size_t bytes_ = 0;
};

// A typed view of one buffer. Owns nothing; valid as long as the memory is.
class BatchBuffer {
 public:
  BatchBuffer() = default;
  BatchBuffer(const BatchLayout* layout, std::byte* data) : layout_(layout), data_(data) {}

  BatchHeader& header() const { return *reinterpret_cast<BatchHeader*>(data_); }
  // The whole capacity of a section.
  template <typename T>
  std::span<T> all(Section s) const {
    return {reinterpret_cast<T*>(data_ + layout_->offset(s)),
            static_cast<size_t>(layout_->capacity(s))};
  }
  // What this step uses of it.
  template <typename T>
  std::span<T> used(Section s) const {
    const auto& span = header().sections[static_cast<size_t>(s)];
    return {reinterpret_cast<T*>(data_ + span.offset), static_cast<size_t>(span.count)};
  }
  std::span<int32_t> slots(GroupId group) const {
    const int32_t stride = layout_->limits().max_num_batched_tokens;
    return all<int32_t>(Section::slots).subspan(static_cast<size_t>(group) * stride, stride);
  }
  std::byte* data() const { return data_; }
  const BatchLayout& layout() const { return *layout_; }

 private:
  const BatchLayout* layout_ = nullptr;
  std::byte* data_ = nullptr;
};

}  // namespace stoker
