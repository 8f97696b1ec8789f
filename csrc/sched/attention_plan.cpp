// Balancing: decode rows are dealt in classes of equal split length, longest splits first, each
// worker taking a run of consecutive units up to a common limit; so shorter splits level out what
// longer ones leave. From step to step few rows change: pieces of those that did not are kept, and
// rows that came or gained a split are dealt to whoever has least, until an eighth is new or gone.
#include "sched/attention_plan.h"

#include <algorithm>
#include <array>
#include <limits>

#include "base/check.h"

namespace stoker {
namespace {

// A unit costs its tokens and a little besides: merging, and the head's query.
constexpr int64_t kUnitOverhead = 12;

// So much of the rows or of their cost may change before everything is dealt anew.
constexpr int64_t kChangedShare = 8;

// Pieces that the list has room for besides one a row. A cut between two workers makes three more;
// there are as many cuts as workers in each class of splits.
constexpr int32_t kCutsAWorker = 6;

// The largest multiple of `splits` that is at most `units`: no division, for it is asked for each
// piece.
int32_t whole_heads(int32_t units, int32_t splits) {
  static constexpr auto inverse = [] {
    std::array<uint64_t, kMaxDecodeSplits + 1> table{};
    for (uint64_t d = 1; d < table.size(); ++d) table[d] = (uint64_t{1} << 40) / d + 1;
    return table;
  }();
  // Exact while units * splits < 2^40.
  return int32_t((uint64_t(units) * inverse[size_t(splits)]) >> 40) * splits;
}

}  // namespace

AttentionPlanner::AttentionPlanner(const AttentionGeometry& geometry)
    : geometry_(geometry), active_(geometry.num_decode_workers) {
  check(geometry.num_decode_workers > 0 && geometry.num_decode_heads > 0, "attention geometry");
  check(
      geometry.num_processors == 0 || (geometry.num_prefill_workers > 0 &&
                                       geometry.num_decode_workers % geometry.num_processors == 0),
      "attention geometry: decode workers and multiprocessors");
  const auto workers = size_t(geometry.num_decode_workers);
  kept_load_.resize(workers);
  kept_counts_.resize(workers);
  counts_.resize(workers);
  next_.resize(workers);
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

// The next `count` units, from where dealing stands, go to `worker`: a cut head before, whole
// heads, a cut head after.
void AttentionPlanner::add_pieces(std::vector<Piece>& to, int32_t worker, int32_t count) {
  while (count > 0) {
    const Row& row = dealt_[at_row_];
    const int32_t units = units_of(row), splits = row.num_splits;
    int32_t take = std::min(units - at_unit_, count);
    bool shared = true;
    if (at_split_ != 0) {  // the rest of a head that another worker began
      take = std::min(take, splits - at_split_);
    } else if (take >= splits) {
      take = whole_heads(take, splits);
      shared = false;
    } else {
      open_slots_ = num_slots_;
      num_slots_ += splits;
    }
    to.push_back({.work = {.row = row.row,
                           .seat = row.seat,
                           .kv_begin = 0,
                           .kv_len = row.kv_len,
                           .unit_begin = at_unit_,
                           .unit_end = at_unit_ + take,
                           .split_shift = row.split_shift,
                           .partial = shared ? open_slots_ : -1},
                  .worker = worker,
                  .unit_cost = int32_t(row.cost / units)});
    at_unit_ += take;
    count -= take;
    if (shared) at_split_ = at_split_ + take == splits ? 0 : at_split_ + take;
    if (at_unit_ == units) {
      ++at_row_;
      at_unit_ = 0;
    }
  }
}

// Deals the units of rows [row_begin, row_end) of dealt_, which have splits of one length. Workers
// lie in few runs of equal load, since each class gives the same number of units to all of a run.
void AttentionPlanner::deal(size_t row_begin, size_t row_end) {
  const auto workers = int64_t{active_};
  int64_t units = 0, cost_of_all = 0;
  for (size_t i = row_begin; i < row_end; ++i) {
    units += units_of(dealt_[i]);
    cost_of_all += dealt_[i].cost;
  }
  const int64_t cost = std::max<int64_t>(1, cost_of_all / units);
  // The lowest common limit (to an eighth of a unit) under which every unit finds a place.
  const double per_token = 1.0 / double(cost);
  auto places = [&](int64_t load, int64_t limit) {
    return load < limit ? int64_t(double(limit - load) * per_token) : 0;
  };
  auto room = [&](int64_t limit) {
    int64_t sum = 0, begin = 0;
    for (const Run& run : runs_) {
      sum += (run.end - begin) * places(run.load, limit);
      begin = run.end;
    }
    return sum;
  };
  int64_t limit = 0;
  if (row_begin > 0) {
    limit = (total_ + workers - 1) / workers;
    int64_t low = limit;
    for (int64_t have = room(limit); have < units; have = room(limit)) {
      low = limit;
      limit += cost * std::max<int64_t>(1, (units - have) / workers);
    }
    while (limit - low > std::max<int64_t>(1, cost / 8)) {
      const int64_t middle = low + (limit - low) / 2;
      (room(middle) < units ? low : limit) = middle;
    }
  } else {
    // Every worker is empty; a token more keeps the division from rounding down.
    limit = cost * ((units + workers - 1) / workers) + (cost > 1 ? 1 : 0);
  }
  at_row_ = row_begin;
  at_unit_ = at_split_ = 0;
  open_slots_ = -1;
  next_runs_.clear();
  int32_t worker = 0;
  for (const Run& run : runs_) {
    const auto each = int32_t(places(run.load, limit));
    const auto until = [&](int32_t end, int64_t load) {
      if (end > (next_runs_.empty() ? 0 : next_runs_.back().end)) next_runs_.push_back({end, load});
    };
    if (each > 0 && units > 0) {
      for (; worker < run.end && units >= each; ++worker, units -= each)
        add_pieces(pieces_, worker, each);
      until(worker, run.load + each * cost);
      if (worker < run.end && units > 0) {
        add_pieces(pieces_, worker++, int32_t(units));
        until(worker, run.load + units * cost);
        units = 0;
      }
    }
    worker = run.end;
    until(worker, run.load);
  }
  runs_.swap(next_runs_);
  check(units == 0, "attention plan: units without a worker");
}

// One run of consecutive units a worker, whatever their lengths: few cuts, and less even.
void AttentionPlanner::deal_in_order() {
  const auto workers = int64_t{active_};
  at_row_ = 0;
  at_unit_ = at_split_ = 0;
  open_slots_ = -1;
  int64_t done = 0;
  for (int64_t w = 0; w < workers && at_row_ < dealt_.size(); ++w) {
    const int64_t until = total_ * (w + 1) / workers;
    while (at_row_ < dealt_.size() && (done < until || w + 1 == workers)) {
      const Row& row = dealt_[at_row_];
      const int64_t cost = std::max<int64_t>(1, row.cost / units_of(row));
      const int64_t left = units_of(row) - at_unit_;
      int64_t take = w + 1 == workers ? left : (until - done + cost - 1) / cost;
      take = std::min(left, take);
      done += take * cost;
      add_pieces(pieces_, int32_t(w), int32_t(take));
    }
  }
}

bool AttentionPlanner::assign(int32_t max_pieces, int32_t max_slots, bool by_length) {
  pieces_.clear();
  num_slots_ = 0;
  if (by_length) {
    runs_.assign(1, {active_, 0});
    for (size_t begin = 0; begin < dealt_.size();) {
      size_t end = begin + 1;
      while (end < dealt_.size() && dealt_[end].split_shift == dealt_[begin].split_shift) ++end;
      deal(begin, end);
      begin = end;
    }
  } else {
    deal_in_order();
  }
  return int32_t(pieces_.size()) <= max_pieces && num_slots_ <= max_slots;
}

int64_t AttentionPlanner::row_cost(int32_t length, int32_t num_splits) const {
  return (length + num_splits * kUnitOverhead) * int64_t(geometry_.num_decode_heads);
}

AttentionPlanner::Row AttentionPlanner::row_of(int32_t row, int32_t seat, int32_t kv_len) const {
  const int32_t length = kv_len - kv_begin_of(kv_len) / kDecodeTile * kDecodeTile;
  const int32_t shift = decode_split_shift(length, geometry_.num_decode_heads);
  const int32_t splits = (length + (1 << shift) - 1) >> shift;
  return {.row = row,
          .seat = seat,
          .kv_len = kv_len,
          .length = length,
          .num_splits = splits,
          .split_shift = shift,
          .cost = row_cost(length, splits)};
}

// Deals everything anew.
void AttentionPlanner::plan_all(std::span<const int32_t> row_seat,
                                std::span<const int32_t> row_kv_len, int32_t num_decode_rows) {
  rows_.clear();
  for (int32_t r = 0; r < num_decode_rows; ++r) {
    const int32_t kv_len = row_kv_len[size_t(r)];
    if (kv_len > 0) rows_.push_back(row_of(r, row_seat[size_t(r)], kv_len));
  }
  // Longest splits first, in the batch's order within a class.
  std::array<size_t, 33> next{};
  for (const Row& row : rows_) ++next[size_t(31 - row.split_shift) + 1];
  for (size_t i = 1; i < next.size(); ++i) next[i] += next[i - 1];
  dealt_.resize(rows_.size());
  for (const Row& row : rows_) dealt_[next[size_t(31 - row.split_shift)]++] = row;
  const int32_t max_pieces = int32_t(rows_.size()) + kCutsAWorker * geometry_.num_decode_workers;
  const int32_t max_slots = decode_slot_capacity(geometry_);
  if (!assign(max_pieces, max_slots, true)) {
    // Too many cuts: one run of units for each worker has few.
    check(assign(max_pieces, max_slots, false), "attention plan: too many pieces");
  }
  keep_dealt();
}

void AttentionPlanner::count(const Piece& piece, std::vector<Count>& counts,
                             std::vector<int64_t>& load, int sign) {
  Count& of = counts[size_t(piece.worker)];
  of.shared += piece.shared() ? sign : 0;
  of.whole += piece.shared() ? 0 : sign;
  load[size_t(piece.worker)] +=
      sign * int64_t{piece.unit_cost} * (piece.work.unit_end - piece.work.unit_begin);
}

void AttentionPlanner::keep_dealt() {
  kept_.swap(pieces_);
  std::fill(kept_counts_.begin(), kept_counts_.end(), Count{});
  std::fill(kept_load_.begin(), kept_load_.end(), 0);
  for (const Piece& piece : kept_) count(piece, kept_counts_, kept_load_, 1);
  counts_ = kept_counts_;
  kept_slots_ = num_slots_;
  num_kept_then_ = num_kept_ = rows_.size();
  added_.clear();
  added_pieces_.clear();
  for (Seat& seat : seats_) seat.num_splits = 0;
  for (const Row& row : rows_) {
    Seat& seat = seats_[size_t(row.seat)];
    seat.num_splits = row.num_splits;
    seat.split_shift = row.split_shift;
    seat.from = row.length;
    // Up to the next split, unless splits get longer before.
    seat.to = row.num_splits << row.split_shift;
    if (decode_split_shift(seat.to, geometry_.num_decode_heads) != row.split_shift)
      seat.to = row.length;
  }
}

// Forgets the kept pieces of rows that left, or have other units now.
void AttentionPlanner::drop_gone() {
  std::erase_if(kept_, [&](const Piece& piece) {
    if (seats_[size_t(piece.work.seat)].seen == step_) return false;
    count(piece, kept_counts_, kept_load_, -1);
    return true;
  });
  for (Seat& seat : seats_) {
    if (seat.seen != step_) seat.num_splits = 0;
  }
}

// Deals the rows that kept_ has nothing of: to each worker that has room for a head up to a common
// limit, which rises until all have found a place.
void AttentionPlanner::plan_added() {
  added_pieces_.clear();
  dealt_.assign(added_.begin(), added_.end());
  num_slots_ = kept_slots_;
  load_ = kept_load_;
  counts_ = kept_counts_;
  at_row_ = 0;
  at_unit_ = at_split_ = 0;
  open_slots_ = -1;
  const auto workers = size_t(active_);
  int64_t limit = total_ / int64_t(workers);
  size_t worker = 0;
  while (at_row_ < dealt_.size()) {
    const Row& row = dealt_[at_row_];
    const int64_t cost = std::max<int64_t>(1, row.cost / units_of(row));
    if (worker == workers) {
      worker = 0;
      limit += std::max<int64_t>(1, cost * row.num_splits / 4);
    }
    const int64_t least = std::min(row.num_splits - at_split_, units_of(row) - at_unit_);
    if (load_[worker] + cost * least > limit) {
      ++worker;
      continue;
    }
    const auto take =
        int32_t(std::min<int64_t>(units_of(row) - at_unit_, (limit - load_[worker]) / cost));
    add_pieces(added_pieces_, int32_t(worker), take);
    load_[worker] += take * cost;
  }
  for (const Piece& piece : added_pieces_) count(piece, counts_, load_, 1);
}

// Reads the step's decode rows: which of them have the units that they had before.
AttentionPlanner::Change AttentionPlanner::survey(std::span<const int32_t> row_seat,
                                                  std::span<const int32_t> row_kv_len,
                                                  int32_t num_decode_rows) {
  ++step_;
  last_added_.swap(added_);
  added_.clear();
  total_ = 0;
  int64_t cost_of_added = 0;
  size_t kept = 0;
  bool moved = false;
  for (int32_t r = 0; r < num_decode_rows; ++r) {
    const int32_t kv_len = row_kv_len[size_t(r)];
    if (kv_len <= 0) continue;
    const int32_t seat_of_row = row_seat[size_t(r)];
    check(seat_of_row >= 0, "attention plan: a row without a seat");
    if (size_t(seat_of_row) >= seats_.size()) seats_.resize(size_t(seat_of_row) + 1);
    Seat& seat = seats_[size_t(seat_of_row)];
    check(seat.there != step_, "attention plan: two decode rows of one seat");
    seat.there = step_;
    moved = moved || seat.row != r;
    seat.row = r;
    const int32_t length = kv_len - kv_begin_of(kv_len) / kDecodeTile * kDecodeTile;
    if (seat.num_splits > 0 && seat.from <= length && length <= seat.to) {
      seat.seen = step_;
      ++kept;
      total_ += row_cost(length, seat.num_splits);
      continue;
    }
    const Row row = row_of(r, seat_of_row, kv_len);
    total_ += row.cost;
    if (seat.num_splits == row.num_splits && seat.split_shift == row.split_shift) {
      seat.seen = step_;
      ++kept;
      continue;
    }
    added_.push_back(row);
    cost_of_added += row.cost;
  }
  if (cost_of_added * kChangedShare > total_ ||
      (num_kept_then_ - kept) * kChangedShare > num_kept_then_)
    return Change::all;
  const bool gone = kept < num_kept_;
  num_kept_ = kept;
  if (gone) {
    drop_gone();
    return Change::some;
  }
  const bool same = std::equal(added_.begin(), added_.end(), last_added_.begin(), last_added_.end(),
                               [](const Row& a, const Row& b) { return a.same_units(b); });
  return !same ? Change::some : moved ? Change::moved : Change::none;
}

// Writes the pieces in order of worker with this step's lengths; shared ones first, so that their
// merges happen early, while there is other work.
int32_t AttentionPlanner::write(std::span<const int32_t> row_kv_len, DecodeWork* out,
                                int32_t* work_indptr) {
  auto end = int32_t(counts_.size());
  for (size_t w = 0; w < counts_.size(); ++w) {
    const Count& count = counts_[w];
    next_[w] = {.shared = 0, .whole = count.shared};
    work_indptr[w] = end;
    end += std::max(count.shared + count.whole - 1, 0);
    if (count.shared + count.whole == 0) out[w] = DecodeWork{-1, 0, 0, 0, 0, 0, 0, -1};
  }
  work_indptr[counts_.size()] = end;
  for (const std::vector<Piece>* pieces : {&kept_, &added_pieces_}) {
    for (const Piece& piece : *pieces) {
      const auto w = size_t(piece.worker);
      const int32_t order = piece.shared() ? next_[w].shared++ : next_[w].whole++;
      DecodeWork& item = out[order == 0 ? piece.worker : work_indptr[w] + order - 1];
      const int32_t row = seats_[size_t(piece.work.seat)].row;
      item = piece.work;
      item.row = row;
      item.kv_len = row_kv_len[size_t(row)];
      item.kv_begin = kv_begin_of(item.kv_len);
    }
  }
  return end;
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
  const auto fits = [&] {
    return int32_t(kept_.size() + added_pieces_.size()) <=
               num_decode_rows + kCutsAWorker * geometry_.num_decode_workers &&
           num_slots_ <= decode_slot_capacity(geometry_);
  };
  if (change == Change::some) {
    plan_added();
    if (!fits()) change = Change::all;
  }
  if (change == Change::all) plan_all(row_seat, row_kv_len, num_decode_rows);
  check(work_indptr.size() >= workers + 4, "attention plan: work_indptr is too small");
  const size_t most = workers + kept_.size() + added_pieces_.size();
  check(work.size() >= most, "attention plan: the list is too small");
  auto* const out = reinterpret_cast<DecodeWork*>(work.data());
  int32_t end = 0;
  if (change != Change::none) {
    end = write(row_kv_len, out, work_indptr.data());
    list_holds_ = false;
  } else {
    if (!list_holds_) {
      list_.resize(most);
      list_indptr_.resize(workers + 1);
      list_.resize(size_t(write(row_kv_len, list_.data(), list_indptr_.data())));
      list_holds_ = true;
    }
    end = int32_t(list_.size());
    std::copy(list_indptr_.begin(), list_indptr_.end(), work_indptr.begin());
    for (size_t i = 0; i < list_.size(); ++i) {
      out[i] = list_[i];
      if (list_[i].row < 0) continue;
      out[i].kv_len = row_kv_len[size_t(list_[i].row)];
      out[i].kv_begin = kv_begin_of(out[i].kv_len);
    }
  }
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
