// Softmax attention on the CPU between blocks of queries and blocks of keys that are given as lists; forward only.
// It is compiled once per instruction-set level; the interface is plain C on raw pointers, which
// kernels/attention/blocks.py calls.
//
// Keys are packed: each block is transposed to [channel][key], with the number of keys rounded up to PAD, so that a lane
// holds a key while scores are computed. While values are summed, a lane holds a channel. QUERIES queries share each
// loaded vector. Scores are in units of log 2. No result depends on the number of threads.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "export.h"
#include "lanes.h"
#include "threads.h"

extern "C" {
// Sizes of one call, mirrored in kernels/attention/blocks.py
struct Attention {
  int64_t heads, shared;      // heads of queries, over all items; query heads that share a key head
  int64_t queries, keys;      // tokens
  int64_t channels, values;   // channels of a key, and of a value (a multiple of PAD)
  int64_t block, padded;      // keys of a block, and that number rounded up to a multiple of PAD
  int64_t blocks;             // of keys
  int64_t items_bias;         // query heads that share a row of `bias`
  int64_t causal, start;      // whether query i sees only the keys j <= i + start
  int64_t chosen;             // blocks that each query chose
  float scale;
  const float *q, *k, *v;     // (heads, queries, channels), packed keys, (key heads, keys, values)
  const float *bias;          // (rows, blocks, padded), 0 or -inf; null if every key of every block is visible
  int64_t threads;
};
}

