// The scheduler: add(), schedule(), commit(). Decisions only: time comes in, plans go out, no
// clock, thread or tensor.
//
// The contract with whoever runs the steps (Executor), in the order of a step's life:
//
// - schedule(now, buffer) writes one step into `buffer` and returns true, or returns false: nothing
//   to launch. At most overlap_depth + 1 steps may be scheduled and not committed. commit() takes
//   them strictly in the order of schedule(). Executors run steps strictly in that order too.
// - Seats. A req that is admitted gets a seat in 1..max_num_seqs and, in the same batch as its
//   first row, one SeatChange with its sampling parameters, plus one TableChange for each block it
//   holds. The seat stays until the req ends or is preempted. Re-admission gives a new seat and a
//   new SeatChange. A seat is given to another req only after every step that has a row on it was
//   committed; so a SeatChange or TableChange never touches a seat that a step in flight reads.
//   seat_data of a SeatChange, from data_begin: num_bias token ids, num_bias floats (their bits),
//   num_stop token ids (EOS ids that count for it included), num_context tokens: everything known
//   of the req, prompt then outputs, and only where kSeatPenalties is set. SeatChange.prompt_len
//   tells where the prompt ends in it.
// - Table changes hold for this step and later ones: block_table[group][seat][index] = block. They
//   are the only way the table changes; a row on a fresh seat reads only entries that were sent
//   since its SeatChange. They may also replace a block by another one with the same content (a
//   duplicate of a cached block is given back). Block 0 stands for positions that a window has left
//   behind.
// - Rows. Decode rows come first, one token each. Row r's query tokens are positions row_kv_len[r]
//   - n .. row_kv_len[r] - 1, their KV goes to `slots`, and it attends to positions 0 ..
//   row_kv_len[r] - 1 of its own table. A row may read blocks that another row of the same batch
//   writes (a shared prompt prefix): write all KV of a layer before attending.
// - Tokens. token_ids[i] = -1 - seat means "the last token sampled on that seat": it stands where
//   the token was sampled by a step that was not committed when this one was scheduled. All other
//   tokens are given as they are, so last_token[seat] needs no other care: the sampler writes it at
//   every sample row.
// - Output rows. `sample` rows sample the token at out_position (= row_kv_len of their row);
//   `score` rows want the logprob of out_target at out_position given the hidden row before it;
//   `pool` rows want the hidden row itself.
// - A req's row that was launched before its end was known (EOS one step late, abort, error) still
//   runs; its result is thrown away. An end by length is known in time and has no such row.
// - Blocks. A block that a step in flight may read or write is not handed out again before that
//   step was committed: it is `draining` in between. The same holds for both ends of a Transfer
//   until its ticket comes back in StepResult::finished_transfers.
// - A StepResult with status failed ends the reqs that have a row in that step with an error. Reqs
//   that are only in later steps go on; those of them that read blocks of the failed step are
//   retracted, and their rows in flight are discarded.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <memory_resource>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "sched/admission.h"
#include "sched/block_pool.h"
#include "sched/config.h"
#include "sched/event_log.h"
#include "sched/prefix_cache.h"
#include "sched/req.h"
#include "sched/schedule_batch.h"
#include "sched/step_events.h"
#include "sched/step_result.h"
#include "sched/waiting_queue.h"

namespace stoker {

// Not thread-safe: one thread at a time (the loop's).
class Scheduler {
 public:
  explicit Scheduler(SchedulerConfig config);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  const SchedulerConfig& config() const {
    return config_;
  }  // as validated: every default filled in
  // What bounds a step; makes the BatchLayout of every buffer given to schedule().
  const BatchLimits& limits() const { return limits_; }
  const BatchLayout& layout() const { return layout_; }

