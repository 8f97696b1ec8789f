// One request: what was asked, where it stands, why it waits, and its account.
//
// A Req is made by the caller, given to Scheduler::add and from then on changed by the scheduler
// only, on the loop's thread. The counts that place it:
//
//   tokens          prompt, then outputs committed so far                      ("known" =
//   tokens.size()) known_ahead     known + one for each sampled row in flight computed tokens whose
//   KV is written once every launched step has run committed       tokens whose KV is written by
//   steps already committed      (committed <= computed <= known_ahead)
//
//   a decode row has computed == known_ahead - 1; a prefill chunk has more to do. Both are "a run
//   of query tokens [computed, computed + n)", so chunking, mixed batches, recompute and several
//   tokens a row need no second path.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "sched/per_group.h"
#include "sched/sampling_params.h"

namespace stoker {

enum class ReqState : int8_t {
  created,       // not given to a scheduler yet
  waiting,       // in the waiting queue, never ran
  running,       // holds a seat and KV
  retracted,     // in the waiting queue again: its KV was taken away, its tokens were kept
  swapping_out,  // KV on its way to host memory
  swapped,       // KV in host memory, in the waiting queue
  swapping_in,   // KV on its way back
  finished,
};

enum class FinishReason : int8_t { none, stop, length, abort, error };

// Why a req is not in the step. The numbers say by how much; see WaitReason.
enum class WaitCode : int8_t {
  none,
  queued,        // others are ahead of it in the queue's order
  seats,         // needed 1 seat; free: seats
  token_budget,  // the step's tokens are handed out
  blocks,        // needed, free, evictable: blocks of `group` now
  reserve,  // fits now, but not with what the running reqs are still going to need; needed includes
            // that reserve
  low_water,  // admission pauses after a preemption until enough is free; needed: the mark
  in_flight,  // its own last step is still in flight
  prefix,     // another req computes the same prefix right now; its blocks come soon
  batch,      // static batching: the running batch must end first
  capacity,   // the step's sections (table changes, seat data, output rows) are full
  tenant,     // the tenant's running limit; needed: its limit
  paused,
  host_transfer,  // a copy to or from host memory is under way
  sibling,        // n > 1: forks from its first sibling's prompt when that is computed
  outranked,      // bounded bypass: a req before it has been overtaken often enough
  grammar,        // its grammar is being compiled
};

struct WaitReason {
  WaitCode code = WaitCode::none;
  GroupId group = 0;
  int64_t needed = 0;
  int64_t free = 0;
  int64_t evictable = 0;
  BatchId step = 0;  // when it was found; a req not looked at in the newest step is simply `queued`
};

// What a req cost. Times are on the caller's clock.
struct ReqAccount {
  TimeNs arrival_time = 0;
  TimeNs first_scheduled_time = -1;
  TimeNs first_token_time = -1;
  TimeNs finish_time = -1;
  TimeNs queue_time = 0;  // in the queue, all stays together
  int32_t prefill_steps = 0;
  int32_t decode_steps = 0;
  int32_t retractions = 0;     // its KV was taken away, to be computed again
  int32_t swaps = 0;           // its KV was moved to host memory (or its way back was broken off)
  int32_t swaps_lost = 0;      // swapped, but computed again: what it shared had gone meanwhile
  int64_t swapped_blocks = 0;  // copied, both ways
  int64_t prefill_tokens = 0;  // computed as part of a prompt or a recompute
  int64_t tokens_computed_twice = 0;
  int32_t cached_tokens = 0;     // found in the prefix cache when first admitted
  int64_t recovered_tokens = 0;  // found there after a preemption (not a hit: its own work)
};

inline constexpr int32_t kNoScores = std::numeric_limits<int32_t>::max();  // a position past all

// Output tokens that a req's memory is made for at once; beyond them it grows.
#ifdef STOKER_PLANTED_BUGS
inline constexpr int32_t kReservedOutput = 4;  // tests have short answers
#else
inline constexpr int32_t kReservedOutput = 512;
#endif

struct alignas(64) Req {
  // Hot: what a decode step reads and writes, in one cache line.
  int32_t computed = 0;
  int32_t known_ahead = 0;
  int32_t length_limit = 0;  // the most tokens it may reach
  Seat seat = kNoSeat;
  Token last_token = 0;  // the next decode row's token, or -1 - seat while only the device knows it
  BlockId tail_block = 0;  // block of group 0 that holds position `computed`, if tail_room > 0
  int32_t tail_room = 0;   // positions left in it, `computed` included
  int32_t epoch = 0;       // rows in flight of an older epoch are discarded at commit
  int32_t rows_in_flight = 0;
  int32_t committed = 0;
  int32_t publish_at = 0;  // committed count at which the next block can be published
  int32_t decode_steps = 0;
  BatchId last_step = 0;  // last step that has a row of this req
  ReqId id = -1;
  ReqState state = ReqState::created;
  bool plain = true;      // each row has one output, a sampled token
  bool stops = true;      // a token can end it
  bool answered = false;  // its first token is there

