// Running sums over the tokens of causal attention on the CPU: linear attention with a matrix as its memory, also with a
// softmax of each feature over the tokens, and the softmax of scores that do not depend on the query. Forward only; it is
// compiled once per instruction-set level, and kernels/attention/running.py calls it through plain C on raw pointers.
//
// A lane holds a channel of the values, so each task, some channels of a head, reads all tokens once and in order. The
// values have a multiple of PAD channels. No result depends on the number of threads.

#include <cmath>
#include <cstdint>

#include "export.h"
#include "lanes.h"
#include "threads.h"

extern "C" {
// Sizes of one call, mirrored in kernels/attention/running.py
struct Running {
  int64_t heads, tokens;      // heads over all items
  int64_t features, values;   // of a key; channels of a value (a multiple of PAD)
  int64_t groups;             // query heads that share a key head
  int64_t threads;
};
}

namespace {

constexpr int PAD = 16;
constexpr int64_t MOST_FEATURES = 512;

INLINE float share(float x) { return share(splat(x))[0]; }

}  // namespace

// out_t = q_t S_t with S_t = decay_t S_{t-1} + k_t v_t^T. q and k are (heads, tokens, features), v and out (heads, tokens,
// values); decay (heads, tokens) may be null; memory (heads, features, values) holds S before and after.
VW_EXPORT void VW_NAME(vw_running_memory)(const Running *sizes, const float *q, const float *k, const float *v,
                                          const float *decay, float *memory, float *out) {
  const Running &s = *sizes;
  const int64_t parts = s.values / W;
  parallel_for(s.threads, s.heads * parts, [&](int64_t task, int64_t) {
    const int64_t head = task / parts, channel = task % parts * W;
    float *state = memory + head * s.features * s.values + channel;
    for (int64_t t = head * s.tokens; t < (head + 1) * s.tokens; ++t) {
      const float *key = k + t * s.features, *query = q + t * s.features;
      const vf value = load(v + t * s.values + channel);
      const float factor = decay ? decay[t] : 1.0f;
      vf sums[4] = {};
      int64_t f = 0;
      for (; f + 4 <= s.features; f += 4)
        for (int i = 0; i < 4; ++i) {
          float *place = state + (f + i) * s.values;
          const vf now = load(place) * factor + splat(key[f + i]) * value;
          store(place, now);
          sums[i] += splat(query[f + i]) * now;
        }
      for (; f < s.features; ++f) {
        float *place = state + f * s.values;
        const vf now = load(place) * factor + splat(key[f]) * value;
        store(place, now);
        sums[0] += splat(query[f]) * now;
      }
      store(out + t * s.values + channel, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
  });
}

// out_t = sum over j <= t of e^{s_j} v_j / sum over j <= t of e^{s_j}. s and lse are (heads, tokens), v and out (heads,
// tokens, values); highest and normaliser (heads) and memory (heads, values) hold the state before and after. A key of
// score -inf is left out, whatever its value.
VW_EXPORT void VW_NAME(vw_running_softmax)(const Running *sizes, const float *scores, const float *v, float *highest,
                                           float *normaliser, float *memory, float *out, float *lse) {
  const Running &s = *sizes;
  parallel_for(s.threads, s.heads, [&](int64_t head, int64_t) {
    float top = highest[head], weight = normaliser[head], *sum = memory + head * s.values;
    for (int64_t t = head * s.tokens; t < (head + 1) * s.tokens; ++t) {
      const float score = scores[t], before = top;
      top = score <= before ? before : score;  // NaN stays
      const float fade = top == before || before == -INFINITY ? 1.0f : share((before - top) * LOG2_E);
      const float gain = score == -INFINITY ? 0.0f : share((score - top) * LOG2_E);
      weight = weight * fade + gain;
      const float factor = weight == 0 ? 0.0f : 1.0f / weight;
      for (int64_t c = 0; c < s.values; c += W) {
        vf now = load(sum + c) * fade;
        if (score != -INFINITY) now += splat(gain) * load(v + t * s.values + c);
        store(sum + c, now);
        store(out + t * s.values + c, now * factor);
      }
      lse[t] = weight == 0 ? -INFINITY : top + std::log2(weight) * LN_2;
    }
    highest[head] = top;
    normaliser[head] = weight;
  });
}

// out_t = sum over features f of q_tf context_f with context_f = sum over j <= t of e^{k_jf} v_j / sum of e^{k_jf}. q and out
// are (heads, groups, tokens, features or values), k (heads, tokens, features), v (heads, tokens, values). The state before,
// `highest` and `normaliser` (heads, features), stays as it is, and that after goes to `tops` and `weights`; memory (heads,
// features, values) holds the state before and after. A feature of -inf is left out.
VW_EXPORT void VW_NAME(vw_running_context)(const Running *sizes, const float *q, const float *k, const float *v,
                                           const float *highest, const float *normaliser, float *memory, float *tops,
                                           float *weights, float *out) {
  const Running &s = *sizes;
  const int64_t parts = s.values / W;
  parallel_for(s.threads, s.heads * parts, [&](int64_t task, int64_t) {
    const int64_t head = task / parts, channel = task % parts * W;
    float *state = memory + head * s.features * s.values + channel;
    alignas(64) float top[MOST_FEATURES] = {}, weight[MOST_FEATURES] = {};
    alignas(64) float fade[MOST_FEATURES], gain[MOST_FEATURES], factor[MOST_FEATURES];
    for (int64_t f = 0; f < s.features; ++f) {
      top[f] = highest[head * s.features + f];
      weight[f] = normaliser[head * s.features + f];
    }
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t f = 0; f < s.features; f += W) {
        const vf key = load_first(k + (head * s.tokens + t) * s.features + f, s.features - f), before = load(top + f);
        const vf now = at_least(before, key), none = splat(-INFINITY), level = now == none ? vf{} : now;
        const vf faded = before == now ? splat(1.0f) : share((before - level) * LOG2_E);
        const vf gained = share((key - level) * LOG2_E), sum = load(weight + f) * faded + gained;
        store(top + f, now), store(fade + f, faded), store(gain + f, gained), store(weight + f, sum);
        store(factor + f, sum == vf{} ? vf{} : 1.0f / sum);
      }
      const vf value = load(v + (head * s.tokens + t) * s.values + channel);
      for (int64_t f = 0; f < s.features; ++f) {
        float *place = state + f * s.values;
        store(place, load(place) * fade[f] + splat(gain[f]) * value);
      }
      for (int64_t g = 0; g < s.groups; ++g) {
        const int64_t at = (head * s.groups + g) * s.tokens + t;
        const float *query = q + at * s.features;
        vf sums[4] = {};
        int64_t f = 0;
        for (; f + 4 <= s.features; f += 4)
          for (int i = 0; i < 4; ++i) sums[i] += splat(query[f + i] * factor[f + i]) * load(state + (f + i) * s.values);
        for (; f < s.features; ++f) sums[0] += splat(query[f] * factor[f]) * load(state + f * s.values);
        store(out + at * s.values + channel, (sums[0] + sums[1]) + (sums[2] + sums[3]));
      }
    }
    if (channel) return;
    for (int64_t f = 0; f < s.features; ++f) {
      tops[head * s.features + f] = top[f];
      weights[head * s.features + f] = weight[f];
    }
  });
}