namespace {

constexpr int PAD = 16;
constexpr int QUERIES = W == 16 ? 4 : 2;  // with four vectors of scores each, they fill the registers
constexpr int TILE = 64;                  // keys whose scores are held at once, and queries of a task

template <int S, size_t... I>
INLINE vf rotated(vf x, std::index_sequence<I...>) {
  return __builtin_shufflevector(x, x, (I ^ S)...);
}

// Every lane of the result is the largest lane of x
INLINE vf largest(vf x) {
  const auto lanes = std::make_index_sequence<W>();
#if VW_LANES >= 16
  x = at_least(rotated<8>(x, lanes), x);
#endif
#if VW_LANES >= 8
  x = at_least(rotated<4>(x, lanes), x);
#endif
  x = at_least(rotated<2>(x, lanes), x);
  return at_least(rotated<1>(x, lanes), x);
}

INLINE float total(vf x) {
  float sum = 0;
  for (int i = 0; i < W; ++i) sum += x[i];
  return sum;
}

INLINE vf iota() {
  vf x = {};
  for (int i = 0; i < W; ++i) x[i] = (float)i;
  return x;
}

// The running softmax of QUERIES queries
struct Rows {
  const float *q[QUERIES];
  float *sum[QUERIES];      // weighted sum of values
  float highest[QUERIES];   // largest score so far, in units of log 2
  vf weight[QUERIES];       // sum of weights, in lanes
  int64_t last[QUERIES];    // number of keys of the block that are visible
};

// scores[i][..] of N vectors of keys
template <int N>
INLINE void score(const Attention &a, const Rows &rows, const float *k, float (*scores)[TILE], int64_t at, float scale) {
  vf sums[QUERIES][N] = {};
  for (int64_t d = 0; d < a.channels; ++d) {
    vf key[N];
    for (int n = 0; n < N; ++n) key[n] = load(k + d * a.padded + n * W);
    for (int i = 0; i < QUERIES; ++i) {
      const vf query = splat(rows.q[i][d]);
      for (int n = 0; n < N; ++n) sums[i][n] += query * key[n];
    }
  }
  for (int i = 0; i < QUERIES; ++i)
    for (int n = 0; n < N; ++n) store(scores[i] + at + n * W, sums[i][n] * scale);
}

INLINE void score_all(const Attention &a, const Rows &rows, const float *k, float (*scores)[TILE], int64_t width, float scale) {
  int64_t at = 0;
  for (; at + 4 * W <= width; at += 4 * W) score<4>(a, rows, k + at, scores, at, scale);
  for (; at < width; at += W) score<1>(a, rows, k + at, scores, at, scale);
}

// Adds the weighted values of `count` keys to N vectors of channels of each sum, which is first scaled by `fade`
template <int N>
INLINE void add_values(const Attention &a, const Rows &rows, const float *v, float (*weights)[TILE], int64_t count,
                       const float *fade, int64_t channel) {
  vf sums[QUERIES][N];
  for (int i = 0; i < QUERIES; ++i)
    for (int n = 0; n < N; ++n) sums[i][n] = load(rows.sum[i] + channel + n * W) * fade[i];
  for (int64_t j = 0; j < count; ++j) {
    vf value[N];
    for (int n = 0; n < N; ++n) value[n] = load(v + j * a.values + channel + n * W);
    for (int i = 0; i < QUERIES; ++i) {
      const vf weight = splat(weights[i][j]);
      for (int n = 0; n < N; ++n) sums[i][n] += weight * value[n];
    }
  }
  for (int i = 0; i < QUERIES; ++i)
    for (int n = 0; n < N; ++n) store(rows.sum[i] + channel + n * W, sums[i][n]);
}

// Adds the packed keys `k` with the values `v` to the running softmax; `bias` may be null
void add_keys(const Attention &a, Rows &rows, const float *k, const float *v, const float *bias) {
  int64_t filled = 0;
  for (int i = 0; i < QUERIES; ++i) filled = rows.last[i] > filled ? rows.last[i] : filled;
  alignas(64) float scores[QUERIES][TILE];
  float fade[QUERIES];
  for (int64_t from = 0; from < filled; from += TILE) {
    const int64_t count = filled - from < TILE ? filled - from : TILE;
    const int64_t width = (count + W - 1) / W * W;
    score_all(a, rows, k + from, scores, width, a.scale * LOG2_E);
    for (int i = 0; i < QUERIES; ++i) {
      const bool cut = rows.last[i] - from < width;
      vf high = splat(rows.highest[i]);
      for (int64_t n = 0; n < width; n += W) {
        vf s = load(scores[i] + n);
        if (bias) s += load(bias + from + n);
        if (cut) s = iota() < (float)(rows.last[i] - from - n) ? s : splat(-INFINITY);
        if (bias || cut) store(scores[i] + n, s);
        high = at_least(high, s);
      }
      high = largest(high);
      const float before = rows.highest[i], now = high[0];
      const float level = now == -INFINITY ? 0.0f : now;
      fade[i] = before == now ? 1.0f : share(splat(before - level))[0];
      rows.highest[i] = now;
      vf weight = rows.weight[i] * fade[i];
      for (int64_t n = 0; n < width; n += W) {
        const vf p = share(load(scores[i] + n) - level);
        store(scores[i] + n, p);
        weight += p;
      }
      rows.weight[i] = weight;
    }
    int64_t channel = 0;
    constexpr int N = W == 16 ? 2 : 4;
    for (; channel + N * W <= a.values; channel += N * W)
      add_values<N>(a, rows, v + from * a.values, scores, count, fade, channel);
    for (; channel < a.values; channel += W) add_values<1>(a, rows, v + from * a.values, scores, count, fade, channel);
  }
}

// Adds one block of keys to the running softmax
void add_block(const Attention &a, Rows &rows, int64_t key_head, int64_t block, const float *bias) {
  add_keys(a, rows, a.k + (key_head * a.blocks + block) * a.channels * a.padded,
           a.v + (key_head * a.keys + block * a.block) * a.values, bias);
}

// Divides the sums by the weights; 0 for a query without a key
INLINE void finish(const Attention &a, const Rows &rows, int i, float *out, float *lse) {
  const float weight = total(rows.weight[i]), factor = weight == 0 ? 0.0f : 1.0f / weight;
  for (int64_t c = 0; c < a.values; c += W) store(out + c, load(rows.sum[i] + c) * factor);
  if (lse) *lse = weight == 0 ? -INFINITY : (rows.highest[i] + std::log2(weight)) * LN_2;
}

INLINE const float *bias_of(const Attention &a, int64_t head, int64_t block) {
  return a.bias ? a.bias + (head / a.items_bias * a.blocks + block) * a.padded : nullptr;
}

INLINE int64_t filled(const Attention &a, int64_t block) {
  const int64_t left = a.keys - block * a.block;
  return left < a.block ? left : a.block;
}

// Whether a key of score s is chosen before one of score t; NaN is chosen before all numbers, so that it is not lost
INLINE bool precedes(float s, float t) { return t == t && !(s <= t); }

constexpr int64_t MOST_VALUES = 256;  // channels of a value, for which the sums of a tile lie on the stack

// Up to TILE keys of one head that are gathered from anywhere
struct Gathered {
  alignas(64) float k[MOST_VALUES * TILE], v[TILE * MOST_VALUES], bias[TILE];
  bool hides;

