// Layers of networks for signals on the CPU, forward and backward: filters of single channels, spatial and temporal filters
// followed by a batch norm, ELU and pooling, a batch norm and ELU with means over time, and dropout. It is compiled once per
// instruction-set level; the interface is plain C on raw pointers, which kernels/signal_layers.py calls.
//
// A signal is (channels, windows, times). A channel is processed by one thread from its input to its result, so its values
// stay in the cache between the steps, and no result depends on the number of threads.

#include <cstdint>
#include <cstring>

#include "export.h"
#include "lanes.h"
#include "threads.h"

extern "C" {
// Sizes of one call, mirrored in kernels/signal_layers.py
struct Signals {
  int64_t channels, windows, planes, times;  // the input is (channels, planes, windows, times)
  int64_t outputs, taps, left;               // times of the result of a filter; its taps; zeros before the first sample
  int64_t electrodes, depth;                 // of the first block; `depth` channels share their taps
  int64_t fixed;                             // statistics of the batch norm are given
  float epsilon;                             // of the batch norm
  float kept;                                // factor of kept values in dropout
  int64_t least;                             // least bits of a kept value
  int64_t threads;
  float *scratch;  // vw_signal_scratch floats
};
}

namespace {

constexpr int BLOCK = 8;      // vectors whose sums stay in registers; 8 hide the latency of multiply-add
constexpr int TOGETHER = 4;   // channels of the first block that share what is read of the input

typedef int16_t vs __attribute__((vector_size(2 * VW_LANES)));

template <int N>
struct Number { static constexpr int value = N; };

INLINE int64_t whole(int64_t n) { return (n + W - 1) / W * W; }

// Calls each(position, lanes) for the vectors of a row
template <class Each>
INLINE void over(int64_t n, const Each &each) {
  int64_t t = 0;
  for (; t + W <= n; t += W) each(t, (int64_t)W);
  if (t < n) each(t, n - t);
}

// ---- filters. A padded row starts `left` samples before the signal and has zeros on both sides.

INLINE int64_t padded_length(int64_t n, int64_t n_out, int64_t taps, int64_t left) {
  const int64_t read = whole(n_out) + taps - 1, held = left + n;
  return whole((read > held ? read : held) + W);
}

template <int N>
INLINE void filter_vectors(const float *x, const float *taps, int64_t first, int64_t last, bool add, float *out) {
  vf sums[N];
  for (int i = 0; i < N; ++i) sums[i] = add ? load(out + i * W) : vf{};
  for (int64_t j = first; j < last; ++j) {
    const vf tap = splat(taps[j]);
    for (int i = 0; i < N; ++i) sums[i] += tap * load(x + j + i * W);
  }
  for (int i = 0; i < N; ++i) store(out + i * W, sums[i]);
}

// out[t] = sum of taps[j] * x[t + j] over j, for `n_out` samples, rounded up to whole vectors; n samples of x are not padding
void filter_row(const float *x, int64_t n, const float *taps, int64_t length, int64_t left, int64_t n_out, bool add,
                float *out) {
  int64_t t = 0;
  auto run = [&](auto vectors) {
    constexpr int N = decltype(vectors)::value;
    int64_t first = left - t - (N * W - 1), last = n + left - t;  // other taps meet only zeros
    first = first < 0 ? 0 : first, last = last > length ? length : last;
    filter_vectors<N>(x + t, taps, first, last, add, out + t);
    t += N * W;
  };
  const int64_t end = whole(n_out);
  while (t + BLOCK * W <= end) run(Number<BLOCK>{});
  while (t + 2 * W <= end) run(Number<2>{});
  while (t < end) run(Number<1>{});
}

// sums[j] += g[t] * x[t + j] over t, in lanes; g has zeros from n_out to a whole vector
template <int N>
INLINE void correlate_taps(const float *x, int64_t n, const float *g, int64_t n_out, int64_t left, int64_t j, vf *sums) {
  vf part[N];
  for (int i = 0; i < N; ++i) part[i] = sums[j + i];
  int64_t first = (left - j - N - W) / W * W, last = n + left - j;
  first = first < 0 ? 0 : first, last = last > n_out ? n_out : last;
  for (int64_t t = first; t < last; t += W) {
    const vf each = load(g + t);
    for (int i = 0; i < N; ++i) part[i] += each * load(x + t + j + i);
  }
  for (int i = 0; i < N; ++i) sums[j + i] = part[i];
}

void correlate_row(const float *x, int64_t n, const float *g, int64_t n_out, int64_t length, int64_t left, vf *sums) {
  int64_t j = 0;
  for (; j + BLOCK <= length; j += BLOCK) correlate_taps<BLOCK>(x, n, g, n_out, left, j, sums);
  for (; j < length; ++j) correlate_taps<1>(x, n, g, n_out, left, j, sums);
}

INLINE void flip(const float *taps, int64_t length, float *flipped) {
  for (int64_t j = 0; j < length; ++j) flipped[j] = taps[length - 1 - j];
}

struct Memory {  // floats of one thread, handed out in whole vectors; `used` counts them if there is no memory
  float *start;
  int64_t used = 0;
  float *floats(int64_t n) {
    float *p = start + used;
    used += whole(n);
    return p;
  }
  float *zeros(int64_t n) {
    float *p = floats(n);
    if (start) memset(p, 0, n * sizeof(float));
    return p;
  }
};

void filter_channel(const Signals &s, int64_t channel, const float *x, const float *taps, const float *scale, float *out,
                    Memory memory) {
  const int64_t plane = s.windows * s.times;
  float *padded = memory.zeros(padded_length(s.times, s.outputs, s.taps, s.left));
  float *row = memory.floats(s.outputs);
  for (int64_t b = 0; b < s.windows; ++b) {
    for (int64_t p = 0; p < s.planes; ++p) {
      memcpy(padded + s.left, x + (channel * s.planes + p) * plane + b * s.times, s.times * sizeof(float));
      filter_row(padded, s.times, taps + (channel * s.planes + p) * s.taps, s.taps, s.left, s.outputs, p > 0, row);
    }
    const int64_t number = channel * s.windows + b;
    const float factor = scale ? scale[number] : 1;
    float *result = out + number * s.outputs;
    over(s.outputs, [&](int64_t t, int64_t lanes) { store_first(result + t, load(row + t) * factor, lanes); });
  }
}

void filter_channel_backward(const Signals &s, int64_t channel, const float *x, const float *taps, const float *scale,
                             const float *grad, float *dx, float *dtaps, float *dscale, Memory memory) {
  const int64_t plane = s.windows * s.times, right = s.taps - 1 - s.left;
  float *padded = memory.zeros(padded_length(s.times, s.outputs, s.taps, s.left));
  float *padded_grad = memory.zeros(padded_length(s.outputs, s.times, s.taps, right));
  float *scaled = memory.zeros(s.outputs + W), *row = memory.floats(s.times), *flipped = memory.floats(s.planes * s.taps);
  vf *sums = (vf *)memory.zeros(s.planes * s.taps * W);
  for (int64_t p = 0; p < s.planes; ++p) flip(taps + (channel * s.planes + p) * s.taps, s.taps, flipped + p * s.taps);
  for (int64_t b = 0; b < s.windows; ++b) {
    const int64_t number = channel * s.windows + b;
    const float factor = scale ? scale[number] : 1;
    const float *g = grad + number * s.outputs;
    memcpy(padded_grad + right, g, s.outputs * sizeof(float));
    over(s.outputs, [&](int64_t t, int64_t lanes) { store(scaled + t, load_first(g + t, lanes) * factor); });
    vf of_scale = {};
    for (int64_t p = 0; p < s.planes; ++p) {
      const int64_t start = (channel * s.planes + p) * plane + b * s.times;
      memcpy(padded + s.left, x + start, s.times * sizeof(float));
      correlate_row(padded, s.times, scaled, s.outputs, s.taps, s.left, sums + p * s.taps);
      filter_row(padded_grad, s.outputs, flipped + p * s.taps, s.taps, right, s.times, false, row);
      over(s.times, [&](int64_t t, int64_t lanes) {
        const vf each = load(row + t);
        of_scale += first_lanes(each, lanes) * load_first(x + start + t, lanes);
        store_first(dx + start + t, each * factor, lanes);
      });
    }
    if (dscale) dscale[number] = sum_of_lanes(of_scale);
  }
  for (int64_t j = 0; j < s.planes * s.taps; ++j) dtaps[channel * s.planes * s.taps + j] = sum_of_lanes(sums[j]);
}

// ---- batch norm and ELU

struct Norm {
  float mean, deviation, gain, shift;  // deviation: 1 / sqrt(variance + epsilon)
  Norm(const Signals &s, int64_t c, const float *weight, const float *bias, const float *means, const float *variances) {
    mean = means[c], deviation = 1 / __builtin_sqrtf(variances[c] + s.epsilon);
    gain = weight[c] * deviation, shift = bias[c] - mean * gain;
  }
};

// The slope of ELU at z: exp(min(z, 0)); ELU(z) is max(z, 0) + slope - 1
INLINE vf slope_at(vf z) { return exp2_lanes(at_most(vf{}, z) * LOG2_E); }
INLINE vf elu(vf z) { return at_least(vf{}, z) + (slope_at(z) - 1.0f); }

// Mean and variance of the rows of a channel, which are `step` values apart
void moments(const float *y, int64_t rows, int64_t n, int64_t step, float *mean, float *variance) {
  double sum = 0, squares = 0;
  for (int64_t b = 0; b < rows; ++b) {
    vf part = {};
    over(n, [&](int64_t t, int64_t lanes) { part += load_first(y + b * step + t, lanes); });
    sum += sum_of_lanes(part);
  }
  *mean = (float)(sum / (double)(rows * n));
  for (int64_t b = 0; b < rows; ++b) {
    vf part = {};
    over(n, [&](int64_t t, int64_t lanes) {
      const vf each = first_lanes(load_first(y + b * step + t, lanes) - *mean, lanes);
      part += each * each;
    });
    squares += sum_of_lanes(part);
  }
  *variance = (float)(squares / (double)(rows * n));
}

struct NormGradient {  // sums over a channel of the gradient after the norm, alone and times the normalised value
  double of_bias = 0, of_weight = 0;
  float factor, slope, constant;  // gradient before the norm: factor * g + slope * (y - mean) + constant
  void finish(const Signals &s, const Norm &norm, int64_t count) {
    factor = norm.gain;
    slope = s.fixed ? 0 : (float)(-norm.gain * of_weight / (double)count) * norm.deviation;
    constant = s.fixed ? 0 : (float)(-norm.gain * of_bias / (double)count);
  }
};

// 1 where dropout keeps a value, else 0, times `kept`
INLINE vf kept_lanes(const Signals &s, const int16_t *bits, int64_t lanes) {
  vs each = {};
  if (lanes == W) memcpy(&each, bits, sizeof each);
  else for (int64_t i = 0; i < lanes; ++i) each[i] = bits[i];
  const vi wide = __builtin_convertvector(each, vi);
  return (vf)((vi)splat(s.kept) & (wide >= (int32_t)s.least));
}

void norm_channel(const Signals &s, int64_t c, const float *y, const float *weight, const float *bias, float *mean,
                  float *variance, const int16_t *bits, float *out, float *means, float *kept_means) {
  const float *rows = y + c * s.windows * s.times;
  if (!s.fixed) moments(rows, s.windows, s.times, s.times, mean + c, variance + c);
  const Norm norm(s, c, weight, bias, mean, variance);
  for (int64_t b = 0; b < s.windows; ++b) {
    const int64_t number = c * s.windows + b, start = number * s.times;
    vf sum = {}, kept = {};
    over(s.times, [&](int64_t t, int64_t lanes) {
      const vf each = first_lanes(elu(load_first(y + start + t, lanes) * norm.gain + norm.shift), lanes);
      sum += each;
      if (bits) kept += each * kept_lanes(s, bits + start + t, lanes);
      if (out) store_first(out + start + t, each, lanes);
    });
    means[number] = sum_of_lanes(sum) / (float)s.times;
    if (bits) kept_means[number] = sum_of_lanes(kept) / (float)s.times;
  }
}

void norm_channel_backward(const Signals &s, int64_t c, const float *y, const float *weight, const float *bias,
                           const float *mean, const float *variance, const int16_t *bits, const float *grad,
                           const float *grad_means, const float *grad_kept, float *dy, float *dweight, float *dbias) {
  const Norm norm(s, c, weight, bias, mean, variance);
  NormGradient sums;
  for (int64_t b = 0; b < s.windows; ++b) {
    const int64_t number = c * s.windows + b, start = number * s.times;
    const float of_mean = grad_means[number] / (float)s.times, of_kept = bits ? grad_kept[number] / (float)s.times : 0;
    vf alone = {}, times = {};
    over(s.times, [&](int64_t t, int64_t lanes) {
      const vf value = load_first(y + start + t, lanes);
      vf g = splat(of_mean);
      if (grad) g += load_first(grad + start + t, lanes);
      if (bits) g += of_kept * kept_lanes(s, bits + start + t, lanes);
      g = first_lanes(g * slope_at(value * norm.gain + norm.shift), lanes);
      alone += g, times += g * (value - norm.mean);
      store_first(dy + start + t, g, lanes);
    });
    sums.of_bias += sum_of_lanes(alone), sums.of_weight += sum_of_lanes(times) * norm.deviation;
  }
  sums.finish(s, norm, s.windows * s.times);
  dweight[c] = (float)sums.of_weight, dbias[c] = (float)sums.of_bias;
  const int64_t start = c * s.windows * s.times;
  over(s.windows * s.times, [&](int64_t t, int64_t lanes) {
    const vf value = load_first(y + start + t, lanes) - norm.mean, g = load_first(dy + start + t, lanes);
    store_first(dy + start + t, g * sums.factor + (value * sums.slope + sums.constant), lanes);
  });
}

// ---- the first block: spatial filters, temporal filters, batch norm, ELU, means of pairs of samples

template <int... I>
struct Lanes {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> { typedef Lanes<I...> type; };
typedef Count<W>::type All;

template <int... I>
INLINE vf even_of(vf a, vf b, Lanes<I...>) { return __builtin_shufflevector(a, b, (2 * I)...); }
template <int... I>
INLINE vf odd_of(vf a, vf b, Lanes<I...>) { return __builtin_shufflevector(a, b, (2 * I + 1)...); }
template <int... I>
INLINE vf low_pairs(vf a, vf b, Lanes<I...>) { return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * W)...); }
template <int... I>
INLINE vf high_pairs(vf a, vf b, Lanes<I...>) { return __builtin_shufflevector(a, b, (W / 2 + I / 2 + (I % 2) * W)...); }