  // Throws InvalidArgument for a req that can never run. Reads nothing but the configuration: any
  // thread.
  void validate(const Req& req) const;
  // Takes a req into the waiting queue. Throws InvalidArgument, and takes nothing, for what can
  // never run: an empty prompt, one over max_model_len, a token outside the vocabulary, more blocks
  // than the pool has, a rid in use, a full queue. With n > 1 the children `rid/0` .. `rid/n-1` are
  // what runs and what events name; children(rid) lists them.
  void add(const ReqPtr& req, TimeNs now = 0);
  // Ends a req (or all children of one with n > 1), in any state. False: no such req (any more).
  // The end is in the next StepEvents.
  bool abort(std::string_view rid, TimeNs now = 0);
  // The same with an error, which says `why`.
  bool fail(std::string_view rid, const std::string& why, TimeNs now = 0);
  // The grammar that this req waits for is there. False: no such req (any more).
  bool grammar_ready(std::string_view rid);

  // A new value for the policy `key`; the waiting req moves to its new place.
  void set_policy_key(std::string_view rid, double key);
  // Paused in place nothing is scheduled; draining, running reqs go on and nobody enters.
  enum class Pause { no, in_place, drain };
  void pause(Pause how);
  Pause paused() const { return pause_; }
  // Drops what nobody holds from the prefix cache; returns how many block positions went.
  int32_t flush_cache();
  // Keeps what is cached of these tokens from being evicted until unpin_prefix(). At most half of
  // the pool can be pinned.
  int64_t pin_prefix(std::span<const Token> tokens, const std::string& cache_salt = {});
  bool unpin_prefix(int64_t pin);
  // What it costs to compute a token again and to move a byte between tiers, as measured: by these
  // `preemption=auto` chooses.
  void set_rates(double ns_per_token, double ns_per_byte);
  // The earliest time at which a waiting req is to be dropped for its deadline; -1: none.
  TimeNs next_deadline() const { return expiring_.empty() ? -1 : expiring_.begin()->first; }

  // From now on every call that changes something is written to `log`, which must outlive the
  // scheduler; null: to none. Only a log begun before the first req can be replayed.
  void log_to(EventLog* log) { log_ = log; }

  // Decides the next step and writes it. False: there is nothing to launch. Takes effect whole, or,
  // where memory cannot be had, throws std::bad_alloc and has changed nothing.
  bool schedule(TimeNs now, const BatchBuffer& out);
  // Takes back the oldest step in flight. The events stay valid until the next call of commit() or
  // take_events().
  const StepEvents& commit(const StepResult& result, TimeNs now = 0);
  // In short: one token for each sampled row, all ok.
  const StepEvents& commit(BatchId batch_id, std::span<const Token> tokens, TimeNs now = 0);
  // News that no commit() has told yet (aborts and refusals while nothing is in flight).
  const StepEvents& take_events();

  bool has_unfinished() const {
    return num_running_ > 0 || !waiting_.empty() || !arriving_.empty();
  }
  // Whether all that is left to do waits for somebody outside: grammars being compiled.
  bool only_waits() const { return num_present() == 0 && num_waiting() == num_unready_; }
  int32_t num_waiting() const { return waiting_.size() + num_attached_; }
  int32_t num_running() const { return num_running_; }
  int32_t num_swapped() const { return num_swapped_; }
  int32_t steps_in_flight() const { return static_cast<int32_t>(next_batch_ - 1 - committed_); }
  bool fatal() const { return fatal_; }  // the device was lost: nothing is scheduled any more
  std::vector<ReqPtr> children(std::string_view rid) const;
  // How many tokens at the head of the req's prompt are in the prefix cache now. Changes nothing.
  int32_t match_prefix(const Req& req) const;
  // The req of a handle; null when the handle is free.
  ReqPtr req(ReqId id) const;
  ReqPtr find(std::string_view rid) const;
  void waiting(std::vector<ReqPtr>& out) const;  // all waiting reqs, in the queue's order
  // The reqs with a row in a step in flight, in row order.
  void reqs_of(BatchId batch_id, std::vector<ReqPtr>& out) const;
  // Its sampled rows that take a grammar mask and whose req goes on, with their output rows.
  struct MaskedRow {
    const Req* req;
    int32_t out_row;
  };
  void masked_rows(BatchId batch_id, std::vector<MaskedRow>& out) const;
  // Why a req is not running (code, numbers); code none when it is.
  WaitReason explain(const Req& req) const;
  // The newest step's line of the trace, complete once schedule() has returned.
  const StepStats& last_stats() const { return stats_; }
  const PreemptionCounts& preemptions() const { return preemptions_; }
  BlockCounts block_counts(GroupId group = 0) const;
  BlockCounts host_block_counts(GroupId group = 0) const;
  // Blocks that hold nothing and that nobody may touch; for tests, which poison them.
  const std::vector<BlockId>& free_blocks(GroupId group = 0) const;
  const std::vector<BlockId>& free_host_blocks(GroupId group = 0) const;
  double new_token_ratio() const { return ratio_.value(); }

