// Named bugs that a test build can switch on one at a time, to show that the tests catch them. In
// normal builds planted() is constexpr false and leaves no code behind.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace stoker {

enum class Bug : int32_t {
  none,
  late_free,             // a finished req's blocks are never given back
  early_free,            // blocks are handed out again while a step in flight still touches them
  seat_reused_early,     // the same for seats
  stale_table_change,    // a new block's table change is not sent
  slot_off_by_one,       // a decode row writes its KV one slot too far
  wrong_kv_len,          // a decode row sees one position less
  lost_retracted_token,  // a token that was in flight when its req was retracted is dropped
  double_publish,        // a block in the prefix cache is counted as free when its req ends
  ref_leak,              // a prefix match takes its blocks twice
  match_whole_prompt,    // a full prefix hit leaves no token to compute
  skipped_withdrawal,    // blocks of a failed step stay in the prefix cache
  extra_row_kept,        // the row after an EOS is not thrown away
  merge_pending,         // a duplicate is merged into a block whose step may still fail
  wrong_seat_ref,        // token reference names the next seat
  over_budget,           // a prefill chunk takes one token more than the step has
  length_late,           // an end by length is seen one token late
  salt_ignored,          // the prefix cache shares between salts
  half_withdrawal,   // what a failed step began and a later one published stays in the prefix cache
  retracted_misled,  // a row in flight of a retracted req counts though it read a failed step
  failed_row_cached,       // what a req with a failed row computed stays in the prefix cache
  host_block_reused,       // host blocks are handed out again while a req still swaps in from them
  resumed_early,           // a req runs before its copies are back
  partial_not_copied,      // a forked sibling's last block is not copied
  memory_too_late,         // a table's memory grows while a step is decided, not before
  buffer_reused_early,     // the loop writes every step into the same buffer
  result_of_another_step,  // the loop commits the tokens of the step before
  lost_abort,              // an abort is forgotten on its way
  outbox_duplicate,        // a token is handed out twice
  lost_end,                // the end of every seventh req is not handed out
  device_lost_table_change,  // the device misses the last table change of a step
  device_stale_last_token,   // the device keeps the last token of a seat one step too long
  device_stale_seed,         // a seat keeps the seed of the req that sat there before
  count
};

inline constexpr std::array<std::string_view, static_cast<size_t>(Bug::count)> kBugNames = {
    "none",
    "late_free",
    "early_free",
    "seat_reused_early",
    "stale_table_change",
    "slot_off_by_one",
    "wrong_kv_len",
    "lost_retracted_token",
    "double_publish",
    "ref_leak",

    "match_whole_prompt",
    "skipped_withdrawal",
    "extra_row_kept",
    "merge_pending",
    "wrong_seat_ref",
    "over_budget",
    "length_late",
    "salt_ignored",
    "half_withdrawal",
    "retracted_misled",
    "failed_row_cached",
    "host_block_reused",
    "resumed_early",
    "partial_not_copied",
    "memory_too_late",
    "buffer_reused_early",
    "result_of_another_step",
    "lost_abort",
    "outbox_duplicate",
    "lost_end",
    "device_lost_table_change",
    "device_stale_last_token",
    "device_stale_seed"};

#ifdef STOKER_PLANTED_BUGS
// The one that is switched on in this process (test builds only).
inline Bug& planted_bug() {
  static Bug bug = Bug::none;
  return bug;
}
inline bool planted(Bug bug) { return planted_bug() == bug; }
// False: no bug of that name.
inline bool plant(std::string_view name) {
  for (size_t i = 0; i < kBugNames.size(); ++i) {
    if (kBugNames[i] == name) {
      planted_bug() = static_cast<Bug>(i);
      return true;
    }
  }
  return false;
}
#else
inline constexpr bool planted(Bug) { return false; }
#endif

}  // namespace stoker