// Samples of a row of the input, a multiple of any number of lanes
INLINE int64_t row_length(int64_t times) { return (times + 15) / 16 * 16; }

struct FirstBlock {
  const float *x;        // (windows, electrodes, row_length(times)), zero after the last sample
  const float *spatial;  // (channels, electrodes)
  const float *taps;     // (channels / depth, taps)
  const float *weight, *bias;
  float *mean, *variance;  // (channels,)
};

// rows[c] = sum of spatial[c][e] * x[e] over the electrodes, for C channels
template <int C>
void mix_rows(const Signals &s, const float *x, const float *spatial, float *const *rows) {
  const int64_t step = row_length(s.times);
  auto block = [&](int64_t t, auto vectors) {
    constexpr int N = decltype(vectors)::value;
    vf sums[C][N] = {};
    for (int64_t e = 0; e < s.electrodes; ++e) {
      vf values[N];
      for (int i = 0; i < N; ++i) values[i] = load(x + e * step + t + i * W);
      for (int c = 0; c < C; ++c) {
        const vf factor = splat(spatial[c * s.electrodes + e]);
        for (int i = 0; i < N; ++i) sums[c][i] += factor * values[i];
      }
    }
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < N; ++i) store(rows[c] + t + i * W, sums[c][i]);
  };
  int64_t t = 0;
  for (; t + 2 * W <= step; t += 2 * W) block(t, Number<2>{});
  for (; t < step; t += W) block(t, Number<1>{});
}

