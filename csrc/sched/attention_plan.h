// The work list of a step's attention: which worker of a fixed grid computes which piece of which
// row.
//
// Results never depend on it. A decode row's KV is cut into splits at positions that follow from
// its length alone; a split is computed from scratch and splits merge in order of position, so that
// handing splits to one worker or to many gives the same bits. A prefill tile is cut at absolute
// positions in the same way. So the planner only balances, and a captured CUDA graph serves any
// batch: the grid is fixed, the list is data.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "sched/schedule_batch.h"

namespace stoker {

// One decode row's consecutive units for one worker. A unit is (head, split), head-major: unit =
// head * num_splits + split. "Heads" are what the kernel serves in one pass over KV: KV heads, or
// several to a KV head whose group is larger than 8.
struct DecodeWork {
  int32_t row;  // -1: this worker has nothing to do
  int32_t seat;
  int32_t kv_begin;  // first position seen (> 0 under a sliding window)
  int32_t kv_len;
  int32_t unit_begin, unit_end;
  int32_t split_shift;  // a split is 1 << split_shift tokens, from kv_begin down to a kDecodeTile
  int32_t partial;      // first workspace slot of this head's splits; -1: each head is whole
};
static_assert(sizeof(DecodeWork) == sizeof(AttentionWork));

inline constexpr int32_t kDecodeTile = 16;  // splits begin at multiples of it
inline constexpr int32_t kDecodeRound =
    64;  // tokens a worker takes at a time; splits are multiples of it
inline constexpr int32_t kMaxDecodeSplits = 64;

// log2 of a split's length for a row that sees `length` tokens in a model with `heads` heads of a
// decode unit. Long splits, because each costs a merge; short enough that a single row keeps a
// large GPU busy; never more than kMaxDecodeSplits.
constexpr int32_t decode_split_shift(int32_t length, int32_t heads) {
  int32_t shift = length <= 512 ? 7 : length <= 8192 ? 8 : length <= 32768 ? 9 : 10;
  if (heads >= 16 && length > 256 && length <= 512) ++shift;
  while ((int64_t(256) << shift) < int64_t(length) * heads ||
         (int64_t(kMaxDecodeSplits) << shift) < length)
    ++shift;
  return shift;
}

// Cuts at multiples of this absolute position where a prefill tile is shared (csrc/cuda/prefill.h
// holds the same number).
inline constexpr int32_t kPrefillSplit = 4096;

struct AttentionGeometry {
  int32_t num_decode_heads = 0;  // heads of a decode unit, see DecodeWork
  int32_t num_kv_heads = 0;
  int32_t window = 0;              // 0: none
  int32_t num_decode_workers = 0;  // the fixed grid of decode rows
  int32_t prefill_tile_tokens =
      0;  // query tokens of a prefill tile; 0: this step's chunks need no list
  int32_t num_prefill_workers = 0;  // thread blocks that take tiles; 0: tiles stay whole
  // Multiprocessors that decode rows and chunks of one step share out between them and run side by
  // side on (a multiple of num_decode_workers runs on them); 0: one after the other, each on all.
  int32_t num_processors = 0;
  // What a tile's step over one KV head costs a multiprocessor, in tokens of a decode head. With
  // the default both halves of a mixed step end about together, on an H200 as on an H100.
  int32_t prefill_step_in_tokens = 200;
};

// What a plan used, and where its parts are.
struct AttentionPlan {
  int32_t num_work = 0;          // entries of the list, prefill tiles included
  int32_t num_decode_slots = 0;  // workspace slots of decode splits
  int32_t num_prefill_slots = 0;
};

// Makes plans. Keeps its scratch memory from step to step, so that planning allocates nothing once
// warm.
class AttentionPlanner {
 public:
  explicit AttentionPlanner(const AttentionGeometry& geometry);

  const AttentionGeometry& geometry() const { return geometry_; }

  // Entries of the list and of work_indptr that always suffice, and workspace slots.
  static int32_t work_capacity(const AttentionGeometry& geometry, int32_t max_rows,
                               int32_t max_tokens);
  static int32_t indptr_size(const AttentionGeometry& geometry) {
    return geometry.num_decode_workers + 4;
  }
  static int32_t decode_slot_capacity(const AttentionGeometry& geometry) {
    return geometry.num_decode_workers * kMaxDecodeSplits;
  }
  static int32_t prefill_slot_capacity(const AttentionGeometry& geometry);

  // Writes the list. work[w] is decode worker w's first item (row -1: none), its further ones are
  // work[work_indptr[w] .. work_indptr[w + 1]); prefill tiles, longest rows first, are
  // work[work_indptr[W + 1] .. work_indptr[W + 2]), W = num_decode_workers, and at most
  // work_indptr[W + 3] thread blocks may take them. Side by side, the first decode workers alone
  // have work: as many as the multiprocessors left to them hold. Decode rows come first, one token
  // each; rows with row_kv_len <= 0 are padding. Throws InternalError if a span is smaller than its
  // capacity requires.
  AttentionPlan plan(std::span<const int32_t> row_seat, std::span<const int32_t> row_indptr,
                     std::span<const int32_t> row_kv_len, int32_t num_decode_rows,
                     std::span<AttentionWork> work, std::span<int32_t> work_indptr);

  // From now on plan() allocates nothing for up to so many decode rows, on seats up to the same.
  void reserve(int32_t max_rows);

