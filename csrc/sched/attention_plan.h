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
  int32_t
      split_shift;  // a split is 1 << split_shift tokens, from kv_begin rounded down to kDecodeTile
  int32_t
      partial;  // first workspace slot of this head's splits; -1: every head of this item is whole
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

 private:
  struct Row {
    int32_t row, seat, kv_len, length, num_splits, split_shift;
    int64_t cost;  // of all its units, in tokens
    // What decides which units there are; the place in the batch and kv_len change freely.
    bool same_units(const Row& other) const {
      return seat == other.seat && num_splits == other.num_splits &&
             split_shift == other.split_shift;
    }
  };
  struct Piece {
    DecodeWork work;
    int32_t worker;
    int32_t unit_cost;                                 // in tokens
    bool shared() const { return work.partial >= 0; }  // its head is cut
  };
  struct Count {
    int32_t shared = 0, whole = 0;  // pieces of a worker
  };
  // Workers before `end` (and from the run before on) with equal load, in tokens.
  struct Run {
    int32_t end;
    int64_t load;
  };
  struct alignas(32) Seat {
    int32_t row = -1;        // in this step
    int32_t num_splits = 0;  // of the units that kept_ has of it; 0: none
    int32_t split_shift = 0;
    int32_t from = 0, to = 0;  // lengths that have these units
    uint32_t there = 0;        // the last step that it has a row in
    uint32_t seen = 0;         // and the last in which that row had those units
  };

  // What a step does about the pieces of the last one.
  enum class Change { none, moved, some, all };
  Change survey(std::span<const int32_t> row_seat, std::span<const int32_t> row_kv_len,
                int32_t num_decode_rows);
  Row row_of(int32_t row, int32_t seat, int32_t kv_len) const;
  void plan_all(std::span<const int32_t> row_seat, std::span<const int32_t> row_kv_len,
                int32_t num_decode_rows);
  void plan_added();
  void drop_gone();
  void survey_chunks(std::span<const int32_t> row_indptr, std::span<const int32_t> row_kv_len,
                     int32_t num_decode_rows);
  int32_t share_of_chunks() const;
  bool assign(int32_t max_pieces, int32_t max_slots, bool by_length);
  void deal(size_t row_begin, size_t row_end);
  void deal_in_order();
  void add_pieces(std::vector<Piece>& to, int32_t worker, int32_t count);
  void keep_dealt();
  void count(const Piece& piece, std::vector<Count>& counts, std::vector<int64_t>& load, int sign);
  int32_t write(std::span<const int32_t> row_kv_len, DecodeWork* out, int32_t* out_indptr);
  int32_t units_of(const Row& row) const { return row.num_splits * geometry_.num_decode_heads; }
  int64_t row_cost(int32_t length, int32_t num_splits) const;
  int32_t kv_begin_of(int32_t kv_len) const {
    return geometry_.window > 0 && kv_len > geometry_.window ? kv_len - geometry_.window : 0;
  }
  int32_t plan_prefill(std::span<const int32_t> row_indptr, std::span<const int32_t> row_kv_len,
                       std::span<AttentionWork> work, int32_t begin, int32_t* num_slots);

  AttentionGeometry geometry_;
  uint32_t step_ = 0;
  std::vector<Seat> seats_;
  std::vector<Row> rows_;                // of the step that dealt everything
  std::vector<Row> added_, last_added_;  // of them, those that kept_ has nothing of
  // Pieces dealt when everything was, and how many rows they are of, then and now.
  std::vector<Piece> kept_;
  std::vector<Count> kept_counts_;  // by worker
  std::vector<int64_t> kept_load_;  // by worker, in tokens
  size_t num_kept_then_ = 0, num_kept_ = 0;
  int32_t kept_slots_ = 0;
  // Pieces of the rows that came or grew since.
  std::vector<Piece> added_pieces_;
  std::vector<Count> counts_;  // by worker, all pieces
  // The last step's list, for steps in which every row is where it was.
  std::vector<DecodeWork> list_;
  std::vector<int32_t> list_indptr_;
  bool list_holds_ = false;

  // Scratch of dealing.
  std::vector<Row> dealt_;  // longest splits first
  std::vector<Piece> pieces_;
  std::vector<Count> next_;  // by worker: the place of its next piece of each kind
  std::vector<int64_t> load_;
  std::vector<Run> runs_, next_runs_;
  std::vector<int32_t> order_;  // of prefill rows
  int64_t total_ = 0;           // cost of all rows
  int64_t prefill_steps_ = 0;   // of the chunks: tiles times what a kernel takes of KV at a time
  int64_t num_tiles_ = 0;
  int32_t active_;  // workers that may have decode rows
  int32_t num_slots_ = 0;
  // Where dealing stands: a row of dealt_, its next unit, that unit's split, and the slots of the
  // head that the last piece cut.
  size_t at_row_ = 0;
  int32_t at_unit_ = 0, at_split_ = 0;
  int32_t open_slots_ = -1;
};

}  // namespace stoker
