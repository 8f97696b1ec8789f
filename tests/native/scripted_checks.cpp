// The scripted executor itself: hand-written batches, one broken promise each, must trip the check
// of that name; sound ones must trip none and sample what the context says. A proof is worth what
// its detector is worth.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "sim/scripted_executor.h"

namespace stoker::test {
namespace {

using sim::ScriptedConfig;
using sim::ScriptedExecutor;

constexpr int32_t kBlockSize = 4;
constexpr uint64_t kSeed = 99;

struct Row {
  Seat seat;
  std::vector<Token> tokens;
  int32_t kv_len;
  std::vector<int32_t> slots;
  bool sample = true;
};

// Writes batches by hand into a ring of two buffers.
class Bench {
 public:
  explicit Bench(int32_t depth = 1, std::function<void(ScriptedConfig&)> change = {})
      : layout_(limits()) {
    ScriptedConfig config;
    config.groups = {{kBlockSize, 8, 4, 0}};
    config.overlap_depth = depth;
    config.rule.vocab_size = 1000;
    if (change) change(config);
    executor = std::make_unique<ScriptedExecutor>(config);
    for (int32_t i = 0; i < depth + 2; ++i)
      ring_.emplace_back(&layout_, executor->buffer(i, layout_));
  }

  static BatchLimits limits() {
    BatchLimits l;
    l.max_num_seqs = 4;
    l.max_num_batched_tokens = 16;
    l.max_blocks_per_req = 4;
    l.min_block_size = kBlockSize;
    l.max_seat_words = 64;
    return l;
  }

  void table(Seat seat, int32_t index, BlockId block) {
    tables_.push_back({0, seat, index, block});
  }
  void take_seat(Seat seat, uint64_t seed = kSeed) {
    SeatChange c{};
    c.seat = seat;
    c.num_logprobs = -1;
    c.seed_low = static_cast<uint32_t>(seed);
    c.seed_high = static_cast<uint32_t>(seed >> 32);
    seats_.push_back(c);
  }
  void move(Ticket ticket, Tier from, BlockId source, Tier to, BlockId destination,
            BatchId after = -1) {
    transfers_.push_back({ticket, after < 0 ? next_id_ - 1 : after, 0, static_cast<int32_t>(from),
                          source, static_cast<int32_t>(to), destination, 0});
  }

  BatchBuffer launch(const std::vector<Row>& rows) {
    const BatchBuffer b = ring_[static_cast<size_t>(next_id_) % ring_.size()];
    BatchHeader& h = b.header();
    h = {};
    h.version = kBatchVersion;
    h.batch_id = next_id_++;
    for (size_t s = 0; s < kNumSections; ++s)
      h.sections[s] = {layout_.offset(static_cast<Section>(s)), 0};
    const auto count = [&](Section s, size_t n) {
      h.sections[static_cast<size_t>(s)].count = static_cast<int32_t>(n);
    };
    int32_t tokens = 0;
    int32_t outs = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      const Row& row = rows[r];
      b.all<int32_t>(Section::row_seat)[r] = row.seat;
      b.all<int32_t>(Section::row_indptr)[r] = tokens;
      b.all<int32_t>(Section::row_kv_len)[r] = row.kv_len;
      for (size_t i = 0; i < row.tokens.size(); ++i, ++tokens) {
        const auto t = static_cast<size_t>(tokens);
        b.all<int32_t>(Section::token_ids)[t] = row.tokens[i];
        b.all<int32_t>(Section::positions)[t] =
            row.kv_len - static_cast<int32_t>(row.tokens.size() - i);
        b.slots(0)[t] = row.slots[i];
      }
      if (row.sample) {
        const auto o = static_cast<size_t>(outs++);
        b.all<int32_t>(Section::out_token)[o] = tokens - 1;
        b.all<int32_t>(Section::out_seat)[o] = row.seat;
        b.all<int32_t>(Section::out_kind)[o] = static_cast<int32_t>(OutKind::sample);
        b.all<int32_t>(Section::out_target)[o] = -1;
        b.all<int32_t>(Section::out_position)[o] = row.kv_len;
      }
    }
    b.all<int32_t>(Section::row_indptr)[rows.size()] = tokens;
    for (const Section s : {Section::row_seat, Section::row_kv_len}) count(s, rows.size());
    count(Section::row_indptr, rows.size() + 1);
    for (const Section s : {Section::out_token, Section::out_seat, Section::out_kind,
                            Section::out_target, Section::out_position}) {
      count(s, static_cast<size_t>(outs));
    }
    for (const Section s : {Section::token_ids, Section::positions})
      count(s, static_cast<size_t>(tokens));
    count(Section::slots, static_cast<size_t>(tokens));
    put(b, Section::table_changes, tables_);
    put(b, Section::seat_changes, seats_);
    put(b, Section::transfers, transfers_);
    h.num_reqs = h.num_rows = static_cast<int32_t>(rows.size());
    h.num_tokens = tokens;
    h.num_outs = h.num_sampled_rows = outs;
    h.used_bytes = static_cast<int32_t>(layout_.bytes());
    executor->launch(b);
    return b;
  }

