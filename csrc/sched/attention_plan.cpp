// Balancing: decode rows are dealt in classes of equal split length, longest splits first, each
// worker taking a run of consecutive units up to a common limit; so shorter splits level out what
// longer ones leave.
#include "sched/attention_plan.h"

#include <algorithm>

#include "base/check.h"

namespace stoker {
namespace {

// A unit costs its tokens and a little besides: merging, and the head's query.
constexpr int64_t kUnitOverhead = 12;

// Pieces that the list has room for besides one a row. A cut between two workers makes three more;
// there are as many cuts as workers in each class of splits.
constexpr int32_t kCutsAWorker = 6;

int32_t div_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

}  // namespace

AttentionPlanner::AttentionPlanner(const AttentionGeometry& geometry) : geometry_(geometry) {
  check(geometry.num_decode_workers > 0 && geometry.num_decode_heads > 0, "attention geometry");
  load_.resize(size_t(geometry.num_decode_workers));
  next_.resize(size_t(geometry.num_decode_workers) + 1);
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
void AttentionPlanner::add_pieces(int32_t worker, int64_t count) {
  while (count > 0) {
    const Row& row = rows_[at_row_];
    const int64_t left = row.units - at_unit_;
    int64_t take = std::min(left, count);
    const int64_t splits = row.num_splits;
    const int64_t within = at_unit_ % splits;
    bool shared = false;
    if (within != 0) {  // the rest of a head that another worker began
      take = std::min(take, splits - within);
      shared = true;
    } else if (take >= splits) {
      take -= take % splits;
    } else {
      shared = true;
      open_slots_ = num_slots_;
      num_slots_ += row.num_splits;
    }
    Piece piece{worker, shared, {}};
    piece.work.row = row.row;
    piece.work.seat = row.seat;
    piece.work.kv_begin = row.kv_begin;
    piece.work.kv_len = row.kv_len;
    piece.work.unit_begin = int32_t(at_unit_);
    piece.work.unit_end = int32_t(at_unit_ + take);
    piece.work.split_shift = row.split_shift;
    piece.work.partial = shared ? open_slots_ : -1;
    pieces_.push_back(piece);
    at_unit_ += take;
    count -= take;
    if (at_unit_ == row.units) {
      ++at_row_;
      at_unit_ = 0;
    }
  }
}

// Deals the units of rows [row_begin, row_end), which have splits of one length.
void AttentionPlanner::deal(size_t row_begin, size_t row_end) {
  const auto workers = int64_t(load_.size());
  int64_t units = 0, cost_of_all = 0;
  for (size_t i = row_begin; i < row_end; ++i) {
    units += rows_[i].units;
    cost_of_all += rows_[i].cost;
  }
  const int64_t cost = std::max<int64_t>(1, cost_of_all / units);
  // The lowest common limit (to an eighth of a unit) under which every unit finds a place.
  const double per_token = 1.0 / double(cost);
  auto places = [&](int64_t load, int64_t limit) {
    return load < limit ? int64_t(double(limit - load) * per_token) : 0;
  };
  auto room = [&](int64_t limit) {
    int64_t sum = 0;
    for (const int64_t load : load_) sum += places(load, limit);
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
  at_unit_ = 0;
  open_slots_ = -1;
  for (size_t w = 0; w < load_.size() && units > 0; ++w) {
    const int64_t take = std::min(units, places(load_[w], limit));
    if (take <= 0) continue;
    add_pieces(int32_t(w), take);
    load_[w] += take * cost;
    units -= take;
  }
  check(units == 0, "attention plan: units without a worker");
}

// One run of consecutive units a worker, whatever their lengths: few cuts, and less even.
void AttentionPlanner::deal_in_order() {
  const auto workers = int64_t(load_.size());
  at_row_ = 0;
  at_unit_ = 0;
  open_slots_ = -1;
  int64_t done = 0;
  for (int64_t w = 0; w < workers && at_row_ < rows_.size(); ++w) {
    const int64_t until = total_ * (w + 1) / workers;
    while (at_row_ < rows_.size() && (done < until || w + 1 == workers)) {
      const Row& row = rows_[at_row_];
      const int64_t cost = std::max<int64_t>(1, row.cost / row.units), left = row.units - at_unit_;
      int64_t take = w + 1 == workers ? left : (until - done + cost - 1) / cost;
      take = std::min(left, take);
      done += take * cost;
      add_pieces(int32_t(w), take);
    }
  }
}

bool AttentionPlanner::assign(int32_t max_pieces, int32_t max_slots, bool by_length) {
  pieces_.clear();
  num_slots_ = 0;
  std::fill(load_.begin(), load_.end(), 0);
  if (by_length) {
    for (size_t begin = 0; begin < rows_.size();) {
      size_t end = begin + 1;
      while (end < rows_.size() && rows_[end].split_shift == rows_[begin].split_shift) ++end;
      deal(begin, end);
      begin = end;
    }
  } else {
    deal_in_order();
  }
  return int32_t(pieces_.size()) <= max_pieces && num_slots_ <= max_slots;
}

// Writes pieces_ in order of worker, shared ones first: their merges then happen early, while there
// is other work.
int32_t AttentionPlanner::place(std::span<AttentionWork> work, std::span<int32_t> work_indptr) {
  const size_t workers = load_.size();
  auto* out = reinterpret_cast<DecodeWork*>(work.data());
  check(work_indptr.size() >= workers + 3, "attention plan: work_indptr is too small");
  std::fill(next_.begin(), next_.end(), 0);
  for (const Piece& piece : pieces_) ++next_[size_t(piece.worker)];
  auto end = int32_t(workers);
  for (size_t w = 0; w < workers; ++w) {
    work_indptr[w] = end;
    end += std::max(next_[w] - 1, 0);
    next_[w] = 0;
  }
  work_indptr[workers] = end;
  check(work.size() >= size_t(end), "attention plan: the list is too small");
  for (size_t w = 0; w < workers; ++w) out[w] = DecodeWork{-1, 0, 0, 0, 0, 0, 0, -1};
  for (const bool shared : {true, false}) {
    for (const Piece& piece : pieces_) {
      if (piece.shared != shared) continue;
      const auto w = size_t(piece.worker);
      const int32_t order = next_[w]++;
      out[order == 0 ? w : size_t(work_indptr[w] + order - 1)] = piece.work;
    }
  }
  return end;
}

AttentionPlan AttentionPlanner::plan(std::span<const int32_t> row_seat,
                                     std::span<const int32_t> row_indptr,
                                     std::span<const int32_t> row_kv_len, int32_t num_decode_rows,
                                     std::span<AttentionWork> work,
                                     std::span<int32_t> work_indptr) {
  rows_.clear();
  total_ = 0;
  for (int32_t r = 0; r < num_decode_rows; ++r) {
    const int32_t kv_len = row_kv_len[size_t(r)];
    if (kv_len <= 0) continue;
    Row row{};
    row.row = r;
    row.seat = row_seat[size_t(r)];
    row.kv_len = kv_len;
    row.kv_begin = geometry_.window > 0 ? std::max(0, kv_len - geometry_.window) : 0;
    const int32_t length = kv_len - row.kv_begin / kDecodeTile * kDecodeTile;
    row.split_shift = decode_split_shift(length, geometry_.num_decode_heads);
    row.num_splits = div_up(length, 1 << row.split_shift);
    row.units = int64_t(row.num_splits) * geometry_.num_decode_heads;
    row.cost = (length + row.num_splits * kUnitOverhead) * int64_t(geometry_.num_decode_heads);
    total_ += row.cost;
    rows_.push_back(row);
  }
  std::stable_sort(rows_.begin(), rows_.end(),
                   [](const Row& a, const Row& b) { return a.split_shift > b.split_shift; });
  const int32_t max_pieces = int32_t(rows_.size()) + kCutsAWorker * geometry_.num_decode_workers;
  const int32_t max_slots = decode_slot_capacity(geometry_);
  if (!assign(max_pieces, max_slots, true)) {
    // Too many cuts: one run of units for each worker has few.
    check(assign(max_pieces, max_slots, false), "attention plan: too many pieces");
  }
  AttentionPlan plan;
  int32_t end = place(work, work_indptr);
  const auto workers = size_t(geometry_.num_decode_workers);
  work_indptr[workers + 1] = end;
  end = plan_prefill(row_indptr, row_kv_len, num_decode_rows, work, end, &plan.num_prefill_slots);
  work_indptr[workers + 2] = end;
  plan.num_work = end;
  plan.num_decode_slots = num_slots_;
  return plan;
}

}  // namespace stoker