// sums[c][e] += rows[c][t] * x[e][t] over t, in lanes; rows have zeros from `times` to a whole vector
template <int C>
void unmix_rows(const Signals &s, const float *x, const float *const *rows, vf *sums) {
  const int64_t step = row_length(s.times);
  auto block = [&](int64_t e, auto vectors) {
    constexpr int N = decltype(vectors)::value;
    vf part[C][N];
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < N; ++i) part[c][i] = sums[c * s.electrodes + e + i];
    for (int64_t t = 0; t < step; t += W) {
      vf values[N];
      for (int i = 0; i < N; ++i) values[i] = load(x + (e + i) * step + t);
      for (int c = 0; c < C; ++c) {
        const vf each = load(rows[c] + t);
        for (int i = 0; i < N; ++i) part[c][i] += each * values[i];
      }
    }
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < N; ++i) sums[c * s.electrodes + e + i] = part[c][i];
  };
  int64_t e = 0;
  for (; e + 2 <= s.electrodes; e += 2) block(e, Number<2>{});
  for (; e < s.electrodes; ++e) block(e, Number<1>{});
}

template <int C>
void first_block_channels(const Signals &s, int64_t first, const FirstBlock &in, float *out, Memory memory) {
  const int64_t step = row_length(s.times), padded = padded_length(step, step, s.taps, s.left), pooled = s.times / 2;
  float *mixed[C], *inside[C], *y[C];
  for (int c = 0; c < C; ++c) mixed[c] = memory.zeros(padded), inside[c] = mixed[c] + s.left;
  for (int c = 0; c < C; ++c) y[c] = memory.floats(s.windows * step);
  for (int64_t b = 0; b < s.windows; ++b) {
    mix_rows<C>(s, in.x + b * s.electrodes * step, in.spatial + first * s.electrodes, inside);
    for (int c = 0; c < C; ++c)
      filter_row(mixed[c], s.times, in.taps + (first + c) / s.depth * s.taps, s.taps, s.left, s.times, false,
                 y[c] + b * step);
  }
  for (int c = 0; c < C; ++c) {
    const int64_t channel = first + c;
    if (!s.fixed) moments(y[c], s.windows, s.times, step, in.mean + channel, in.variance + channel);
    const Norm norm(s, channel, in.weight, in.bias, in.mean, in.variance);
    for (int64_t b = 0; b < s.windows; ++b) {
      const float *row = y[c] + b * step;
      float *result = out + (channel * s.windows + b) * pooled;
      over(pooled, [&](int64_t t, int64_t lanes) {
        const vf a = elu(load(row + 2 * t) * norm.gain + norm.shift);
        const vf next = 2 * t + W < step ? load(row + 2 * t + W) : vf{};
        const vf z = elu(next * norm.gain + norm.shift);
        store_first(result + t, (even_of(a, z, All{}) + odd_of(a, z, All{})) * 0.5f, lanes);
      });
    }
  }
}

