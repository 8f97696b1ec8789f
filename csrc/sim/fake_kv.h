// A pretend device's KV memory: for each KV group a device and a host pool whose slots remember
// which token of which position they hold, and the block tables of all seats. It breaks no rule
// silently: what a real device would turn into a wrong token becomes a wrong token here, and a
// named violation besides.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "sched/schedule_batch.h"

namespace stoker::sim {

struct FakeGroup {
  int32_t block_size = 16;
  int32_t num_blocks = 0;       // with the null block
  int32_t num_host_blocks = 0;  // with host block 0, which is never used
  int32_t window = 0;           // 0: full attention
};

// A broken promise of whoever wrote the batch (or of the pretend device, when a bug is planted).
struct Violation {
  std::string check;
  std::string message;
  BatchId batch_id = 0;
};

enum class SlotState : uint8_t {
  empty,     // never written
  valid,     // holds (token, position)
  poisoned,  // its block was freed: reading it is a violation
  tainted,   // written by a step or row that failed: reading it silently makes the reader worthless
};

struct FakeSlot {
  Token token = -1;
  int32_t position = -1;
  SlotState state = SlotState::empty;
};

class FakeKv {
 public:
  FakeKv(std::vector<FakeGroup> groups, int32_t num_seats, int32_t max_blocks_per_req);

  int32_t num_groups() const { return static_cast<int32_t>(groups_.size()); }
  const FakeGroup& group(GroupId g) const { return groups_[static_cast<size_t>(g)]; }

  void set_table(const TableChange& change);
  void forget_tables();

  // The row's token at `position` goes to `slot` of every group; false and a violation where the
  // slot is not the one that the block table says.
  void write(GroupId g, Seat seat, int32_t position, int32_t slot, Token token, bool tainted);
  // Reads positions [begin, end) of a seat through its block table; calls `visit(slot)` for each
  // that is sound. Returns false if anything read was tainted or broken.
  struct ReadResult {
    bool sound = true;
    uint64_t hash = 0;
  };
  ReadResult read(GroupId g, Seat seat, int32_t end);

  // A transfer begins: copied at once on one tier; between tiers by complete_transfers() at some
  // time, and until then no row may touch its destination or write its source.
  void begin_transfer(const Transfer& transfer);
  // Copies what is still pending among transfers that began before `batch_id` - delay(ticket); all
  // = every one.
  void complete_transfers(BatchId batch_id, int32_t max_delay, bool all);
  // Tickets of finished transfers since the last call, in the order of completion.
  void take_finished(std::vector<Ticket>& out);
  bool transfers_pending() const { return !pending_.empty(); }

  void poison(GroupId g, Tier tier, BlockId block);
  // What was written there in this step came from a row that failed.
  void taint(GroupId g, int32_t slot);

  void begin_step(BatchId batch_id) { batch_id_ = batch_id; }
  void violate(const char* check, std::string message);
  const std::vector<Violation>& violations() const { return violations_; }
  int64_t num_violations() const { return num_violations_; }

 private:
  struct Pending {
    Transfer transfer;
    BatchId batch_id;
  };

  std::vector<FakeSlot>& pool(GroupId g, int32_t tier);
  FakeSlot* block(GroupId g, int32_t tier, BlockId block);
  void copy(const Transfer& transfer);
  // A row of the running step touches a device block: no copy into it may be pending, and none out
  // of it if the row writes.
  void touch(GroupId g, BlockId block, bool writes);

  std::vector<FakeGroup> groups_;
  int32_t num_seats_;
  int32_t max_blocks_per_req_;
  std::vector<std::vector<FakeSlot>> device_, host_;  // [group][block * block_size + offset]
  std::vector<std::vector<BlockId>> tables_;          // [group][seat * max_blocks_per_req + index]
  std::vector<std::vector<BatchId>> written_in_;      // [group][slot]: the last step that wrote it
  std::vector<std::vector<BatchId>> copied_in_;  // [group][block]: the last step that copied there
  std::vector<Pending> pending_;
  std::vector<Ticket> finished_;
  std::vector<Violation> violations_;  // the first ones
  int64_t num_violations_ = 0;
  BatchId batch_id_ = 0;
};

}  // namespace stoker::sim