  // Throws InternalError if a block, seat or count is lost or in two hands; names the owner.
  // O(everything); for tests and idle moments.
  void check_integrity() const;

 private:
  // How far ahead of itself a walk over running reqs fetches them: each is elsewhere in memory.
  static constexpr size_t kPrefetch = 8;
  void check_moves() const;
  struct RowRecord {
    Req* req;
    int32_t epoch;
    int32_t kv_end;     // tokens whose KV is written when the row has run
    int32_t out_begin;  // output rows: scores, then at most one sampled or pooled row
    int32_t num_outs;
    int32_t first_score;  // prompt position of the first score row, or a later one: none
    bool samples, pools;
    bool forks = false;  // no row of its own: reads the hidden row of the one before it
  };
  struct Published {
    EntryId entry;  // and what the step has put under it
    ReqId by;
  };
  // A step in flight.
  struct StepRecord {
    BatchId batch_id = 0;
    int32_t num_outs = 0, num_sampled = 0;
    size_t num_rows = 0;
    std::vector<RowRecord> records;  // room for a row of each seat; the first num_rows are rows
    std::span<const RowRecord> rows() const { return {records.data(), num_rows}; }
    RowRecord& last_row() { return records[num_rows - 1]; }
    std::vector<Published> published;  // withdrawn if the step fails
  };
  struct Due {  // a req whose newest block is full
    Req* req;
    int32_t committed;
  };
  struct Ended {  // kept until no step in flight names it and its end was told
    ReqPtr req;
    BatchId after_step;
    int64_t after_events;
  };
  struct ResultView;
  struct Tenant {
    double served = 0;  // tokens over weight
    double weight = 1;
    int32_t running = 0, queued = 0;
    int64_t passed_over = 0;  // in which look at the queue
  };
  struct MoveStore;
  // Transfers that are under way together, between tiers for one req, or a copy on one tier. Blocks
  // at both ends are kept from being handed out until the last ticket is back, and are let go from
  // the tail, so that the prefix cache evicts leaves first.
  struct Move {
    enum class Kind : int8_t { none, out, in, copy } kind = Kind::none;
    ReqId req = -1;
    int64_t id = 0;
    Ticket first = 0;
    int32_t missing = 0;
    MoveStore* store = nullptr;
    size_t back_begin = 0, num_back = 0;  // by ticket
    size_t touched_begin = 0, num_touched = 0;
  };
  // What the moves that one step began keep, until all of them are over: memory that is there
  // before the step is planned.
  struct MoveStore {
    std::vector<uint8_t> back;
    std::vector<std::pair<BlockPool*, BlockId>> touched;
    int32_t num_moves = 0;  // that are not over
  };
  struct Pin {
    int64_t id;
    EntryId root;
    int64_t count;                             // of blocks of the prefix
    std::vector<std::vector<BlockId>> blocks;  // a group; of a window group perhaps fewer
  };