template <int C>
void first_block_channels_backward(const Signals &s, int64_t first, const FirstBlock &in, const float *grad,
                                   float *dspatial, float *dtaps, float *dweight, float *dbias, Memory memory) {
  const int64_t step = row_length(s.times), padded = padded_length(step, step, s.taps, s.left), pooled = s.times / 2;
  const int64_t right = s.taps - 1 - s.left;
  float *mixed[C], *inside[C], *y[C], *g[C], *unfiltered[C];
  for (int c = 0; c < C; ++c) mixed[c] = memory.zeros(s.windows * padded), inside[c] = mixed[c] + s.left;
  for (int c = 0; c < C; ++c) y[c] = memory.floats(s.windows * step), g[c] = memory.floats(s.windows * step);
  for (int c = 0; c < C; ++c) unfiltered[c] = memory.floats(step);
  float *padded_grad = memory.zeros(padded_length(s.times, s.times, s.taps, right));
  float *half = memory.zeros(step + W), *flipped = memory.floats(C * s.taps);
  vf *of_taps = (vf *)memory.zeros(C * s.taps * W), *of_spatial = (vf *)memory.zeros(C * s.electrodes * W);
  NormGradient sums[C];
  for (int64_t b = 0; b < s.windows; ++b) {
    float *window[C];
    for (int c = 0; c < C; ++c) window[c] = inside[c] + b * padded;
    mix_rows<C>(s, in.x + b * s.electrodes * step, in.spatial + first * s.electrodes, window);
    for (int c = 0; c < C; ++c) {
      const int64_t channel = first + c;
      const Norm norm(s, channel, in.weight, in.bias, in.mean, in.variance);
      float *row = y[c] + b * step, *each = g[c] + b * step;
      filter_row(mixed[c] + b * padded, s.times, in.taps + channel / s.depth * s.taps, s.taps, s.left, s.times, false, row);
      const float *given = grad + (channel * s.windows + b) * pooled;
      over(pooled, [&](int64_t t, int64_t lanes) {
        const vf value = load_first(given + t, lanes) * 0.5f;
        store(half + 2 * t, low_pairs(value, value, All{}));
        if (2 * t + W < step) store(half + 2 * t + W, high_pairs(value, value, All{}));
      });
      vf alone = {}, times = {};
      over(2 * pooled, [&](int64_t t, int64_t lanes) {
        const vf value = load(row + t);
        const vf slope = first_lanes(load(half + t) * slope_at(value * norm.gain + norm.shift), lanes);
        alone += slope, times += slope * (value - norm.mean);
        store(each + t, slope);
      });
      if (s.times % 2 && 2 * pooled % W == 0) store(each + 2 * pooled, vf{});  // a last sample that no pair contains
      sums[c].of_bias += sum_of_lanes(alone), sums[c].of_weight += sum_of_lanes(times) * norm.deviation;
    }
  }
  for (int c = 0; c < C; ++c) {
    const int64_t channel = first + c;
    sums[c].finish(s, Norm(s, channel, in.weight, in.bias, in.mean, in.variance), s.windows * s.times);
    dweight[channel] = (float)sums[c].of_weight, dbias[channel] = (float)sums[c].of_bias;
    flip(in.taps + channel / s.depth * s.taps, s.taps, flipped + c * s.taps);
  }
  for (int64_t b = 0; b < s.windows; ++b) {
    for (int c = 0; c < C; ++c) {
      const float mean = in.mean[first + c];
      over(s.times, [&](int64_t t, int64_t lanes) {
        const vf value = load(y[c] + b * step + t) - mean, each = load(g[c] + b * step + t);
        const vf before = each * sums[c].factor + (value * sums[c].slope + sums[c].constant);
        store(padded_grad + right + t, first_lanes(before, lanes));
      });
      correlate_row(mixed[c] + b * padded, s.times, padded_grad + right, s.times, s.taps, s.left, of_taps + c * s.taps);
      filter_row(padded_grad, s.times, flipped + c * s.taps, s.taps, right, s.times, false, unfiltered[c]);
      for (int64_t t = s.times; t < step; ++t) unfiltered[c][t] = 0;
    }
    unmix_rows<C>(s, in.x + b * s.electrodes * step, unfiltered, of_spatial);
  }
  for (int64_t j = 0; j < C * s.taps; ++j) dtaps[first * s.taps + j] = sum_of_lanes(of_taps[j]);
  for (int64_t j = 0; j < C * s.electrodes; ++j) dspatial[first * s.electrodes + j] = sum_of_lanes(of_spatial[j]);
}

