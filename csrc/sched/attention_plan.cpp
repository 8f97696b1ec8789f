// The work list from step to step: few rows change, so pieces of those that did not are kept where
// they are, and only rows that came, left or gained a split are dealt (attention_deal.cpp).
#include "sched/attention_plan.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace stoker {
namespace {

// A unit costs its tokens and a little besides: merging, and the head's query.
constexpr int64_t kUnitOverhead = 12;

// Everything is dealt anew when more than an eighth of the cost is new in one step, or of the rows
// gone; or when the busiest worker has a tenth more of an even share than it had then.
constexpr int64_t kNewAtOnce = 8, kUneven = 10;

// Pieces that the list has room for besides one a row. A cut between two workers makes three more;
// there are as many cuts as workers in each class of splits.
constexpr int32_t kCutsAWorker = 6;

// Entries that write() may use besides those of the list.
constexpr int32_t kPutAnyway = 2;

}  // namespace

AttentionPlanner::AttentionPlanner(const AttentionGeometry& geometry)
    : geometry_(geometry), active_(geometry.num_decode_workers) {
  check(geometry.num_decode_workers > 0 && geometry.num_decode_heads > 0, "attention geometry");
  check(
      geometry.num_processors == 0 || (geometry.num_prefill_workers > 0 &&
                                       geometry.num_decode_workers % geometry.num_processors == 0),
      "attention geometry: decode workers and multiprocessors");
  const auto workers = size_t(geometry.num_decode_workers);
  pieces_.resize(workers * stride_);
  counts_.resize(workers);
  load_.resize(workers);
  slots_of_head_.reserve(size_t(geometry.num_decode_heads));
}

void AttentionPlanner::reserve(int32_t max_rows) {
  const auto rows = size_t(max_rows);
  const auto workers = size_t(geometry_.num_decode_workers);
  // One worker may get all pieces that the list has room for. Memory that is never touched.
  while (most_pieces_ < rows + kCutsAWorker * workers + 1)
    most_pieces_ = std::max(2 * most_pieces_, stride_);
  pieces_.reserve(workers * most_pieces_);
  seats_.resize(std::max(seats_.size(), rows + 1));
  places_.resize(seats_.size());
  for (auto* list : {&added_, &rows_, &dealt_}) list->reserve(rows);
  order_.reserve(rows);
  keys_.reserve(rows);
  runs_.reserve(workers);
  next_runs_.reserve(workers);
}

int32_t AttentionPlanner::work_capacity(const AttentionGeometry& geometry, int32_t max_rows,
                                        int32_t max_tokens) {
  int32_t prefill = 0;
  if (geometry.prefill_tile_tokens > 0) {
    prefill =
        max_tokens / geometry.prefill_tile_tokens + max_rows + prefill_slot_capacity(geometry);
  }
  // A worker without work has an entry all the same.
  return max_rows + (kCutsAWorker + 1) * geometry.num_decode_workers + prefill;
}

int64_t AttentionPlanner::row_cost(int32_t length, int32_t num_splits) const {
  return (length + num_splits * kUnitOverhead) * int64_t(geometry_.num_decode_heads);
}

AttentionPlanner::Row AttentionPlanner::row_of(int32_t seat, int32_t kv_len) const {
  const int32_t length = length_of(kv_len);
  const int32_t shift = decode_split_shift(length, geometry_.num_decode_heads);
  const int32_t splits = (length + (1 << shift) - 1) >> shift;
  return {.seat = seat,
          .length = length,
          .num_splits = splits,
          .split_shift = shift,
          .unit_cost = length / splits + int32_t(kUnitOverhead),
          .cost = row_cost(length, splits),
          .dealt_units = 0};
}

// Reads the step's decode rows: which of them have the units that are dealt of them.
AttentionPlanner::Change AttentionPlanner::survey(std::span<const int32_t> row_seat,
                                                  std::span<const int32_t> row_kv_len,
                                                  int32_t num_decode_rows) {
  ++step_;
  added_.clear();
  const uint32_t step = step_;
  const int32_t* const seat_of = row_seat.data();
  const int32_t* const kv_len_of = row_kv_len.data();
  size_t there = 0;
  int64_t tokens = 0, splits = 0, cost_of_added = 0;
  for (int32_t r = 0; r < num_decode_rows; ++r) {
    const int32_t kv_len = kv_len_of[r];
    if (kv_len <= 0) continue;
    const int32_t seat_of_row = seat_of[r];
    if (size_t(seat_of_row) >= seats_.size()) {
      check(seat_of_row >= 0, "attention plan: a row without a seat");
      seats_.resize(size_t(seat_of_row) + 1);
      places_.resize(seats_.size());
    }
    Seat& seat = seats_[size_t(seat_of_row)];
    check(seat.there != step, "attention plan: two decode rows of one seat");
    seat.there = step;
    const int32_t kv_begin = kv_begin_of(kv_len);
    places_[size_t(seat_of_row)] = {
        .row = r, .seat = seat_of_row, .kv_begin = kv_begin, .kv_len = kv_len};
    const int32_t length = length_of(kv_len);
    tokens += length;
    there += seat.num_splits > 0;
    if (seat.from <= length && length <= seat.to) {
      splits += seat.num_splits;
      continue;
    }
    const Row row = row_of(seat_of_row, kv_len);
    splits += row.num_splits;
    if (seat.num_splits == row.num_splits && seat.split_shift == row.split_shift) continue;
    added_.push_back(row);
    cost_of_added += row.cost;
  }
  num_there_ = there;
  total_ = (tokens + splits * kUnitOverhead) * geometry_.num_decode_heads;
  const size_t gone = num_dealt_ - num_there_;
  if (added_.empty() && gone == 0) return Change::none;
  return cost_of_added * kNewAtOnce > total_ || gone * kNewAtOnce > num_dealt_ ? Change::all
                                                                               : Change::some;
}