  void read(const Attention &a, int64_t key_head, const int64_t *index, int64_t count) {
    hides = false;
    for (int64_t j = 0; j < TILE; ++j) {
      const bool real = j < count && index[j] >= 0;
      bias[j] = real || j >= count ? 0.0f : -INFINITY;
      hides |= j < count && !real;
      if (!real) {
        for (int64_t d = 0; d < a.channels; ++d) k[d * TILE + j] = 0;
        std::memset(v + j * a.values, 0, sizeof(float) * a.values);
        continue;
      }
      const float *key = a.k + (key_head * a.keys + index[j]) * a.channels;
      for (int64_t d = 0; d < a.channels; ++d) k[d * TILE + j] = key[d];
      std::memcpy(v + j * a.values, a.v + (key_head * a.keys + index[j]) * a.values, sizeof(float) * a.values);
    }
  }
};

}  // namespace

// Transposes each block of keys (heads, keys, channels) to (heads, blocks, channels, padded), filled up with zeros
VW_EXPORT void VW_NAME(vw_attention_pack)(const Attention *sizes, const float *keys, float *packed) {
  const Attention &a = *sizes;
  parallel_for(a.threads, a.heads * a.blocks, [&](int64_t task, int64_t) {
    const int64_t head = task / a.blocks, block = task % a.blocks, count = filled(a, block);
    const float *from = keys + (head * a.keys + block * a.block) * a.channels;
    float *to = packed + task * a.channels * a.padded;
    for (int64_t d = 0; d < a.channels; ++d) {
      for (int64_t j = 0; j < count; ++j) to[d * a.padded + j] = from[j * a.channels + d];
      for (int64_t j = count; j < a.padded; ++j) to[d * a.padded + j] = 0;
    }
  });
}

