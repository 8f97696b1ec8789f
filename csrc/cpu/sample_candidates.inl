// Which tokens of a row survive top-k, top-p and min-p, and drawing one of them, without sorting
// the vocabulary. Included inside a per-ISA anonymous namespace, before sample.inl.
//
// The row is scaled so that the best logit is 0; a ladder of cuts counts (or weighs) how much lies
// above each, the first cut that holds enough gives the candidates, and only the candidates of the
// bucket that holds the border are sorted.

constexpr int64_t kSumBlock = 256;  // floats are summed in runs of this length, runs in double
constexpr int64_t kBuckets = 4096;
constexpr int64_t kCuts = 8;
constexpr float kLargest = 3.4028234663852886e38f;

struct Candidate {
  float y;
  int32_t id;
};

struct Ladder {
  float cut[kCuts];  // tokens with y >= -cut; the last one holds every token that may be drawn
  int64_t count[kCuts];
  double weight[kCuts];
};

// What survives: y above `y`, or equal with an id up to `id`.
struct Border {
  float y;
  int32_t id;
};

// x -> y = x / temperature - best, in place. `weighed`: also the sum of e^y above each cut, else
// only the counts.
template <bool weighed>
[[gnu::noinline]] void climb(float* x, int64_t size, float inverse_temperature, float top,
                             Ladder& ladder) {
  const Vec factor = set1(inverse_temperature), shift = set1(top);
  Vec floor_[kCuts];
  for (int64_t c = 0; c < kCuts; ++c) {
    floor_[c] = set1(-ladder.cut[c]);
    ladder.count[c] = 0;
    ladder.weight[c] = 0;
  }
  for (int64_t base = 0; base < size; base += kSumBlock) {
    const int64_t end = base + kSumBlock < size ? base + kSumBlock : size;
    Vec sums[kCuts];
    for (Vec& s : sums) s = zero();
    for (int64_t i = base; i < end; i += kLanes) {
      const Vec y = sub(mul(load(x + i), factor), shift);
      store(x + i, y);
      if constexpr (weighed) {
        const Vec weight = exp(y);
        for (int64_t c = 0; c < kCuts; ++c) {
          sums[c] = add(sums[c], keep_if_not_below(weight, y, floor_[c]));
        }
      } else {
        // Few tokens are near the top: most vectors end at the widest useful cut.
        for (int64_t c = kCuts - 1; c >= 0; --c) {
          const uint32_t lanes = lanes_not_below(y, floor_[c]);
          if (!lanes) break;
          ladder.count[c] += __builtin_popcount(lanes);
        }
      }
    }
    if constexpr (weighed) {
      for (int64_t c = 0; c < kCuts; ++c) ladder.weight[c] += double(sum(sums[c]));
    }
  }
}

// Tokens with y >= -cut, in order of id.
inline int64_t gather(const float* y, int64_t size, float cut, Candidate* out) {
  const Vec floor_ = set1(-cut);
  int64_t count = 0;
  for (int64_t i = 0; i < size; i += kLanes) {
    uint32_t lanes = lanes_not_below(load(y + i), floor_);
    while (lanes) {
      const int64_t id = i + __builtin_ctz(lanes);
      out[count++] = {y[id], int32_t(id)};
      lanes &= lanes - 1;
    }
  }
  return count;
}

// e^y of each candidate.
inline void weigh(const Candidate* candidates, int64_t count, float* weights) {
  for (int64_t i = 0; i < count; ++i) weights[i] = candidates[i].y;
  for (int64_t i = count; i < (count + kLanes - 1) / kLanes * kLanes; ++i)
    weights[i] = kMinusInfinity;
  for (int64_t i = 0; i < count; i += kLanes) store(weights + i, exp(load(weights + i)));
}

