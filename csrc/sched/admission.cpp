// The learning estimate of how much of their declared output the running reqs will produce.
#include "sched/admission.h"

#include <algorithm>

namespace stoker {
namespace {

// SGLang's constants: start at 0.7 of the declared output, fall to 14% of that over 600 quiet
// steps.
constexpr double kInitialRatio = 0.7;
constexpr double kLeastShare = 0.14;
constexpr double kDecaySteps = 600;
constexpr double kHeadroomTokens = 20;  // a survivor of a preemption is good for this many more

constexpr double kFading = 0.98;  // how much of the past each end leaves
constexpr int32_t kFewEnds = 8;   // before so many ended, declarations are believed
constexpr double kLeastWorth = 0.01;

}  // namespace

NewTokenRatio::NewTokenRatio(double conservativeness)
    : initial_(std::min(kInitialRatio * conservativeness, 1.0)),
      least_(initial_ * kLeastShare),
      decay_((initial_ - least_) / kDecaySteps),
      value_(initial_) {}

void NewTokenRatio::observe(double produced, double declared) {
  produced_ = kFading * produced_ + produced;
  declared_ = kFading * declared_ + declared;
  ++observed_;
}

// The part of what reqs declare that they really produce.
double NewTokenRatio::share() const {
  return observed_ < kFewEnds ? 1.0 : std::clamp(produced_ / declared_, kLeastWorth, 1.0);
}

void NewTokenRatio::decay() { value_ = std::max(least_, value_ - decay_); }

void NewTokenRatio::preempted(double generated, double declared, int32_t survivors) {
  const double seen = (generated + kHeadroomTokens * survivors) / (declared + 1);
  value_ = std::max(value_, std::min(1.0, seen / share()));
}

}  // namespace stoker
