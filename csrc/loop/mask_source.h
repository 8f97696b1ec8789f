// Where grammar masks come from: whoever knows what a grammar allows next. The loop asks for the
// masks of a step when every step before it was committed, while the device works on it already.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "loop/outbox.h"

namespace stoker {

// One sampled row whose token a grammar decides upon.
struct MaskRequest {
  ReqKey key;
  int32_t grammar;  // Req::grammar
  int32_t num_outputs;
  std::span<const Token> new_tokens;  // the last of its outputs: those not told before
};

struct MaskFailure {
  size_t row;  // of the requests
  std::string why;
};

class MaskSource {
 public:
  virtual ~MaskSource() = default;
  // One bitmask after another, in the order of the requests: bit i % 32 of word i / 32 allows token
  // i. Valid until the next call. Reqs that cannot go on are named in `failed`; their masks are not
  // looked at. Called by the loop's thread.
  virtual std::span<const int32_t> fill(std::span<const MaskRequest> requests,
                                        std::vector<MaskFailure>& failed) = 0;
  // A req with this grammar has ended. Called once for each that was added, by the loop's thread.
  virtual void forget(ReqKey key, int32_t grammar) = 0;
};

}  // namespace stoker