// Attention of each block of queries to the key blocks list[first[r] ... first[r + 1]) of its position r; query i of all
// is at position i + start. out is (heads, queries, values), lse (heads, queries) or null.
VW_EXPORT void VW_NAME(vw_attention_lists)(const Attention *sizes, const int32_t *first, const int32_t *list, float *out,
                                           float *lse) {
  const Attention &a = *sizes;
  const int64_t offset = a.start % a.block, origin = a.start / a.block;
  const int64_t rows_of_blocks = (offset + a.queries + a.block - 1) / a.block, parts = (a.block + TILE - 1) / TILE;
  parallel_for(a.threads, a.heads * rows_of_blocks * parts, [&](int64_t task, int64_t) {
    const int64_t head = task / (rows_of_blocks * parts), r = task / parts % rows_of_blocks, part = task % parts;
    int64_t begin = r * a.block + part * TILE - offset, end = begin + TILE;
    if (end > (r + 1) * a.block - offset) end = (r + 1) * a.block - offset;
    if (begin < 0) begin = 0;
    if (end > a.queries) end = a.queries;
    if (begin >= end) return;
    alignas(64) float sums[(TILE + 1) * MOST_VALUES];  // the last is for the queries that fill up the last group
    Rows groups[TILE / QUERIES];
    const int64_t count = (end - begin + QUERIES - 1) / QUERIES;
    for (int64_t g = 0; g < count; ++g)
      for (int i = 0; i < QUERIES; ++i) {
        const int64_t query = begin + g * QUERIES + i;
        const bool real = query < end;
        groups[g].q[i] = a.q + (head * a.queries + (real ? query : begin)) * a.channels;
        groups[g].sum[i] = sums + (real ? query - begin : TILE) * a.values;
        groups[g].highest[i] = -INFINITY;
        groups[g].weight[i] = vf{};
      }
    std::memset(sums, 0, sizeof(float) * (TILE + 1) * a.values);
    for (int64_t n = first[r]; n < first[r + 1]; ++n) {
      const int64_t block = list[n], whole = filled(a, block);
      const bool own = a.causal && block == origin + r;
      for (int64_t g = 0; g < count; ++g) {
        for (int i = 0; i < QUERIES; ++i) {
          const int64_t seen = begin + g * QUERIES + i + a.start - block * a.block + 1;
          groups[g].last[i] = own && seen < whole ? seen : whole;
        }
        add_block(a, groups[g], head / a.shared, block, bias_of(a, head, block));
      }
    }
    for (int64_t query = begin; query < end; ++query) {
      const int64_t at = head * a.queries + query, row = query - begin;
      finish(a, groups[row / QUERIES], row % QUERIES, out + at * a.values, lse ? lse + at : nullptr);
    }
  });
}

// Attention of rows of queries to keys that are gathered for each row. rows (a.blocks, a.block) holds the queries of a row,
// -1 for none; index (heads / a.items_bias, a.blocks, a.chosen) the keys, -1 for a hidden one. If a.causal, query i of a row
// sees all but the last a.block keys, and of these the first i + 1. a.k is not packed. out and lse (or null) as above.
VW_EXPORT void VW_NAME(vw_attention_gathered)(const Attention *sizes, const int64_t *rows, const int64_t *index, float *out,
                                              float *lse) {
  Attention a = *sizes;
  a.padded = TILE;
  const int64_t parts = (a.block + TILE - 1) / TILE;
  parallel_for(a.threads, a.heads * a.blocks * parts, [&](int64_t task, int64_t) {
    const int64_t head = task / (a.blocks * parts), r = task / parts % a.blocks, begin = task % parts * TILE;
    const int64_t end = begin + TILE < a.block ? begin + TILE : a.block;
    const int64_t *query = rows + r * a.block, *keys = index + (head / a.items_bias * a.blocks + r) * a.chosen;
    alignas(64) float sums[(TILE + 1) * MOST_VALUES];
    std::memset(sums, 0, sizeof(float) * (TILE + 1) * a.values);
    Rows groups[TILE / QUERIES];
    const int64_t count = (end - begin + QUERIES - 1) / QUERIES;
    for (int64_t i = 0; i < count * QUERIES; ++i) {
      Rows &group = groups[i / QUERIES];
      const bool real = begin + i < end && query[begin + i] >= 0;
      group.q[i % QUERIES] = a.q + (head * a.queries + (real ? query[begin + i] : 0)) * a.channels;
      group.sum[i % QUERIES] = sums + (real ? i : TILE) * a.values;
      group.highest[i % QUERIES] = -INFINITY;
      group.weight[i % QUERIES] = vf{};
    }
    Gathered tile;
    const int64_t seen_by_first = a.causal ? a.chosen - a.block + 1 : a.chosen;
    for (int64_t from = 0; from < a.chosen; from += TILE) {
      const int64_t width = a.chosen - from < TILE ? a.chosen - from : TILE;
      if (a.causal && seen_by_first + end - 1 <= from) break;
      tile.read(a, head / a.shared, keys + from, width);
      for (int64_t g = 0; g < count; ++g) {
        for (int i = 0; i < QUERIES; ++i) {
          const int64_t seen = seen_by_first + (a.causal ? begin + g * QUERIES + i : 0) - from;
          groups[g].last[i] = seen < 0 ? 0 : seen < width ? seen : width;
        }
        add_keys(a, groups[g], tile.k, tile.v, tile.hides ? tile.bias : nullptr);
      }
    }
    for (int64_t i = 0; i < end - begin; ++i) {
      if (query[begin + i] < 0) continue;
      const int64_t at = head * a.queries + query[begin + i];
      finish(a, groups[i / QUERIES], i % QUERIES, out + at * a.values, lse ? lse + at : nullptr);
    }
  });
}