 private:
  struct Row {
    int32_t seat, length, num_splits, split_shift;
    int32_t unit_cost;    // in tokens, at least 1
    int64_t cost;         // of all its units
    int32_t dealt_units;  // that have found a worker
    int64_t head_cost() const { return int64_t{unit_cost} * num_splits; }
  };
  // What is dealt of a seat's row. A seat is read and written at each step: half a cache line.
  struct alignas(32) Seat {
    int32_t from = 1, to = 0;  // lengths that have the units that are dealt; none: nothing is dealt
    uint32_t there = 0;        // the last step that it has a row in
    int16_t num_splits = 0;    // 0: nothing is dealt
    int16_t split_shift = 0;
    int32_t unit_cost = 0;  // in tokens
    int32_t worker = 0;     // of its first piece; the others are with those that follow, in a ring
    int32_t num_pieces = 0;
  };
  // A work item in two halves: what changes from step to step, by seat, and what stays, by worker.
  struct alignas(16) Place {
    int32_t row = -1, seat = 0, kv_begin = 0, kv_len = 0;
  };
  struct Piece {
    int32_t seat;
    int32_t unit_begin, unit_end, split_shift, partial;
    int32_t units() const { return unit_end - unit_begin; }
  };
  struct Count {
    int32_t shared = 0, all = 0;  // pieces of a worker; those of cut heads come first
  };
  // Workers before `end` (and from the run before on) with equal load, in tokens.
  struct Run {
    int32_t end;
    int64_t load;
  };

  // What a step does about the pieces of the last one.
  enum class Change { none, some, all };
  Change survey(std::span<const int32_t> row_seat, std::span<const int32_t> row_kv_len,
                int32_t num_decode_rows);
  Row row_of(int32_t seat, int32_t kv_len) const;
  bool fits(int32_t num_decode_rows) const;
  int32_t write(DecodeWork* out, int32_t* out_indptr) const;
  int32_t share_of_chunks() const;

  // attention_pieces.cpp
  void update_dealt();
  bool level(int64_t tolerated);
  std::pair<int32_t, int64_t> busiest() const;
  void forget_pieces();
  void note_units(const Row& row);
  void add_piece(int32_t worker, const Piece& piece, int32_t unit_cost);
  template <typename Job>
  void each_piece(const Seat& seat, int32_t index, Job&& job);
  void drop_pieces(Seat& seat, int32_t index);
  void stretch(const Row& row);
  void widen();

  // attention_deal.cpp
  void deal_all(std::span<const int32_t> row_seat, std::span<const int32_t> row_kv_len,
                int32_t num_decode_rows);
  void deal_added();
  void begin_at(size_t row);
  void deal_class(size_t row_begin, size_t row_end);
  void deal_splits(size_t begin);
  bool deal_heads(Row& row, int64_t limit);
  void deal_by_length();
  void deal_in_order();
  void note_dealt(const Row& row);
  void add_pieces(int32_t worker, int32_t count);
  // What is still to be dealt.
  int32_t units_of(const Row& row) const {
    return row.num_splits * geometry_.num_decode_heads - row.dealt_units;
  }
  int64_t row_cost(int32_t length, int32_t num_splits) const;
  int32_t kv_begin_of(int32_t kv_len) const {
    return geometry_.window > 0 && kv_len > geometry_.window ? kv_len - geometry_.window : 0;
  }
  // Tokens that are read of a row, from the tile in which its window begins.
  int32_t length_of(int32_t kv_len) const {
    return kv_len - kv_begin_of(kv_len) / kDecodeTile * kDecodeTile;
  }

  // attention_plan_prefill.cpp
  void survey_chunks(std::span<const int32_t> row_indptr, std::span<const int32_t> row_kv_len,
                     int32_t num_decode_rows);
  int32_t plan_prefill(std::span<const int32_t> row_indptr, std::span<const int32_t> row_kv_len,
                       std::span<AttentionWork> work, int32_t begin, int32_t* num_slots);

  AttentionGeometry geometry_;
  uint32_t step_ = 0;
  std::vector<Seat> seats_;
  std::vector<Place> places_;  // by seat, in this step
  std::vector<Row> added_;     // rows of which nothing is dealt yet, or other units than they have
  int64_t total_ = 0;          // cost of all rows
  int64_t prefill_steps_ = 0;  // of the chunks: tiles times what a kernel takes of KV at a time
  int64_t num_tiles_ = 0;
  std::vector<int32_t> order_;  // of prefill rows
  int32_t active_;              // workers that may have decode rows

  std::vector<Piece> pieces_;            // what is dealt: a worker's from worker * stride_ on
  std::vector<Count> counts_;            // by worker
  std::vector<int64_t> load_;            // by worker, in tokens
  size_t stride_ = 8, most_pieces_ = 0;  // of a worker; 0: without a limit
  size_t num_dealt_ = 0;                 // rows,
  size_t num_there_ = 0;                 // and those of them that are in this step
  int32_t num_pieces_ = 0, num_slots_ = 0;
  int32_t cursor_ = 0;        // the worker to be asked first for room
  int64_t dealt_excess_ = 0;  // when everything was dealt

  // Where dealing stands: a row of dealt_, its next unit, that unit's split, and the slots of the
  // head that the last piece cut.
  std::vector<uint64_t> keys_;     // of rows_: length, backwards, and seat
  std::vector<Row> rows_, dealt_;  // longest first; dealt_: those that are cut
  std::vector<Run> runs_, next_runs_;
  size_t at_row_ = 0;
  int32_t at_unit_ = 0, at_split_ = 0;
  int32_t open_slots_ = -1;
  std::vector<int32_t> slots_of_head_;  // of a row that is stretched
};

}  // namespace stoker