  StepResult collect() {
    StepResult result;
    executor->collect(result);
    return result;
  }
  StepResult run(const std::vector<Row>& rows) {
    launch(rows);
    return collect();
  }

  std::unique_ptr<ScriptedExecutor> executor;

 private:
  template <typename T>
  void put(const BatchBuffer& b, Section s, std::vector<T>& records) {
    std::copy(records.begin(), records.end(), b.all<T>(s).begin());
    b.header().sections[static_cast<size_t>(s)].count = static_cast<int32_t>(records.size());
    records.clear();
  }

  BatchLayout layout_;
  std::vector<BatchBuffer> ring_;
  std::vector<TableChange> tables_;
  std::vector<SeatChange> seats_;
  std::vector<Transfer> transfers_;
  BatchId next_id_ = 1;
};

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "scripted_checks: FAILED: %s\n", what.c_str());
}

void expect_trips(const Bench& bench, const std::string& check) {
  bool found = false;
  for (const auto& v : bench.executor->violations()) found = found || v.check == check;
  expect(found, "'" + check + "' was not found");
}

void expect_sound(const Bench& bench, const std::string& what) {
  for (const auto& v : bench.executor->violations()) {
    expect(false, what + ": " + v.check + v.message);
  }
}

Token answer(const std::vector<Token>& context, uint64_t seed = kSeed) {
  uint64_t hash = sim::kEmptyContext;
  for (size_t i = 0; i < context.size(); ++i) {
    hash = sim::extend_context(hash, context[i], static_cast<int32_t>(i));
  }
  return sim::sample({1000, -1, 0}, hash, seed, static_cast<int32_t>(context.size()), 0, {});
}

// A prompt of five tokens in blocks 3 and 5 of seat 1.
const std::vector<Token> kPrompt = {10, 11, 12, 13, 14};
const Row kPrefill = {1, kPrompt, 5, {12, 13, 14, 15, 20}};

void seat_one(Bench& b) {
  b.take_seat(1);
  b.table(1, 0, 3);
  b.table(1, 1, 5);
}

Bench prefilled(int32_t depth = 1, std::function<void(ScriptedConfig&)> change = {}) {
  Bench b(depth, std::move(change));
  seat_one(b);
  b.run({kPrefill});
  return b;
}

void sound_steps() {
  Bench b(1);
  seat_one(b);
  b.launch({kPrefill});
  b.launch({{1, {-2}, 6, {21}}});  // the last token of seat 1, not known to the host yet
  const Token first = b.collect().token_ids.at(0);
  expect(first == answer(kPrompt), "the first token is the prompt's hash");
  std::vector<Token> context = kPrompt;
  context.push_back(first);
  expect(b.collect().token_ids.at(0) == answer(context),
         "the second token reads the first one's KV");
  // A second seat shares the full block.
  b.take_seat(2, 7);
  b.table(2, 0, 3);
  b.table(2, 1, 6);
  expect(b.run({{2, {14}, 5, {24}}}).token_ids.at(0) == answer(kPrompt, 7),
         "a shared block reads the same");
  // Copy-on-write of the partial block, then on.
  b.take_seat(3, 8);
  b.table(3, 0, 3);
  b.table(3, 1, 7);
  b.move(1, Tier::device, 5, Tier::device, 7);
  const StepResult forked = b.run({{3, {500}, 6, {29}}});
  context = kPrompt;
  context.push_back(500);
  expect(forked.token_ids.at(0) == answer(context, 8), "a copied block reads the same");
  expect(forked.finished_transfers == std::vector<Ticket>{1}, "the ticket comes back");
  expect_sound(b, "sound steps");
}

void swap_there_and_back() {
  Bench b = prefilled(1, [](ScriptedConfig& c) { c.max_transfer_delay = 3; });
  b.move(1, Tier::device, 3, Tier::host, 1);
  b.move(2, Tier::device, 5, Tier::host, 2);
  expect(b.run({}).finished_transfers.size() == 2, "a step without tokens waits for all copies");
  b.executor->poison(0, Tier::device, 3);
  b.executor->poison(0, Tier::device, 5);
  b.take_seat(2);
  b.table(2, 0, 6);
  b.table(2, 1, 7);
  b.move(3, Tier::host, 1, Tier::device, 6);
  b.move(4, Tier::host, 2, Tier::device, 7);
  expect(b.run({}).finished_transfers.size() == 2, "and back");
  const StepResult back = b.run({{2, {600}, 6, {29}}});
  std::vector<Token> context = kPrompt;
  context.push_back(600);
  expect(back.token_ids.at(0) == answer(context), "KV survives the way to the host and back");
  expect_sound(b, "swap");
}