// Attention of each query within each of the blocks that it chose, (heads, queries, chosen); out is (heads, queries,
// chosen, values). `order` (heads, queries * chosen) and `first` (heads, blocks + 1) are for the sorted pairs.
VW_EXPORT void VW_NAME(vw_attention_chosen)(const Attention *sizes, const int64_t *chosen, int32_t *order, int32_t *first,
                                            float *out) {
  const Attention &a = *sizes;
  const int64_t pairs = a.queries * a.chosen;
  parallel_for(a.threads, a.heads, [&](int64_t head, int64_t) {  // counting sort by block
    int32_t *begin = first + head * (a.blocks + 1);
    const int64_t *block = chosen + head * pairs;
    std::memset(begin, 0, sizeof(int32_t) * (a.blocks + 1));
    for (int64_t p = 0; p < pairs; ++p) ++begin[block[p] + 1];
    for (int64_t b = 0; b < a.blocks; ++b) begin[b + 1] += begin[b];
    for (int64_t p = 0; p < pairs; ++p) order[head * pairs + begin[block[p]]++] = (int32_t)p;
    for (int64_t b = a.blocks; b > 0; --b) begin[b] = begin[b - 1];
    begin[0] = 0;
  });
  parallel_for(a.threads, a.heads * a.blocks, [&](int64_t task, int64_t) {
    const int64_t head = task / a.blocks, block = task % a.blocks;
    const int32_t *range = first + head * (a.blocks + 1) + block;
    const float *bias = bias_of(a, head, block);
    alignas(64) float sums[QUERIES * MOST_VALUES];
    for (int64_t p = range[0]; p < range[1]; p += QUERIES) {
      Rows rows;
      int64_t pair[QUERIES];
      for (int i = 0; i < QUERIES; ++i) {
        pair[i] = order[head * pairs + (p + i < range[1] ? p + i : p)];
        rows.q[i] = a.q + (head * a.queries + pair[i] / a.chosen) * a.channels;
        rows.sum[i] = sums + i * a.values;
        rows.highest[i] = -INFINITY;
        rows.weight[i] = vf{};
        rows.last[i] = filled(a, block);
      }
      std::memset(sums, 0, sizeof(float) * QUERIES * a.values);
      add_block(a, rows, head / a.shared, block, bias);
      for (int i = 0; i < QUERIES && p + i < range[1]; ++i)
        finish(a, rows, i, out + (head * pairs + pair[i]) * a.values, nullptr);
    }
  });
}