// ---- dropout, and the samples of even and of odd number apart: (channels, windows, times) to (channels, 2, windows,
// ceil(times / 2)), where the odd samples end with a zero if the number of samples is odd

void split_row(const Signals &s, const float *row, const int16_t *bits, float *even, float *odd) {
  const int64_t half = (s.times + 1) / 2;
  auto read = [&](int64_t t) {
    const int64_t lanes = s.times - t < W ? s.times - t : W;
    if (lanes <= 0) return vf{};
    const vf value = load_first(row + t, lanes);
    return bits ? value * kept_lanes(s, bits + t, lanes) : value;
  };
  over(half, [&](int64_t t, int64_t lanes) {
    const vf a = read(2 * t), b = read(2 * t + W);
    store_first(even + t, even_of(a, b, All{}), lanes);
    store_first(odd + t, odd_of(a, b, All{}), lanes);
  });
}

void join_row(const Signals &s, const float *even, const float *odd, const int16_t *bits, float *row) {
  const int64_t half = (s.times + 1) / 2;
  auto write = [&](int64_t t, vf value) {
    const int64_t lanes = s.times - t < W ? s.times - t : W;
    if (lanes <= 0) return;
    store_first(row + t, bits ? value * kept_lanes(s, bits + t, lanes) : value, lanes);
  };
  over(half, [&](int64_t t, int64_t lanes) {
    const vf a = load_first(even + t, lanes), b = load_first(odd + t, lanes);
    write(2 * t, low_pairs(a, b, All{}));
    write(2 * t + W, high_pairs(a, b, All{}));
  });
}

