// What each CPU kernel is told: one plain struct a kernel family, shapes in comments, strides in
// elements.
#pragma once

#include <cstdint>

namespace stoker::cpu {

enum class Type : int32_t { float32, float16, bfloat16, float8_e4m3fn };

// out, x [rows, inner]; rows may be (outer, heads) with two strides. Row r is outer r / heads, head
// r % heads.
struct NormParams {
  void* out;
  const void* x;
  void* residual;      // add_rms_norm only: += x, then normed
  const void* weight;  // [size], the dtype of x
  int64_t rows, heads, size;
  int64_t out_stride, out_head_stride;
  int64_t x_stride, x_head_stride;
  int64_t residual_stride;
  float eps;
  Type type;
};

enum class Activation : int32_t { silu, gelu_tanh };

struct ActivationParams {
  void* out;      // [rows, size]
  const void* x;  // [rows, 2 * size]
  int64_t rows, size;
  int64_t out_stride, x_stride;
  Activation activation;
  Type type;
};

struct RopeParams {
  void* q;        // [tokens, q_heads, head_dim], changed in place
  const void* k;  // [tokens, kv_heads, head_dim]
  const void* v;  // [tokens, kv_heads, head_dim]
  void* k_cache;  // [blocks, kv_heads, block_size, head_dim], first stride free
  void* v_cache;
  const void* q_norm;  // [head_dim] or null
  const void* k_norm;
  const int32_t* positions;  // [tokens]
  const int32_t* slots;      // [tokens], < 0: padding
  const float* cos_sin;      // [max_position, rotary_dim]
  int64_t tokens, q_heads, kv_heads, head_dim, rotary_dim, block_size;
  int64_t q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride;
  int64_t k_block_stride, v_block_stride;
  float eps, k_inverse_scale, v_inverse_scale;
  Type type, cache_type;
};

// KV is walked in tiles of kTile positions and in splits of kSplit, both counted from position 0,
// whatever the batch.
inline constexpr int64_t kTile = 64;
inline constexpr int64_t kSplit = 512;
// (token, head) pairs that share one walk over the KV.
inline constexpr int64_t kMaxRows = 64;

struct AttentionParams {
  void* out;            // [tokens, q_heads, head_dim]
  const void* q;        // [tokens, q_heads, head_dim]
  const void* k_cache;  // [blocks, kv_heads, block_size, head_dim], first stride free
  const void* v_cache;
  const int32_t* block_table;                     // [seats, max_blocks]
  int64_t head_dim, block_size, kv_heads, group;  // group = q heads a KV head
  int64_t q_stride, q_head_stride, out_stride, out_head_stride;
  int64_t k_block_stride, v_block_stride, table_stride;
  float score_scale;  // scale * k_scale
  float soft_cap;     // 0: none
  float v_scale;
  int64_t window;  // 0: none
  Type type, cache_type;
};

// One walk: query tokens [token_begin, token_begin + num_tokens) of one seat, some heads of one KV
// head.
struct AttentionItem {
  int64_t token_begin, num_tokens;
  int64_t first_kv_len;  // what the first of these tokens sees; each next one sees one more
  int32_t seat;
  int32_t kv_head;
  int32_t head_begin, num_heads;   // within the group
  int64_t split_begin, split_end;  // which splits to walk
  // Null: the item is whole, write `out`. Else: for each split, num_tokens * num_heads rows of
  // [max, sum, head_dim values], unmerged.
  float* partials;
};

// Bytes of scratch that one attention walk needs.
int64_t attention_scratch_bytes(int64_t head_dim);

// Features that are written at once.
inline constexpr int64_t kLinearBlock = 64;

struct LinearParams {
  void* out;           // [rows, features]
  const void* x;       // [rows, inner]
  const void* weight;  // [features, inner]
  const void* bias;    // [features] or null
  int64_t rows, inner, features;
  int64_t out_stride, x_stride, weight_stride;
  Type type;  // of all four
  // [rows, laid_out_stride]: x as the kernel wants it, 64-byte aligned; filled by linear_lay_out.
  float* laid_out;
  int64_t laid_out_stride;
};

// The parameters of one seat: the fields of sched's SeatChange, which travel here unchanged.
struct SeatRecord {
  int32_t seat, flags;
  float temperature, top_p, min_p;
  int32_t top_k;
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t num_logprobs;
  uint32_t seed_low, seed_high;
  int32_t min_position, prompt_len, data_begin, num_bias, num_stop, num_context, req,
      num_prompt_logprobs;
};
static_assert(sizeof(SeatRecord) == 80);

// In penalty counts: the token stands in the prompt; the bits below count it in the output.
inline constexpr int32_t kPromptBit = 1 << 30;

struct SampleParams {
  int32_t* out_tokens;  // [rows]
  const void* logits;   // [rows, vocab]
  const SeatRecord* seats;
  const int32_t* bias_ids;  // [seats, bias_width]
  const float* bias_values;
  const int32_t* stop_ids;        // [seats, stop_width]
  const int32_t* penalty_counts;  // [seats, vocab] or null
  const int32_t* row_seat;        // [rows]
  const int32_t* row_position;    // [rows]
  const int32_t* mask;            // [*, mask_stride words] or null
  const int32_t* mask_row;        // [rows]
  float* logprob;                 // [rows] or null: no logprobs
  int32_t* rank;                  // [rows]
  int32_t* top_ids;               // [rows, top_width]
  float* top_logprobs;
  int64_t rows, vocab, logits_stride, bias_width, stop_width, mask_stride, top_width;
  Type type;
};

}  // namespace stoker::cpu