// The `chosen` best of all keys of each query by score + bias, the best first; of equal ones, the first. The keys are one
// packed block of a.block keys; if causal, query i sees the first (i + start) / step of them. kept holds the scores.
VW_EXPORT void VW_NAME(vw_attention_best)(const Attention *sizes, int64_t step, int64_t *best, float *kept) {
  const Attention &a = *sizes;
  const int64_t tiles = (a.queries + TILE - 1) / TILE;
  parallel_for(a.threads, a.heads * tiles, [&](int64_t task, int64_t) {
    const int64_t head = task / tiles, begin = task % tiles * TILE;
    const int64_t end = begin + TILE < a.queries ? begin + TILE : a.queries;
    const float *k = a.k + head / a.shared * a.channels * a.padded, *bias = bias_of(a, head, 0);
    alignas(64) float scores[QUERIES][TILE];
    for (int64_t query = begin; query < end; query += QUERIES) {
      Rows rows;
      for (int i = 0; i < QUERIES; ++i) {
        const int64_t real = query + i < end ? query + i : query;
        rows.q[i] = a.q + (head * a.queries + real) * a.channels;
        float *values = kept + (head * a.queries + real) * a.chosen;
        int64_t *places = best + (head * a.queries + real) * a.chosen;
        for (int64_t n = 0; n < a.chosen; ++n) values[n] = -INFINITY, places[n] = 0;
      }
      const int64_t most = a.causal ? (query + QUERIES - 1 + a.start) / step : a.block;
      const int64_t wanted = most < a.chosen ? a.chosen : most, used = wanted < a.block ? wanted : a.block;
      for (int64_t from = 0; from < used; from += TILE) {
        const int64_t count = used - from < TILE ? used - from : TILE;
        score_all(a, rows, k + from, scores, (count + W - 1) / W * W, a.scale);
        for (int i = 0; i < QUERIES && query + i < end; ++i) {
          float *values = kept + (head * a.queries + query + i) * a.chosen;
          int64_t *places = best + (head * a.queries + query + i) * a.chosen;
          const int64_t seen = a.causal ? (query + i + a.start) / step - from : count;
          for (int64_t j = 0; j < count; ++j) {
            float s = bias ? scores[i][j] + bias[from + j] : scores[i][j];
            if (j >= seen || s == -INFINITY) s = -3.4e38f;  // a hidden key is chosen after all others
            if (!precedes(s, values[a.chosen - 1])) continue;
            int64_t n = a.chosen - 1;
            for (; n > 0 && precedes(s, values[n - 1]); --n) values[n] = values[n - 1], places[n] = places[n - 1];
            values[n] = s, places[n] = from + j;
          }
        }
      }
      for (int i = 0; i < QUERIES && query + i < end; ++i)
        for (int64_t n = 0; n < a.chosen; ++n) {
          float &value = kept[(head * a.queries + query + i) * a.chosen + n];
          if (value <= -3.4e38f) value = -INFINITY;
        }
    }
  });
}

// The softmax over the scores of the chosen blocks, (heads, queries, chosen), and the log-sum-exp of the own block,
// (heads, queries) or null, applied to the outputs within these blocks; lse is that of the scores.
VW_EXPORT void VW_NAME(vw_attention_merge)(const Attention *sizes, const float *scores, const float *reached,
                                           const float *own_lse, const float *own, float *out, float *lse) {
  const Attention &a = *sizes;
  parallel_for(a.threads, a.heads * ((a.queries + TILE - 1) / TILE), [&](int64_t task, int64_t) {
    const int64_t tiles = (a.queries + TILE - 1) / TILE, head = task / tiles, begin = task % tiles * TILE;
    const int64_t end = begin + TILE < a.queries ? begin + TILE : a.queries;
    for (int64_t at = head * a.queries + begin; at < head * a.queries + end; ++at) {
      const float *s = scores + at * a.chosen;
      float highest = own_lse ? own_lse[at] : -INFINITY, sum = 0;
      for (int64_t n = 0; n < a.chosen; ++n) highest = s[n] <= highest ? highest : s[n];  // NaN stays
      const float level = highest == -INFINITY ? 0.0f : highest;
      for (int64_t c = 0; c < a.values; c += W) store(out + at * a.values + c, vf{});
      for (int64_t n = own_lse ? -1 : 0; n < a.chosen; ++n) {
        const float weight = share(splat(((n < 0 ? own_lse[at] : s[n]) - level) * LOG2_E))[0];
        sum += weight;
        const float *from = n < 0 ? own + at * a.values : reached + (at * a.chosen + n) * a.values;
        for (int64_t c = 0; c < a.values; c += W) {
          float *to = out + at * a.values + c;
          store(to, load(to) + weight * load(from + c));
        }
      }
      const float factor = sum == 0 ? 0.0f : 1.0f / sum;
      for (int64_t c = 0; c < a.values; c += W) store(out + at * a.values + c, load(out + at * a.values + c) * factor);
      lse[at] = sum == 0 ? -INFINITY : level + std::log(sum);
    }
  });
}