  // schedule(): the memory that a plan may need, then the decisions in order (scheduler.cpp,
  // step.cpp, rows.cpp, admit.cpp, preemption.cpp).
  void reserve_for_plans();
  void prepare(TimeNs now);
  void prepare_moves();
  void decide();
  void end_in_plan(Req& req, FinishReason reason, const char* why);
  void say_why();
  void begin_step(TimeNs now, const BatchBuffer& out);
  void plan_decodes();
  void plan_chunks();
  void admit_urgent();
  static constexpr double kEverybody = std::numeric_limits<double>::infinity();
  void admit_waiting(double before = kEverybody);
  static constexpr double kLate = 1e19;  // past every time: nobody's deadline that can still be met
  double urgency(const Req& req) const;
  void expect_urgent(const Req& newcomer);
  bool unstick();
  int32_t plan_attention(BatchHeader& header);
  bool finish_step();

  void make_way();
  void make_room_for_decodes();
  void survey_running();
  void write_decode_row(Req& req, int32_t row, int32_t token, int32_t out);
  void write_plain_outputs(int32_t begin, int32_t end);
  void write_chunk_row(Req& req, int32_t num_tokens);
  void write_outputs(Req& req, int32_t first_token, int32_t num_tokens);
  int32_t prefill_limit(const Req& req) const;
  int32_t chunk_that_fits(const Req& req, int32_t wanted) const;
  Verdict consider(Req& req);
  double expected_growth(const Req& req, GroupId group) const;
  int32_t match_window(GroupId group) const { return windows_[static_cast<size_t>(group)]; }
  void admit(Req& req, const Admit& admit);
  void refresh_available();

  bool may_be_passed(const Req& req) const;
  bool computed_by_another(const Req& req) const;
  void match_settled(const Req& req);
  int64_t future_peak(const Req& candidate, GroupId group);

  // policies.cpp
  QueueKey key_of(Req& req);
  void weigh_branch(Req& req, int32_t add);
  void enqueue(Req& req);
  void dequeue(Req& req);
  void leave_line(Req& req);
  void refresh_order();
  WaitingQueue::iterator next_candidate(WaitingQueue::iterator after);
  int32_t tenant_of(const Req& req);
  void drop_late();

  // preemption.cpp
  bool steps_aside_before(const Req& a, const Req& b) const;
  Req* choose_victim() const;
  void preempt(Req& req);
  void retract(Req& req);
  void note_preempted(Req& req, PreemptionKind kind);

  // fork.cpp
  bool may_fork(const Req& req) const;
  void attach(Req& sibling, Req& leader);
  void detach(Req& sibling);
  void detach_siblings(Req& leader);
  void fork_siblings(Req& leader, int32_t token);
  bool can_fork(const Req& sibling, const Req& leader) const;
  void fork(Req& sibling, const Req& leader, int32_t token);
  void tell_siblings(const Req& leader, const RowRecord& row, int32_t num_scores);
  void withdraw_forks(BatchId failed);
  void count_siblings(const Req& leader, int32_t sign);
  int32_t partial_blocks(const Req& leader, GroupId group) const;
  static int32_t num_siblings(const Req& req) { return static_cast<int32_t>(req.siblings.size()); }

  // swap.cpp
  bool swap_is_better(const Req& req, int32_t shared);
  int32_t shared_head(const Req& req) const;
  void swap_out(Req& req, int32_t shared);
  void begin_swap_in(Req& req);
  void turn_back(Req& req);
  void resume_arrived();
  void lose_swap(Req& req);
  bool head_is_lost(Req& req);
  void leave_arriving(Req& req);
  void release_host(Req& req);
  bool room_to_hold(int64_t blocks) const;
  std::span<std::pair<BlockPool*, BlockId>> touched_by(const Move& move) const {
    return std::span(move.store->touched).subspan(move.touched_begin, move.num_touched);
  }
  Move& begin_move(Move::Kind kind, const Req& req);
  Transfer transfer(Move& move, GroupId group, Tier from, BlockId source, Tier to,
                    BlockId destination, BatchId after_step);
  void hold_for_move(Move& move, BlockPool& pool, BlockId block);
  Move* move_of(Ticket ticket);
  void take_ticket(Ticket ticket);
  void end_move(Move& move);
  int32_t num_present() const { return num_running_ + static_cast<int32_t>(arriving_.size()); }