// Calls work<C>(first) for groups of channels
template <class Work>
void over_groups(const Signals &s, const Work &work) {
  const int64_t groups = (s.channels + TOGETHER - 1) / TOGETHER;
  parallel_for(s.threads, groups, [&](int64_t group, int64_t thread) {
    const int64_t first = group * TOGETHER, left = s.channels - first;
    work(first, left < TOGETHER ? left : TOGETHER, thread);
  });
}

}  // namespace

// Floats of Signals::scratch for one thread
VW_EXPORT int64_t VW_NAME(vw_signal_scratch)(const Signals *s) {
  const int64_t step = row_length(s->times > s->outputs ? s->times : s->outputs);
  const int64_t longest = step + s->taps + 4 * W;
  const int64_t filter = 5 * longest + s->planes * s->taps * (W + 1) + 8 * W;
  const int64_t block = TOGETHER * (s->windows * (longest + 2 * step) + step + s->taps * (W + 1) + s->electrodes * W) +
                        3 * longest + 16 * W;
  return whole(s->electrodes ? block : filter);
}

VW_EXPORT void VW_NAME(vw_signal_filter)(const Signals *s, const float *x, const float *taps, const float *scale,
                                         float *out) {
  const int64_t size = VW_NAME(vw_signal_scratch)(s);
  parallel_for(s->threads, s->channels, [&](int64_t channel, int64_t thread) {
    filter_channel(*s, channel, x, taps, scale, out, Memory{s->scratch + thread * size});
  });
}

