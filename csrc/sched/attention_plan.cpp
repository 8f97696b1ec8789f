// Balancing: decode rows are dealt in classes of equal split length, longest splits first, each
// worker taking a run of consecutive units up to a common limit; so shorter splits level out what
// longer ones leave. While no row gains or loses a split, the last step's pieces are used again.
#include "sched/attention_plan.h"

#include <algorithm>
#include <array>

#include "base/check.h"

namespace stoker {
namespace {

// A unit costs its tokens and a little besides: merging, and the head's query.
constexpr int64_t kUnitOverhead = 12;

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

AttentionPlanner::AttentionPlanner(const AttentionGeometry& geometry) : geometry_(geometry) {
  check(geometry.num_decode_workers > 0 && geometry.num_decode_heads > 0, "attention geometry");
  counts_.resize(size_t(geometry.num_decode_workers));
  indptr_.resize(size_t(geometry.num_decode_workers) + 1);
  idle_.reserve(counts_.size());
  find_places();  // of a step without decode rows
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
void AttentionPlanner::add_pieces(int32_t worker, int32_t count) {
  Count& counted = counts_[size_t(worker)];
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
    Piece& piece = pieces_[size_t(num_pieces_++)];
    piece.work = {.row = row.row,
                  .seat = row.seat,
                  .kv_begin = kv_begin_of(row.kv_len),
                  .kv_len = row.kv_len,
                  .unit_begin = at_unit_,
                  .unit_end = at_unit_ + take,
                  .split_shift = row.split_shift,
                  .partial = shared ? open_slots_ : -1};
    piece.worker = worker;
    ++counted.all;
    counted.shared += shared;
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
  const auto workers = int64_t(counts_.size());
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
      for (; worker < run.end && units >= each; ++worker, units -= each) add_pieces(worker, each);
      until(worker, run.load + each * cost);
      if (worker < run.end && units > 0) {
        add_pieces(worker++, int32_t(units));
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
  const auto workers = int64_t(counts_.size());
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
      add_pieces(int32_t(w), int32_t(take));
    }
  }
}

bool AttentionPlanner::assign(int32_t max_pieces, int32_t max_slots, bool by_length) {
  num_pieces_ = num_slots_ = 0;
  std::fill(counts_.begin(), counts_.end(), Count{});
  // A class of splits makes at most three pieces a worker besides one a row.
  size_t classes = 1;
  for (size_t i = 1; i < dealt_.size(); ++i)
    classes += dealt_[i].split_shift != dealt_[i - 1].split_shift;
  const size_t most = dealt_.size() + 3 * classes * counts_.size();
  if (pieces_.size() < most) pieces_.resize(most);
  if (by_length) {
    runs_.assign(1, {int32_t(counts_.size()), 0});
    for (size_t begin = 0; begin < dealt_.size();) {
      size_t end = begin + 1;
      while (end < dealt_.size() && dealt_[end].split_shift == dealt_[begin].split_shift) ++end;
      deal(begin, end);
      begin = end;
    }
  } else {
    deal_in_order();
  }
  return num_pieces_ <= max_pieces && num_slots_ <= max_slots;
}

// The list is in order of worker, shared pieces first: their merges then happen early, while there
// is other work.
void AttentionPlanner::find_places() {
  auto end = int32_t(counts_.size());
  idle_.clear();
  for (size_t w = 0; w < counts_.size(); ++w) {
    Count& count = counts_[w];
    indptr_[w] = end;
    if (count.all == 0) idle_.push_back(int32_t(w));
    end += std::max(count.all - 1, 0);
    count = {.all = count.shared, .shared = 0};  // from here on: the next whole one, and shared one
  }
  indptr_[counts_.size()] = end;
  for (Piece& piece : std::span(pieces_.data(), size_t(num_pieces_))) {
    Count& next = counts_[size_t(piece.worker)];
    const int32_t order = piece.work.partial >= 0 ? next.shared++ : next.all++;
    piece.place = order == 0 ? piece.worker : indptr_[size_t(piece.worker)] + order - 1;
  }
}

// Reads the step's decode rows. True: their units are those of the last step.
bool AttentionPlanner::survey(std::span<const int32_t> row_seat,
                              std::span<const int32_t> row_kv_len, int32_t num_decode_rows) {
  const size_t before = rows_.size();
  bool same = true;
  size_t count = 0;
  total_ = 0;
  if (before < size_t(num_decode_rows)) rows_.resize(size_t(num_decode_rows));
  std::array<int32_t, 32> of_shift{};
  for (int32_t r = 0; r < num_decode_rows; ++r) {
    const int32_t kv_len = row_kv_len[size_t(r)];
    if (kv_len <= 0) continue;
    const int32_t length = kv_len - kv_begin_of(kv_len) / kDecodeTile * kDecodeTile;
    Row row{};
    row.row = r;
    row.seat = row_seat[size_t(r)];
    row.kv_len = kv_len;
    row.split_shift = decode_split_shift(length, geometry_.num_decode_heads);
    row.num_splits = (length + (1 << row.split_shift) - 1) >> row.split_shift;
    row.cost = (length + row.num_splits * kUnitOverhead) * int64_t(geometry_.num_decode_heads);
    total_ += row.cost;
    ++of_shift[size_t(row.split_shift)];
    same = same && count < before && row.same_units(rows_[count]);
    rows_[count++] = row;
  }
  rows_.resize(count);
  if (same && count == before) return true;
  // Longest splits first, in the batch's order within a class.
  std::array<size_t, 32> next{};
  size_t at = 0;
  for (size_t shift = of_shift.size(); shift > 0; --shift) {
    next[shift - 1] = at;
    at += size_t(of_shift[shift - 1]);
  }
  dealt_.resize(count);
  for (const Row& row : rows_) dealt_[next[size_t(row.split_shift)]++] = row;
  return false;
}

AttentionPlan AttentionPlanner::plan(std::span<const int32_t> row_seat,
                                     std::span<const int32_t> row_indptr,
                                     std::span<const int32_t> row_kv_len, int32_t num_decode_rows,
                                     std::span<AttentionWork> work,
                                     std::span<int32_t> work_indptr) {
  const size_t workers = counts_.size();
  if (!survey(row_seat, row_kv_len, num_decode_rows)) {
    const int32_t max_pieces = int32_t(rows_.size()) + kCutsAWorker * geometry_.num_decode_workers;
    const int32_t max_slots = decode_slot_capacity(geometry_);
    if (!assign(max_pieces, max_slots, true)) {
      // Too many cuts: one run of units for each worker has few.
      check(assign(max_pieces, max_slots, false), "attention plan: too many pieces");
    }
    find_places();
  }
  int32_t end = indptr_[workers];
  check(work_indptr.size() >= workers + 3, "attention plan: work_indptr is too small");
  check(work.size() >= size_t(end), "attention plan: the list is too small");
  auto* out = reinterpret_cast<DecodeWork*>(work.data());
  for (const int32_t w : idle_) out[w] = DecodeWork{-1, 0, 0, 0, 0, 0, 0, -1};
  for (const Piece& piece : std::span(pieces_.data(), size_t(num_pieces_))) {
    DecodeWork& item = out[piece.place];
    item = piece.work;
    item.kv_len = row_kv_len[size_t(item.row)];
    item.kv_begin = kv_begin_of(item.kv_len);
  }
  std::copy(indptr_.begin(), indptr_.end(), work_indptr.begin());
  work_indptr[workers + 1] = end;
  AttentionPlan plan;
  end = plan_prefill(row_indptr, row_kv_len, num_decode_rows, work, end, &plan.num_prefill_slots);
  work_indptr[workers + 2] = end;
  plan.num_work = end;
  plan.num_decode_slots = num_slots_;
  return plan;
}

}  // namespace stoker
