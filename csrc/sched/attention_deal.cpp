// Dealing: longest rows first, in whole heads, each worker taking what it has room for under a
// common limit; so shorter rows fill what longer ones leave, and few heads are cut. Heads of more
// than two thirds of an even share, and those for which nobody has room, go out split by split. A
// row that comes later is dealt in whole heads to whoever has room; when everything is dealt anew
// is told in attention_plan.cpp.
#include <algorithm>
#include <array>

#include "base/check.h"
#include "sched/attention_plan.h"

namespace stoker {
namespace {

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

void AttentionPlanner::begin_at(size_t row) {
  at_row_ = row;
  at_unit_ = row < dealt_.size() ? dealt_[row].dealt_units : 0;
  at_split_ = 0;
  open_slots_ = -1;
}

// The next `count` units, from where dealing stands, go to `worker`: a cut head before, whole
// heads, a cut head after.
void AttentionPlanner::add_pieces(int32_t worker, int32_t count) {
  while (count > 0) {
    const Row& row = dealt_[at_row_];
    const int32_t units = row.num_splits * geometry_.num_decode_heads, splits = row.num_splits;
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
    add_piece(worker,
              {.seat = row.seat,
               .unit_begin = at_unit_,
               .unit_end = at_unit_ + take,
               .split_shift = row.split_shift,
               .partial = shared ? open_slots_ : -1},
              row.unit_cost);
    at_unit_ += take;
    count -= take;
    if (shared) at_split_ = at_split_ + take == splits ? 0 : at_split_ + take;
    if (at_unit_ == units) begin_at(at_row_ + 1);
  }
}

void AttentionPlanner::note_dealt(const Row& row) {
  note_units(row);
  ++num_dealt_;
}

// Deals the units of rows [row_begin, row_end) of dealt_, which have splits of one length. Workers
// lie in few runs of equal load, since each class gives the same number of units to all of a run.
void AttentionPlanner::deal_class(size_t row_begin, size_t row_end) {
  const auto workers = int64_t{active_};
  int64_t units = 0, cost_of_all = 0;
  for (size_t i = row_begin; i < row_end; ++i) {
    units += units_of(dealt_[i]);
    cost_of_all += int64_t{units_of(dealt_[i])} * dealt_[i].unit_cost;
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
  if (num_pieces_ > 0) {
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
  begin_at(row_begin);
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
  const auto workers = int64_t{active_};
  begin_at(0);
  int64_t done = 0;
  for (int64_t w = 0; w < workers && at_row_ < dealt_.size(); ++w) {
    const int64_t until = total_ * (w + 1) / workers;
    while (at_row_ < dealt_.size() && (done < until || w + 1 == workers)) {
      const Row& row = dealt_[at_row_];
      const int64_t cost = row.unit_cost;
      const int64_t left = units_of(row) - at_unit_;
      int64_t take = w + 1 == workers ? left : (until - done + cost - 1) / cost;
      take = std::min(left, take);
      done += take * cost;
      add_pieces(int32_t(w), int32_t(take));
    }
  }
}

// Deals the rows of dealt_ from `begin` on split by split, class by class.
void AttentionPlanner::deal_splits(size_t begin) {
  runs_.clear();
  for (int32_t w = 0; w < active_; ++w) {
    if (!runs_.empty() && runs_.back().load == load_[size_t(w)]) runs_.pop_back();
    runs_.push_back({w + 1, load_[size_t(w)]});
  }
  while (begin < dealt_.size()) {
    size_t end = begin + 1;
    while (end < dealt_.size() && dealt_[end].split_shift == dealt_[begin].split_shift) ++end;
    deal_class(begin, end);
    begin = end;
  }
}

// Deals whole heads of a row to workers that stay within `limit`. False: some found no room.
bool AttentionPlanner::deal_heads(Row& row, int64_t limit) {
  const int64_t cost = row.head_cost();
  for (int32_t asked = 0; asked < active_; ++asked) {
    const int64_t room = limit - load_[size_t(cursor_)];
    if (room >= cost) {
      const int32_t begin = row.dealt_units;
      row.dealt_units += int32_t(std::min<int64_t>(units_of(row), room / cost * row.num_splits));
      add_piece(cursor_,
                {.seat = row.seat,
                 .unit_begin = begin,
                 .unit_end = row.dealt_units,
                 .split_shift = row.split_shift,
                 .partial = -1},
                row.unit_cost);
      if (units_of(row) == 0) return true;
    }
    cursor_ = cursor_ + 1 < active_ ? cursor_ + 1 : 0;
  }
  return false;
}

void AttentionPlanner::deal_by_length() {
  const int64_t share = (total_ + active_ - 1) / active_;
  dealt_.clear();
  auto row = rows_.begin();
  for (; row != rows_.end() && row->head_cost() * 3 > share * 2; ++row) dealt_.push_back(*row);
  deal_splits(0);
  // What whole splits of the longest row that is left can keep to.
  const int64_t cost = row != rows_.end() ? row->unit_cost : 1;
  const int64_t limit = (share + cost - 1) / cost * cost;
  const size_t rest = dealt_.size();
  int64_t most_room = limit;  // of a worker
  for (; row != rows_.end(); ++row) {
    Row left = *row;
    if (left.head_cost() <= most_room) {
      if (deal_heads(left, limit)) continue;
      most_room = limit - *std::min_element(load_.begin(), load_.begin() + active_);
    }
    dealt_.push_back(left);
  }
  deal_splits(rest);
}

// Deals everything anew.
void AttentionPlanner::deal_all(std::span<const int32_t> row_seat,
                                std::span<const int32_t> row_kv_len, int32_t num_decode_rows) {
  // Longest first; sorted by what fits a word, as a step waits for it.
  keys_.clear();
  for (int32_t r = 0; r < num_decode_rows; ++r) {
    if (const int32_t kv_len = row_kv_len[size_t(r)]; kv_len > 0)
      keys_.push_back(uint64_t(~uint32_t(length_of(kv_len))) << 32 | uint32_t(row_seat[size_t(r)]));
  }
  std::sort(keys_.begin(), keys_.end());
  rows_.clear();
  for (const uint64_t key : keys_) {
    const auto seat = int32_t(key & 0xffffffff);
    rows_.push_back(row_of(seat, places_[size_t(seat)].kv_len));
  }
  forget_pieces();
  if (!rows_.empty()) deal_by_length();
  if (!fits(num_decode_rows)) {  // too many cuts: one run of units for each worker has few
    forget_pieces();
    dealt_ = rows_;
    deal_in_order();
    check(fits(num_decode_rows), "attention plan: too many pieces");
  }
  for (const Row& row : rows_) note_dealt(row);
  dealt_excess_ = busiest().second;
}

// Deals the rows that came or have other units: to workers that have room up to a common limit,
// which rises until all have found a place.
void AttentionPlanner::deal_added() {
  int64_t limit = total_ / active_;
  for (Row& row : added_) {
    while (!deal_heads(row, limit)) {
      const int64_t head = row.head_cost();
      limit = *std::min_element(load_.begin(), load_.begin() + active_) + head + head / 4;
    }
    note_dealt(row);
  }
}

}  // namespace stoker