VW_EXPORT void VW_NAME(vw_signal_filter_backward)(const Signals *s, const float *x, const float *taps, const float *scale,
                                                  const float *grad, float *dx, float *dtaps, float *dscale) {
  const int64_t size = VW_NAME(vw_signal_scratch)(s);
  parallel_for(s->threads, s->channels, [&](int64_t channel, int64_t thread) {
    filter_channel_backward(*s, channel, x, taps, scale, grad, dx, dtaps, dscale, Memory{s->scratch + thread * size});
  });
}

// Batch norm and ELU of y; `out` and `bits` may be null, and `kept_means` is written if there are bits
VW_EXPORT void VW_NAME(vw_signal_norm)(const Signals *s, const float *y, const float *weight, const float *bias, float *mean,
                                       float *variance, const int16_t *bits, float *out, float *means, float *kept_means) {
  parallel_for(s->threads, s->channels, [&](int64_t channel, int64_t) {
    norm_channel(*s, channel, y, weight, bias, mean, variance, bits, out, means, kept_means);
  });
}

VW_EXPORT void VW_NAME(vw_signal_norm_backward)(const Signals *s, const float *y, const float *weight, const float *bias,
                                                const float *mean, const float *variance, const int16_t *bits,
                                                const float *grad, const float *grad_means, const float *grad_kept,
                                                float *dy, float *dweight, float *dbias) {
  parallel_for(s->threads, s->channels, [&](int64_t channel, int64_t) {
    norm_channel_backward(*s, channel, y, weight, bias, mean, variance, bits, grad, grad_means, grad_kept, dy, dweight,
                          dbias);
  });
}

