// What is dealt, from step to step: the pieces of each worker. Rows that leave take theirs along,
// one that gains a split stretches them where they are, and a worker with too much hands a piece
// on; so that everything is dealt anew (attention_deal.cpp) but rarely.
#include <algorithm>
#include <cstddef>
#include <cstdlib>

#include "base/check.h"
#include "sched/attention_plan.h"

namespace stoker {
namespace {

// Moves of heads between workers in one step; if they do not suffice, all is dealt anew.
constexpr int32_t kMovesAStep = 8;

}  // namespace

// Twice the room for each worker.
void AttentionPlanner::widen() {
  pieces_.resize(pieces_.size() * 2);
  for (size_t i = counts_.size(); i-- > 1;)
    std::copy_n(pieces_.begin() + std::ptrdiff_t(i * stride_), stride_,
                pieces_.begin() + std::ptrdiff_t(i * stride_ * 2));
  stride_ *= 2;
}

void AttentionPlanner::add_piece(int32_t worker, const Piece& piece, int32_t unit_cost) {
  const auto w = size_t(worker);
  if (size_t(counts_[w].all) == stride_) {
    if (stride_ == most_pieces_) {  // more than the list takes: all are dealt in another way
      ++num_pieces_;
      return;
    }
    widen();
  }
  Count& count = counts_[w];
  Piece* const mine = pieces_.data() + w * stride_;
  if (piece.partial >= 0) {
    mine[count.all] = mine[count.shared];
    mine[count.shared++] = piece;
  } else {
    mine[count.all] = piece;
  }
  ++count.all;
  ++num_pieces_;
  load_[w] += int64_t{unit_cost} * piece.units();
  Seat& seat = seats_[size_t(piece.seat)];
  if (seat.num_pieces++ == 0) seat.worker = worker;
  seat.unit_cost = unit_cost;
}

// job(worker, place) for each piece of a seat's row. A job that takes the piece away returns true:
// another may stand in its place then.
template <typename Job>
void AttentionPlanner::each_piece(const Seat& seat, int32_t index, Job&& job) {
  int32_t left = seat.num_pieces;
  for (auto w = size_t(seat.worker); left > 0; w = w + 1 < size_t(active_) ? w + 1 : 0) {
    for (size_t i = w * stride_; i < w * stride_ + size_t(counts_[w].all);) {
      if (pieces_[i].seat != index) {
        ++i;
        continue;
      }
      --left;
      i += !job(w, i);
    }
  }
}

void AttentionPlanner::drop_pieces(Seat& seat, int32_t index) {
  each_piece(seat, index, [&](size_t w, size_t i) {
    Count& count = counts_[w];
    const size_t begin = w * stride_;
    load_[w] -= int64_t{seat.unit_cost} * pieces_[i].units();
    if (i < begin + size_t(count.shared)) {
      const size_t last_shared = begin + size_t(--count.shared);
      pieces_[i] = pieces_[last_shared];
      i = last_shared;
    }
    pieces_[i] = pieces_[begin + size_t(--count.all)];
    return true;
  });
  num_pieces_ -= seat.num_pieces;
  seat.num_pieces = 0;
  seat.num_splits = 0;
  seat.from = 1;
  seat.to = 0;
  --num_dealt_;
}

// A row that has gained a split keeps its pieces: who has the end of a head has the new split too.
void AttentionPlanner::stretch(const Row& row) {
  Seat& seat = seats_[size_t(row.seat)];
  const int32_t before = seat.num_splits, now = row.num_splits;
  slots_of_head_.assign(size_t(geometry_.num_decode_heads), -1);
  each_piece(seat, row.seat, [&](size_t w, size_t i) {
    Piece& piece = pieces_[i];
    load_[w] -= int64_t{seat.unit_cost} * piece.units();
    const int32_t first = piece.unit_begin / before, end = piece.unit_end / before;
    if (piece.partial >= 0) {
      int32_t& slots = slots_of_head_[size_t(first)];
      if (slots < 0) {
        slots = num_slots_;
        num_slots_ += now;
      }
      piece.partial = slots;
    }
    piece.unit_begin += first * (now - before);
    piece.unit_end += end * (now - before);
    load_[w] += int64_t{row.unit_cost} * piece.units();
    return false;
  });
  seat.unit_cost = row.unit_cost;
  note_units(row);
}

// Brings what is dealt up to this step: forgets the pieces of rows that have left or have other
// units now, and leaves in added_ what is still to be dealt.
void AttentionPlanner::update_dealt() {
  if (num_there_ < num_dealt_) {
    for (size_t i = 0; i < seats_.size(); ++i) {
      if (seats_[i].num_splits > 0 && seats_[i].there != step_) drop_pieces(seats_[i], int32_t(i));
    }
  }
  std::erase_if(added_, [&](const Row& row) {
    Seat& seat = seats_[size_t(row.seat)];
    if (seat.num_splits == 0) return false;
    if (row.split_shift == seat.split_shift && row.num_splits == seat.num_splits + 1) {
      stretch(row);
      return true;
    }
    drop_pieces(seat, row.seat);
    return false;
  });
}

void AttentionPlanner::forget_pieces() {
  std::fill(counts_.begin(), counts_.end(), Count{});
  std::fill(load_.begin(), load_.end(), 0);
  num_pieces_ = num_slots_ = cursor_ = 0;
  num_dealt_ = 0;
  for (Seat& seat : seats_) seat = Seat{.there = seat.there};
}

// The lengths that have this row's units.
void AttentionPlanner::note_units(const Row& row) {
  Seat& seat = seats_[size_t(row.seat)];
  seat.num_splits = int16_t(row.num_splits);
  seat.split_shift = int16_t(row.split_shift);
  seat.from = row.length;
  // Up to the next split, unless splits get longer before.
  seat.to = row.num_splits << row.split_shift;
  if (decode_split_shift(seat.to, geometry_.num_decode_heads) != row.split_shift)
    seat.to = row.length;
}

// The busiest worker, and how much more it has than an even share.
std::pair<int32_t, int64_t> AttentionPlanner::busiest() const {
  const int64_t* const loads = load_.data();
  int64_t most = 0, sum = 0;
  for (int32_t w = 0; w < active_; ++w) {
    most = std::max(most, loads[w]);
    sum += loads[w];
  }
  const auto* const at = std::find(loads, loads + active_, most);
  return {int32_t(at - loads), most - sum / active_};
}

// Hands whole heads on from the busiest worker to the least busy until none has more than
// `tolerated` above an even share. False: a few moves do not bring that about.
bool AttentionPlanner::level(int64_t tolerated) {
  for (int32_t moves = 0;; ++moves) {
    const auto [from, excess] = busiest();
    if (excess <= tolerated) return true;
    if (moves == kMovesAStep) return false;
    const auto to = std::min_element(load_.begin(), load_.begin() + active_) - load_.begin();
    const int64_t gap = load_[size_t(from)] - load_[size_t(to)];
    // The piece whose heads close the gap best.
    Count& count = counts_[size_t(from)];
    const size_t begin = size_t(from) * stride_;
    size_t best = 0;
    int64_t best_head = gap;
    for (size_t i = begin + size_t(count.shared); i < begin + size_t(count.all); ++i) {
      const Seat& seat = seats_[size_t(pieces_[i].seat)];
      const int64_t head = int64_t{seat.unit_cost} * seat.num_splits;
      if (std::abs(head - gap / 2) >= std::abs(best_head - gap / 2)) continue;
      best = i;
      best_head = head;
    }
    if (best_head == gap) return false;  // they would only change places
    Piece& piece = pieces_[best];
    Seat& seat = seats_[size_t(piece.seat)];
    const auto given =
        int32_t(std::clamp<int64_t>(gap / 2 / best_head, 1, piece.units() / seat.num_splits));
    Piece moved = piece;
    moved.unit_begin = piece.unit_end = piece.unit_end - given * seat.num_splits;
    load_[size_t(from)] -= int64_t{seat.unit_cost} * moved.units();
    if (piece.units() == 0) {
      piece = pieces_[begin + size_t(--count.all)];
      --seat.num_pieces;
      --num_pieces_;
    }
    add_piece(int32_t(to), moved, seat.unit_cost);
  }
}

}  // namespace stoker