  // placement.cpp
  void charge(const Req& req, int32_t num_tokens);
  void take_seat(Req& req);
  void reserve_tables(Req& req, int32_t num_tokens);
  void grown(Req& req, GroupId group);
  void leave_seat(Req& req);
  void grow_tables(Req& req, int32_t num_tokens);
  void release_window(Req& req);
  void release_blocks(Req& req, bool keep_windows = false);
  void set_tail(Req& req);
  BlockId take_block(GroupId group, ReqId owner);
  void change_table(GroupId group, Seat seat, int32_t index, BlockId block);

  // commit.cpp
  const StepEvents& take_back(const ResultView& result, TimeNs now);
  void commit_rows(StepRecord& step, const ResultView& result);
  void commit_row(StepRecord& step, const RowRecord& row, const ResultView& result,
                  int32_t sampled);
  const StepEvents& tell_events();
  void check_result(const StepRecord& step, const ResultView& result);
  void tell_rows(const StepRecord& step, size_t begin, size_t end, std::span<const Token> tokens);
  bool is_stop(const Req& req, Token token) const;
  FinishReason end_of(Req& req, Token token) const;
  void fail_row(Req& req, std::string why);
  void tell_scores(Req& req, const RowRecord& row, int32_t num_scores);
  void append_tokens(Req& req, std::span<const Token> tokens, int32_t kv_end, int32_t out_row);
  void fail_step(StepRecord& step, const std::string& why, bool fatal);
  void finish(Req& req, FinishReason reason, std::string why = {});
  void tell(Req& req, std::span<const Token> tokens, int32_t out_row);
  void bury();

  // publication.cpp
  void publish(Req& req, int32_t num_tokens, BatchId pending);
  void publish_due(BatchId step);
  bool merge_duplicate(Req& req, int32_t index, EntryId entry, BatchId pending);
  void withdraw_step(BatchId failed);
  void withdraw(std::span<const EntryId> roots);
  bool builds_on_marked(const Req& req) const;
  void redo(Req& req);

  // requests.cpp
  void enroll(const ReqPtr& req, TimeNs now, Req* leader = nullptr);
  void check_tokens(const Req& req) const;
  void check_fits(const Req& req, int64_t pinned) const;
  template <typename Job>
  bool each_of(std::string_view rid, Job&& job);
  int64_t blocks_for(GroupId group, int64_t tokens) const;
  int64_t most_blocks(GroupId group, int64_t tokens) const;

  SchedulerConfig config_;
  BatchLimits limits_;
  BatchLayout layout_;
  int32_t num_groups_;
  int32_t block_size_;  // of group 0
  std::vector<BlockPool> pools_;
  std::vector<BlockPool> host_pools_;    // empty: nothing can be swapped
  std::unique_ptr<PrefixCache> prefix_;  // null: prefix caching is off
  std::vector<int32_t> windows_;  // in blocks: what a prefix match needs of each group; 0: all
  bool any_window_ = false;
  NewTokenRatio ratio_;

  std::vector<AttentionPlanner> planners_;  // one a list; none: the executor takes no work list

  std::vector<ReqPtr> reqs_;  // by ReqId
  std::vector<ReqId> free_ids_;
  std::pmr::unsynchronized_pool_resource rid_memory_;  // as of the queue
  std::pmr::unordered_map<std::string_view, Req*> by_rid_{&rid_memory_};
  std::unordered_map<std::string, std::vector<ReqPtr>> children_;  // of reqs with n > 1
  WaitingQueue waiting_;
  std::vector<Req*>
      running_;  // in the order of admission; null where one has left since the last step
  int32_t num_running_ = 0;
  std::vector<Req*> arriving_;  // swapping in: they hold blocks and have a seat reserved
  int32_t num_swapped_ = 0;
  int32_t num_attached_ = 0;              // siblings that wait to fork,
  int32_t reserved_seats_ = 0;            // and the seats kept for those whose leader runs
  std::vector<Transfer> late_transfers_;  // copies on one tier: they go out with the next step
  std::vector<Move> moves_;               // those under way, and spent ones that are used again
  std::vector<std::unique_ptr<MoveStore>> stores_;
  MoveStore* store_ = nullptr;  // of the step that is being planned
  int32_t num_moves_ = 0;
  int64_t last_move_ = 0;
  Ticket next_ticket_ = 1;
  double ns_per_token_ = 25e3, ns_per_byte_ = 1.0 / 25;  // until they are measured
  std::vector<Seat> free_seats_;
  std::vector<BatchId> seat_busy_until_;  // by seat: the last step of who had it last
  std::array<std::vector<Seat>, kMaxOverlapDepth + 1> draining_seats_;
  int32_t num_draining_seats_ = 0;
  int64_t next_seq_ = 0;

