// Counts a batch's rows, contexts and copies.
#include "sim/step_work.h"

#include <algorithm>

namespace stoker::sim {
namespace {

// Positions that the tokens 1..n of a sequence see, all together.
double seen_to(int64_t n, int64_t window) {
  const auto triangle = [](int64_t k) {
    return 0.5 * static_cast<double>(k) * (static_cast<double>(k) + 1);
  };
  if (window <= 0 || n <= window) return triangle(n);
  return triangle(window) + static_cast<double>(n - window) * static_cast<double>(window);
}

}  // namespace

StepWork count_work(const BatchBuffer& batch, int32_t window, double windowed_share) {
  const BatchHeader& header = batch.header();
  StepWork work;
  work.rows = header.num_rows;
  work.tokens = header.num_tokens;
  work.sampled = header.num_outs;
  const int32_t* begin = batch.used<int32_t>(Section::row_indptr).data();
  const int32_t* kv = batch.used<int32_t>(Section::row_kv_len).data();
  int64_t plain = 0;  // decode rows without a window: nearly every row, added up as whole numbers
  for (int32_t r = 0; r < header.num_rows; ++r) {
    const int64_t n = begin[r + 1] - begin[r];
    const int64_t len = kv[r];
    if (n == 1 && window <= 0) {
      plain += len;
      continue;
    }
    const auto both = [&](double full, double windowed) {
      return window > 0 ? full + windowed_share * (windowed - full) : full;
    };
    const double read =
        both(static_cast<double>(len), static_cast<double>(std::min<int64_t>(len, window + n - 1)));
    if (n == 1) {
      work.decode_kv += read;
      continue;
    }
    ++work.chunk_rows;
    work.chunk_tokens += n;
    work.chunk_kv += read;
    work.scores += both(seen_to(len, 0) - seen_to(len - n, 0),
                        seen_to(len, window) - seen_to(len - n, window));
  }
  work.decode_kv += static_cast<double>(plain);
  for (const Transfer& t : batch.used<Transfer>(Section::transfers)) {
    ++(t.source_tier == t.destination_tier ? work.device_copies : work.host_copies);
  }
  return work;
}

}  // namespace stoker::sim