  // Warm: what a commit reads of it, and a step that fills a block, in the next line.
  std::vector<Token> tokens;
  int32_t prompt_len = 0;
  int32_t published = 0;  // blocks [0, published) are in the prefix cache (its own table's blocks)
  PerGroup<std::vector<BlockId>> tables;  // holes left by a window are kNullBlock

  // What every req's way in and out touches, in few lines: a req is not in a cache by then.
  PerGroup<int32_t> window_begins;  // blocks before this were left behind by the group's window
  int32_t prefix_root = -1;
  int32_t own_from = 0;     // blocks from here on it computed itself; what is before was shared
  int64_t arrival_seq = 0;  // total order of arrival
  Req *older = nullptr, *newer = nullptr;  // in the order in which they came to wait
  int64_t admissions_seen = 0;             // by when it came to wait
  TimeNs queued_since = 0;
  uint64_t seed = 0;
  int32_t tenant_index = 0;
  int32_t running_index = -1;    // in the running batch, or among those that swap in
  int32_t highest_computed = 0;  // how far it ever got: below it, work is done twice
  int32_t next_score = 0;        // next prompt position whose logprob is to be asked for,
  int32_t scored = 0;            // and the next one to be told
  int32_t branch = -1;           // policy dfs-weight: the prefix cache entry it hangs under
  int32_t overtaken = 0;         // times that a later req was admitted past it while it did not fit
  bool in_line = false;          // of those that have not waited too long yet
  bool aged = false;
  FinishReason finish_reason = FinishReason::none;
  ReqAccount account;
  WaitReason wait;
  int64_t move = 0;  // the transfers under way for it; 0: none
  // n > 1: who has not forked yet waits with the first of them, whose prompt they share.
  Req* leader = nullptr;       // of one that waits so
  std::vector<Req*> siblings;  // of the first one

  // Given by the caller.
  std::string rid;
  SamplingParams params;
  Token largest_token = -1;  // of the prompt, where its maker has looked (none is negative); or -1
  int32_t grammar = 0;  // its number at the loop's mask source: rows take a mask at launch_sample;
                        // 0: none
  bool grammar_ready = true;  // false: waits for Scheduler::grammar_ready()
  bool pool = false;          // an embedding: its last hidden row is pooled, nothing is sampled
  bool drop_when_late = false;
  TimeNs deadline_ttft = -1;  // after arrival; -1: none
  TimeNs deadline_tpot = -1;
  double priority = 0;    // lower is sooner
  double policy_key = 0;  // for the policy `key`
  double tenant_weight = 1.0;
  std::string tenant;
  std::string cache_salt;

  // What few reqs have.
  std::string parent_rid;                      // of a child of a req with n > 1
  PerGroup<std::vector<BlockId>> host_tables;  // while its KV is (also) in host memory
  int32_t swap_from = 0;      // blocks before this were not copied: another running req held them
  BatchId forked_in = 0;      // the step whose hidden row it began with; 0: computed its own prompt
  int64_t forked_from = -1;   // arrival_seq of whom it forked from
  Token matched_stop = -1;    // the token that ended it, where one did
  std::string error;          // why, where finish_reason is error
  const char* why = nullptr;  // the same, while it is not written yet; see Scheduler::say_why

  // When the next token is due: the first by deadline_ttft, each later one by deadline_tpot after
  // the one before on the average; -1: never.
  TimeNs due() const {
    if (num_outputs() > 0 && deadline_tpot >= 0)
      return account.first_token_time + deadline_tpot * num_outputs();
    return num_outputs() == 0 && deadline_ttft >= 0 ? account.arrival_time + deadline_ttft : -1;
  }
  int32_t known() const { return static_cast<int32_t>(tokens.size()); }
  int32_t num_outputs() const { return known() - prompt_len; }
  bool samples_alone() const { return !pool && params.prompt_logprobs < 0 && grammar == 0; }
  bool is_prefilling() const { return computed < known_ahead - 1; }
  // Whom it outranks under the policy `priority`: who has waited too long outranks everybody, and
  // is not displaced once it runs.
  double rank() const { return aged ? -std::numeric_limits<double>::infinity() : priority; }
  bool holds_seat() const { return seat != kNoSeat; }
  bool swapped_out() const {  // its KV is in host memory alone, or on its way there
    return state == ReqState::swapping_out || state == ReqState::swapped;
  }
  bool finished() const { return state == ReqState::finished; }
};

using ReqPtr = std::shared_ptr<Req>;

// Fetches all of a req that nobody has looked at for long; one line after the other would be waited
// for.
inline void prefetch(const Req& req) {
  const auto* const lines = reinterpret_cast<const char*>(&req);
  for (size_t at = 0; at < sizeof(Req); at += alignof(Req)) __builtin_prefetch(lines + at, 1);
}

const char* name(ReqState state);
const char* name(FinishReason reason);
const char* name(WaitCode code);
// One sentence for people: "waits for 37 blocks; 12 free, 20 evictable".
std::string describe(const WaitReason& reason);

}  // namespace stoker