// x is (windows, electrodes, times rounded up to a multiple of 16); the result is (channels, windows, times / 2)
VW_EXPORT void VW_NAME(vw_signal_block)(const Signals *s, const float *x, const float *spatial, const float *taps,
                                        const float *weight, const float *bias, float *mean, float *variance, float *out) {
  const FirstBlock in{x, spatial, taps, weight, bias, mean, variance};
  const int64_t size = VW_NAME(vw_signal_scratch)(s);
  over_groups(*s, [&](int64_t first, int64_t count, int64_t thread) {
    const Memory memory{s->scratch + thread * size};
    if (count == TOGETHER) return first_block_channels<TOGETHER>(*s, first, in, out, memory);
    for (int64_t c = first; c < first + count; ++c) first_block_channels<1>(*s, c, in, out, memory);
  });
}

// The gradient of the taps is apart for each channel: (channels, taps)
VW_EXPORT void VW_NAME(vw_signal_block_backward)(const Signals *s, const float *x, const float *spatial, const float *taps,
                                                 const float *weight, const float *bias, float *mean, float *variance,
                                                 const float *grad, float *dspatial, float *dtaps, float *dweight,
                                                 float *dbias) {
  const FirstBlock in{x, spatial, taps, weight, bias, mean, variance};
  const int64_t size = VW_NAME(vw_signal_scratch)(s);
  over_groups(*s, [&](int64_t first, int64_t count, int64_t thread) {
    const Memory memory{s->scratch + thread * size};
    if (count == TOGETHER)
      return first_block_channels_backward<TOGETHER>(*s, first, in, grad, dspatial, dtaps, dweight, dbias, memory);
    for (int64_t c = first; c < first + count; ++c)
      first_block_channels_backward<1>(*s, c, in, grad, dspatial, dtaps, dweight, dbias, memory);
  });
}

// `bits` may be null: nothing is dropped
VW_EXPORT void VW_NAME(vw_signal_split)(const Signals *s, const float *x, const int16_t *bits, float *out) {
  const int64_t half = (s->times + 1) / 2, plane = s->windows * half;
  parallel_for(s->threads, s->channels, [&](int64_t channel, int64_t) {
    for (int64_t b = 0; b < s->windows; ++b) {
      const int64_t start = (channel * s->windows + b) * s->times;
      float *even = out + 2 * channel * plane + b * half;
      split_row(*s, x + start, bits ? bits + start : nullptr, even, even + plane);
    }
  });
}

VW_EXPORT void VW_NAME(vw_signal_split_backward)(const Signals *s, const float *grad, const int16_t *bits, float *dx) {
  const int64_t half = (s->times + 1) / 2, plane = s->windows * half;
  parallel_for(s->threads, s->channels, [&](int64_t channel, int64_t) {
    for (int64_t b = 0; b < s->windows; ++b) {
      const int64_t start = (channel * s->windows + b) * s->times;
      const float *even = grad + 2 * channel * plane + b * half;
      join_row(*s, even, even + plane, bits ? bits + start : nullptr, dx + start);
    }
  });
}
