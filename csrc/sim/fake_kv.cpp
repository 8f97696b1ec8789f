// The pretend device's KV memory: writes by slot, reads through the block table, copies with their
// delays.
#include "sim/fake_kv.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "sim/token_hash.h"

namespace stoker::sim {

namespace {

constexpr size_t kMaxKept = 16;

std::string text(const char* what, int64_t value) {
  return std::string(" ") + what + " " + std::to_string(value);
}

}  // namespace

FakeKv::FakeKv(std::vector<FakeGroup> groups, int32_t num_seats, int32_t max_blocks_per_req)
    : groups_(std::move(groups)), num_seats_(num_seats), max_blocks_per_req_(max_blocks_per_req) {
  for (const FakeGroup& g : groups_) {
    const auto slots = static_cast<size_t>(g.num_blocks) * static_cast<size_t>(g.block_size);
    device_.emplace_back(slots);
    written_in_.emplace_back(slots, 0);
    copied_in_.emplace_back(static_cast<size_t>(g.num_blocks), 0);
    host_.emplace_back(static_cast<size_t>(g.num_host_blocks) * static_cast<size_t>(g.block_size));
    tables_.emplace_back(static_cast<size_t>(num_seats_) * static_cast<size_t>(max_blocks_per_req_),
                         kNullBlock);
  }
}

void FakeKv::violate(const char* check, std::string message) {
  ++num_violations_;
  if (violations_.size() < kMaxKept) violations_.push_back({check, std::move(message), batch_id_});
}

std::vector<FakeSlot>& FakeKv::pool(GroupId g, int32_t tier) {
  return tier == static_cast<int32_t>(Tier::host) ? host_[static_cast<size_t>(g)]
                                                  : device_[static_cast<size_t>(g)];
}

FakeSlot* FakeKv::block(GroupId g, int32_t tier, BlockId block) {
  if (g < 0 || g >= num_groups()) return nullptr;
  auto& slots = pool(g, tier);
  const auto begin = static_cast<int64_t>(block) * group(g).block_size;
  if (block <= kNullBlock || begin >= static_cast<int64_t>(slots.size())) return nullptr;
  return slots.data() + begin;
}

void FakeKv::set_table(const TableChange& c) {
  const bool ok = c.group >= 0 && c.group < num_groups() && c.seat > kNoSeat &&
                  c.seat < num_seats_ && c.index >= 0 && c.index < max_blocks_per_req_ &&
                  c.block >= kNullBlock && c.block < group(c.group).num_blocks;
  if (!ok) {
    violate("table change out of range", text("group", c.group) + text("seat", c.seat) +
                                             text("index", c.index) + text("block", c.block));
    return;
  }
  tables_[static_cast<size_t>(c.group)]
         [static_cast<size_t>(c.seat) * static_cast<size_t>(max_blocks_per_req_) +
          static_cast<size_t>(c.index)] = c.block;
}

void FakeKv::forget_tables() {
  for (auto& table : tables_) std::fill(table.begin(), table.end(), kNullBlock);
}

void FakeKv::touch(GroupId g, BlockId touched, bool writes) {
  for (const Pending& p : pending_) {
    const Transfer& t = p.transfer;
    if (t.group != g) continue;
    const auto what = text("block", touched) + text("ticket", t.ticket);
    if (writes && t.source_tier == 0 && t.source_block == touched)
      violate("source of a copy overwritten", what);
    if (t.destination_tier == 0 && t.destination_block == touched)
      violate("destination of a copy touched", what);
  }
}

void FakeKv::write(GroupId g, Seat seat, int32_t position, int32_t slot, Token token,
                   bool tainted) {
  const int32_t size = group(g).block_size;
  const auto where = text("group", g) + text("seat", seat) + text("position", position);
  if (slot < size || slot / size >= group(g).num_blocks) {
    violate(slot >= 0 && slot < size ? "write to the null block" : "slot out of range",
            where + text("slot", slot));
    return;
  }
  const int32_t index = position / size;
  const BlockId in_table =
      index < max_blocks_per_req_
          ? tables_[static_cast<size_t>(g)]
                   [static_cast<size_t>(seat) * static_cast<size_t>(max_blocks_per_req_) +
                    static_cast<size_t>(index)]
          : kNullBlock;
  if (in_table * size + position % size != slot) {
    violate("slot differs from the block table",
            where + text("slot", slot) + text("block in table", in_table));
  }
  touch(g, slot / size, true);
  BatchId& written = written_in_[static_cast<size_t>(g)][static_cast<size_t>(slot)];
  if (written == batch_id_) violate("slot written twice in a step", where + text("slot", slot));
  written = batch_id_;
  device_[static_cast<size_t>(g)][static_cast<size_t>(slot)] = {
      token, position, tainted ? SlotState::tainted : SlotState::valid};
}

FakeKv::ReadResult FakeKv::read(GroupId g, Seat seat, int32_t end) {
  const FakeGroup& spec = group(g);
  const int32_t begin = spec.window > 0 ? std::max(0, end - spec.window) : 0;
  ReadResult result{true, kEmptyContext};
  const BlockId* table = tables_[static_cast<size_t>(g)].data() +
                         static_cast<size_t>(seat) * static_cast<size_t>(max_blocks_per_req_);
  const FakeSlot* slots = nullptr;
  for (int32_t p = begin; p < end; ++p) {
    const int32_t offset = p % spec.block_size;
    if (slots == nullptr || offset == 0) {
      const BlockId b = table[p / spec.block_size];
      slots = block(g, 0, b);
      if (slots == nullptr) {
        violate("null block read", text("group", g) + text("seat", seat) + text("position", p));
        result.sound = false;
        p += spec.block_size - offset - 1;
        continue;
      }
      touch(g, b, false);
    }
    const FakeSlot& s = slots[offset];
    const auto where = [&] {
      return text("group", g) + text("seat", seat) + text("position", p) +
             text("block", table[p / spec.block_size]) + text("slot's position", s.position);
    };
    if (s.state == SlotState::tainted) {
      result.sound = false;
    } else if (s.state == SlotState::poisoned) {
      violate("freed block read", where());
    } else if (s.state == SlotState::empty) {
      violate("unwritten slot read", where());
    } else if (s.position != p) {
      violate("wrong position read", where());
    }
    // What was read is what counts, as on a real device.
    result.hash = extend_context(result.hash, s.token, s.position);
  }
  return result;
}

void FakeKv::begin_transfer(const Transfer& t) {
  const auto what = text("ticket", t.ticket) + text("group", t.group) +
                    text("source tier", t.source_tier) + text("block", t.source_block) +
                    text("destination tier", t.destination_tier) +
                    text("block", t.destination_block);
  if (block(t.group, t.source_tier, t.source_block) == nullptr ||
      block(t.group, t.destination_tier, t.destination_block) == nullptr) {
    violate("transfer out of range", what);
    finished_.push_back(t.ticket);
    return;
  }
  if (t.after_step >= batch_id_) violate("transfer after a step to come", what);
  if (t.source_tier == 0 && t.destination_tier != 0 &&
      copied_in_[static_cast<size_t>(t.group)][static_cast<size_t>(t.source_block)] > t.after_step)
    violate("copy before the step that copies its source", what);
  for (const Pending& p : pending_) {
    const bool from_its_destination = p.transfer.group == t.group &&
                                      p.transfer.destination_tier == t.source_tier &&
                                      p.transfer.destination_block == t.source_block;
    const bool to_its_destination = p.transfer.group == t.group &&
                                    p.transfer.destination_tier == t.destination_tier &&
                                    p.transfer.destination_block == t.destination_block;
    const bool to_its_source = p.transfer.group == t.group &&
                               p.transfer.source_tier == t.destination_tier &&
                               p.transfer.source_block == t.destination_block;
    if (from_its_destination || to_its_destination || to_its_source) {
      violate("transfer touches a block of one under way", what);
    }
  }
  if (t.source_tier == t.destination_tier) {
    copy(t);
  } else {
    pending_.push_back({t, batch_id_});
  }
}

void FakeKv::copy(const Transfer& t) {
  const FakeSlot* source = block(t.group, t.source_tier, t.source_block);
  FakeSlot* destination = block(t.group, t.destination_tier, t.destination_block);
  std::copy_n(source, group(t.group).block_size, destination);
  if (t.destination_tier == 0) {
    BatchId& copied =
        copied_in_[static_cast<size_t>(t.group)][static_cast<size_t>(t.destination_block)];
    copied = t.source_tier == 0 ? batch_id_ : 0;  // of a copy between tiers the ticket tells
  }
  finished_.push_back(t.ticket);
}

void FakeKv::complete_transfers(BatchId batch_id, int32_t max_delay, bool all) {
  for (size_t i = 0; i < pending_.size();) {
    const Pending p = pending_[i];
    const auto delay = static_cast<int64_t>(mix(static_cast<uint64_t>(p.transfer.ticket)) %
                                            (static_cast<uint64_t>(max_delay) + 1));
    if (all || p.batch_id + delay <= batch_id) {
      copy(p.transfer);
      pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

void FakeKv::take_finished(std::vector<Ticket>& out) {
  out.insert(out.end(), finished_.begin(), finished_.end());
  finished_.clear();
}

void FakeKv::taint(GroupId g, int32_t slot) {
  auto& slots = device_[static_cast<size_t>(g)];
  if (slot >= 0 && static_cast<size_t>(slot) < slots.size())
    slots[static_cast<size_t>(slot)].state = SlotState::tainted;
}

void FakeKv::poison(GroupId g, Tier tier, BlockId b) {
  FakeSlot* slots = block(g, static_cast<int32_t>(tier), b);
  check(slots != nullptr, "poisoned block is out of range");
  for (int32_t i = 0; i < group(g).block_size; ++i) slots[i] = {-1, -1, SlotState::poisoned};
}

}  // namespace stoker::sim