void broken_promises() {
  {
    Bench b = prefilled();
    const Token t = b.run({{1, {-2}, 6, {22}}}).token_ids.at(0);
    expect_trips(b, "slot differs from the block table");
    expect_trips(b, "unwritten slot read");
    std::vector<Token> context = kPrompt;
    context.push_back(answer(kPrompt));
    expect(t != answer(context), "a wrong slot changes the token");
  }
  {
    Bench b = prefilled();
    b.executor->poison(0, Tier::device, 3);
    b.run({{1, {-2}, 6, {21}}});
    expect_trips(b, "freed block read");
  }
  {
    Bench b(1);
    b.take_seat(1);
    b.table(1, 0, 3);
    b.run({kPrefill});
    expect_trips(b, "null block read");
  }
  {
    Bench b = prefilled();
    b.table(1, 0, 5);
    b.run({{1, {-2}, 6, {21}}});
    expect_trips(b, "wrong position read");
  }
  {
    Bench b = prefilled();
    b.run({{1, {-2}, 5, {20}}});
    expect_trips(b, "row does not continue its seat");
    expect_trips(b, "last token of another position");
  }
  {
    Bench b = prefilled();
    b.run({{1, {-3}, 6, {21}}});
    expect_trips(b, "last token of another seat");
  }
  {
    Bench b = prefilled();
    b.run({{1, {-2}, 6, {1}}});
    expect_trips(b, "write to the null block");
  }
  {
    Bench b = prefilled();
    b.take_seat(2);
    b.table(2, 0, 3);
    b.run({{1, {-2}, 6, {21}}, {2, {1}, 2, {21}}});
    expect_trips(b, "slot written twice in a step");
  }
  {
    Bench b = prefilled();
    const BatchBuffer held = b.launch({{1, {-2}, 6, {21}}});
    held.all<int32_t>(Section::positions)[0] = 3;
    b.collect();
    expect_trips(b, "buffer changed in flight");
  }
  {
    Bench b = prefilled(0);
    b.launch({{1, {-2}, 6, {21}}});
    b.launch({{1, {-2}, 7, {22}}});
    expect_trips(b, "too many steps in flight");
  }
  {
    Bench b = prefilled();
    b.run({{1, {-2}, 6, {21}}, {1, {-2}, 6, {21}}});
    expect_trips(b, "two rows of one seat");
  }
  {
    Bench b = prefilled(1, [](ScriptedConfig& c) { c.max_transfer_delay = 1000; });
    b.move(3, Tier::device, 5, Tier::host, 1);
    b.run({{1, {-2}, 6, {21}}});
    expect_trips(b, "source of a copy overwritten");
  }
  {
    Bench b = prefilled(1, [](ScriptedConfig& c) { c.max_transfer_delay = 1000; });
    b.move(3, Tier::host, 1, Tier::device, 5);
    b.run({{1, {-2}, 6, {21}}});
    expect_trips(b, "destination of a copy touched");
  }
  {
    Bench b = prefilled(1, [](ScriptedConfig& c) { c.max_transfer_delay = 1000; });
    b.move(3, Tier::device, 3, Tier::host, 1);
    b.move(4, Tier::device, 5, Tier::host, 1);
    b.run({{1, {-2}, 6, {21}}});
    expect_trips(b, "transfer touches a block of one under way");
  }
  {
    Bench b = prefilled();
    b.move(3, Tier::device, 3, Tier::host, 1, 50);
    b.run({});
    expect_trips(b, "transfer after a step to come");
  }
  {
    Bench b = prefilled();
    b.table(1, 9, 3);
    b.run({{1, {-2}, 6, {21}}});
    expect_trips(b, "table change out of range");
  }
}

// What a failed step wrote makes its readers worthless, and no one else.
void failed_step() {
  Bench b(1, [](ScriptedConfig& c) { c.failing_steps = {1}; });
  seat_one(b);
  b.take_seat(2);
  b.table(2, 0, 6);
  b.launch({kPrefill});
  b.launch({{1, {-2}, 6, {21}}, {2, {40, 41}, 2, {24, 25}}});
  const StepResult failed = b.collect();
  expect(failed.status == StepStatus::failed, "the step fails");
  const StepResult next = b.collect();
  expect(next.status == StepStatus::ok, "the next one does not");
  expect(next.token_ids.at(0) >= 1000, "a row that reads what failed is worthless");
  expect(next.token_ids.at(1) == answer({40, 41}), "a row that does not is sound");
  expect_sound(b, "failed step");
}

}  // namespace
}  // namespace stoker::test

int main() {
  stoker::test::sound_steps();
  stoker::test::swap_there_and_back();
  stoker::test::broken_promises();
  stoker::test::failed_step();
  if (stoker::test::failures > 0) return 1;
  std::puts("scripted_checks: ok");
  return 0;
}