bool AttentionPlanner::fits(int32_t num_decode_rows) const {
  return num_pieces_ + kPutAnyway <=
             num_decode_rows + kCutsAWorker * geometry_.num_decode_workers &&
         num_slots_ <= decode_slot_capacity(geometry_);
}

// Writes the pieces in order of worker, at this step's places; of cut heads first, so that their
// merges happen early, while there is other work.
int32_t AttentionPlanner::write(DecodeWork* out, int32_t* work_indptr) const {
  static_assert(sizeof(Place) == offsetof(DecodeWork, unit_begin));
  constexpr int32_t kWriteAhead = 16;  // items
  // Held here: what is written could be anything's memory, for all the compiler knows.
  const Place* const places = places_.data();
  const Count* const counts = counts_.data();
  const Piece* mine = pieces_.data();
  const auto workers = int32_t(counts_.size());
  const size_t stride = stride_;
  const auto put = [&](DecodeWork* item, const Piece& piece) {
    std::memcpy(&item->row, places + piece.seat, sizeof(Place));
    std::memcpy(&item->unit_begin, &piece.unit_begin, sizeof(DecodeWork) - sizeof(Place));
  };
  DecodeWork* rest = out + workers;
  for (int32_t w = 0; w < workers; ++w, mine += stride) {
    work_indptr[w] = int32_t(rest - out);
    const int32_t count = counts[w].all;
    if (count == 0) {
      out[w] = DecodeWork{-1, 0, 0, 0, 0, 0, 0, -1};
      continue;
    }
    __builtin_prefetch(out + w + kWriteAhead, 1);
    __builtin_prefetch(rest + kWriteAhead, 1);
    put(out + w, mine[0]);
    if (count == 1) continue;
    // How many more it has is anyone's guess: the first few are put without asking, and put over
    // where there are fewer.
    for (int32_t i = 0; i < kPutAnyway; ++i) put(rest + i, mine[i + 1]);
    for (int32_t i = kPutAnyway + 1; i < count; ++i) put(rest + i - 1, mine[i]);
    rest += count - 1;
  }
  work_indptr[workers] = int32_t(rest - out);
  return int32_t(rest - out);
}

// Multiprocessors for the chunks of a step that has decode rows too: those with which both halves
// take equally long.
int32_t AttentionPlanner::share_of_chunks() const {
  const double chunks =
      double(prefill_steps_) * geometry_.num_kv_heads * geometry_.prefill_step_in_tokens;
  const double share = geometry_.num_processors * chunks / (chunks + double(total_));
  const int64_t most =
      std::min<int64_t>(num_tiles_ * geometry_.num_kv_heads, geometry_.num_processors - 1);
  return int32_t(std::clamp<int64_t>(int64_t(share + 0.5), 1, std::max<int64_t>(most, 1)));
}

AttentionPlan AttentionPlanner::plan(std::span<const int32_t> row_seat,
                                     std::span<const int32_t> row_indptr,
                                     std::span<const int32_t> row_kv_len, int32_t num_decode_rows,
                                     std::span<AttentionWork> work,
                                     std::span<int32_t> work_indptr) {
  const auto workers = size_t(geometry_.num_decode_workers);
  Change change = survey(row_seat, row_kv_len, num_decode_rows);
  survey_chunks(row_indptr, row_kv_len, num_decode_rows);
  int32_t prefill_limit = std::numeric_limits<int32_t>::max();
  int32_t active = geometry_.num_decode_workers;
  if (geometry_.num_processors > 1 && total_ > 0 && num_tiles_ > 0) {
    prefill_limit = share_of_chunks();
    active = active / geometry_.num_processors * (geometry_.num_processors - prefill_limit);
  }
  if (active != active_) change = Change::all;
  active_ = active;
  if (change == Change::some) {
    update_dealt();
    deal_added();
    if (!level(dealt_excess_ + total_ / active_ / kUneven) || !fits(num_decode_rows))
      change = Change::all;
  }
  if (change == Change::all) deal_all(row_seat, row_kv_len, num_decode_rows);
  check(work_indptr.size() >= workers + 4, "attention plan: work_indptr is too small");
  check(work.size() >= workers + size_t(num_pieces_ + kPutAnyway),
        "attention plan: the list is too small");
  int32_t end = write(reinterpret_cast<DecodeWork*>(work.data()), work_indptr.data());
  work_indptr[workers + 1] = end;
  AttentionPlan plan;
  end = plan_prefill(row_indptr, row_kv_len, work, end, &plan.num_prefill_slots);
  work_indptr[workers + 2] = end;
  work_indptr[workers + 3] = prefill_limit;
  plan.num_work = end;
  plan.num_decode_slots = num_slots_;
  return plan;
}

}  // namespace stoker