// Best first and, because each pass is stable, lower ids first on a tie. y <= 0, so its bits grow
// as it falls.
[[gnu::noinline]] void sort_candidates(Candidate* candidates, int64_t count, Candidate* spare) {
  if (count <= 32) {
    for (int64_t i = 1; i < count; ++i) {
      const Candidate moving = candidates[i];
      int64_t j = i;
      for (; j > 0 && candidates[j - 1].y < moving.y; --j) candidates[j] = candidates[j - 1];
      candidates[j] = moving;
    }
    return;
  }
  Candidate *from = candidates, *to = spare;
  for (int shift = 0; shift < 32; shift += 8) {
    int64_t place[257] = {};
    const auto digit = [&](const Candidate& c) {
      return bits_of(c.y + 0.0f) << 1 >> 1 >> shift & 255;
    };
    for (int64_t i = 0; i < count; ++i) ++place[digit(from[i]) + 1];
    for (int i = 0; i < 256; ++i) place[i + 1] += place[i];
    for (int64_t i = 0; i < count; ++i) to[place[digit(from[i])]++] = from[i];
    Candidate* swap = from;
    from = to;
    to = swap;
  }
}

// The worst token that survives. At most `most` survive; and those whose betters weigh less than
// `share` of `whole` (share >= 1: no such limit). The best one always survives. Needs 2 * count
// candidates of spare memory.
[[gnu::noinline]] Border find_border(const Candidate* candidates, const float* weights,
                                     int64_t count, int64_t most, float share, double whole,
                                     float cut, Candidate* spare, int32_t* buckets,
                                     double* bucket_weights) {
  const double limit = share < 1.0f ? double(share) * whole : 1e300;
  // Buckets of equal width over [-cut, 0]; wider for the one cut that has no end.
  float lowest = 0;
  for (int64_t i = 0; i < count; ++i) lowest = candidates[i].y < lowest ? candidates[i].y : lowest;
  const float width = -lowest < cut ? -lowest : cut;
  const float per_bucket = width > 1e-30f ? float(kBuckets - 1) / width : 0.0f;
  const auto bucket_of = [&](float y) {
    const int32_t b = int32_t(-y * per_bucket);
    return b < 0 ? 0 : b >= kBuckets ? int32_t(kBuckets - 1) : b;
  };
  for (int64_t b = 0; b < kBuckets; ++b) {
    buckets[b] = 0;
    bucket_weights[b] = 0;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int32_t b = bucket_of(candidates[i].y);
    ++buckets[b];
    bucket_weights[b] += double(weights[i]);
  }
  int64_t before = 0;
  double weight_before = 0;
  int32_t border = int32_t(kBuckets - 1);
  for (int32_t b = 0; b < kBuckets; ++b) {
    if (!buckets[b]) continue;
    border = b;
    if (before + buckets[b] >= most || weight_before + bucket_weights[b] >= limit) break;
    before += buckets[b];
    weight_before += bucket_weights[b];
  }
  // If the loop ran out, `border` is the last bucket in use and counts as passed over; look at it
  // from its start.
  if (before == count) {
    before -= buckets[border];
    weight_before -= bucket_weights[border];
  }
  int64_t inside = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (bucket_of(candidates[i].y) == border) spare[inside++] = candidates[i];
  }
  sort_candidates(spare, inside, spare + inside);
  Border result{spare[0].y, spare[0].id};
  for (int64_t i = 0; i < inside; ++i) {
    if (before > 0 && (before >= most || weight_before >= limit)) break;
    result = {spare[i].y, spare[i].id};
    ++before;
    alignas(64) float lanes[kLanes];
    store(lanes, exp(set1(spare[i].y)));
    weight_before += double(lanes[0]);
  }
  return result;
}

// The smallest id whose cumulative weight exceeds u of the whole, over survivors in order of id.
[[gnu::noinline]] int32_t draw(const Candidate* candidates, const float* weights, int64_t count,
                               Border border, float u) {
  const auto survives = [&](const Candidate& c) {
    return c.y > border.y || (c.y == border.y && c.id <= border.id);
  };
  double whole = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (survives(candidates[i])) whole += double(weights[i]);
  }
  const double target = double(u) * whole;
  double cumulative = 0;
  int32_t last = -1;
  for (int64_t i = 0; i < count; ++i) {
    if (!survives(candidates[i])) continue;
    last = candidates[i].id;
    cumulative += double(weights[i]);
    if (cumulative > target) break;
  }
  return last;
}