  std::array<StepRecord, kMaxOverlapDepth + 1> steps_;  // by batch id
  BatchId next_batch_ = 1, committed_ = 0;
  std::vector<Ended> ended_;
  std::vector<Due> due_;                   // of the rows that are being committed
  std::vector<TableChange> late_changes_;  // made outside schedule(); go out with the next step
  bool low_water_ = false;                 // admission is on hold after a preemption
  PreemptionCounts preemptions_ = {};
  PreemptionReason preempts_for_ = PreemptionReason::blocks;
  Pause pause_ = Pause::no;
  std::vector<Tenant> tenants_;
  std::unordered_map<std::string, int32_t> tenant_indices_;
  bool fair_ = false;
  Req *oldest_ = nullptr, *newest_ = nullptr;  // the line of those that wait, as they came to
  std::set<std::pair<TimeNs, std::pair<int64_t, ReqId>>> expiring_;
  std::vector<int32_t> branch_weights_;  // policy dfs-weight: waiting reqs under an entry
  int64_t urgent_seq_ = -1;              // arrival of the req that running ones have made way for
  BatchId urgent_until_ = 0;             // the step by which urgent reqs are no longer expected,
  double urgent_border_ = 0;             // and the urgency() up to which a req is one
  size_t rerank_at_ = 0;
  int64_t looks_ = 0;  // at the queue; a step may take several, or none be launched
  int64_t num_admissions_ = 0;
  std::vector<Pin> pins_;
  int64_t num_pinned_ = 0, last_pin_ = 0;
  bool batch_open_ = false;  // static batching: the batch is still being filled
  bool fatal_ = false;
  int32_t num_unready_ = 0;  // waiting reqs whose grammar is not there yet

  // The step that is being planned.
  TimeNs now_ = 0;
  Ledger ledger_;
  StepRecord* step_ = nullptr;
  BatchBuffer out_;
  std::vector<Req*> chunks_;  // prompts under way
  std::vector<Req*> passed_, victims_;
  std::vector<ReqId> full_tables_;  // of these a table is as large as its memory
  int32_t ends_left_ = 0;           // reqs that this plan may still end
  bool unsaid_ = false;             // a req has ended whose error is not written yet
  std::vector<std::pair<int32_t, int32_t>> peak_;
  Req* blocked_ = nullptr;  // the first that did not fit
  // Of the running reqs, under the policies `priority` and `deadline`.
  double least_urgent_ = -kEverybody;
  PrefixCache::Match match_;
  struct Cursor {
    int32_t rows = 0, tokens = 0, outs = 0, sampled = 0, table_changes = 0, seat_changes = 0,
            seat_words = 0, transfers = 0;
    bool late = false;  // a sampled row takes a mask
    Transfer* moves;
    int32_t* row_seat;
    int32_t* row_indptr;
    int32_t* row_kv_len;
    int32_t* out_token;
    int32_t* out_seat;
    int32_t* out_kind;
    int32_t* out_target;
    int32_t* out_position;
    Token* token_ids;
    int32_t* positions;
    int32_t* slots;
    TableChange* changes;
    SeatChange* seats;
    int32_t* seat_data;
  } at_;

  EventLog* log_ = nullptr;
  StepEvents events_, told_;
  int64_t events_taken_ = 0;
  StepStats stats_;
  int32_t preempted_unlaunched_ = 0;  // by calls of schedule() that then had nothing to launch
};

}  // namespace stoker
