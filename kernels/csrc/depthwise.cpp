// Depthwise convolution of channel-last maps on the CPU, of odd size and any dilation, with zeros beyond the border.
// It is compiled once per instruction-set level; the interface is plain C on raw pointers, which kernels/depthwise.py calls.
//
// A map is (batch, D, H, W, channels), weights are (taps, channels): a lane holds a channel, so neither maps nor products
// are transposed. TILE voxels of a row share each loaded weight. No result depends on the number of threads.

#include <cstdint>

#include "export.h"
#include "lanes.h"
#include "threads.h"

extern "C" {
// Sizes of one call, mirrored in kernels/depthwise.py
struct Depthwise {
  int64_t batch, size[3], channels;
  int64_t kernel[3], dilation[3];
  int64_t threads;
};
}

namespace {

constexpr int TILE = 8;
constexpr float ZEROS[W] = {};

struct Row {  // of voxels; `map` is the item of the batch
  int64_t item, d, h;
  Row(const Depthwise &s, int64_t number)
      : item(number / (s.size[0] * s.size[1])), d(number / s.size[1] % s.size[0]), h(number % s.size[1]) {}
};

INLINE int64_t item_length(const Depthwise &s) { return s.size[0] * s.size[1] * s.size[2] * s.channels; }

// Distance from an output voxel to the input voxel of a tap, along an axis
INLINE int64_t reach(const Depthwise &s, int axis, int64_t tap) {
  return (tap - s.kernel[axis] / 2) * s.dilation[axis];
}

template <bool WHOLE>
INLINE vf read(const float *p, int64_t lanes) {
  return WHOLE ? load(p) : load_first(p, lanes);
}

// Adds a line of K taps to the sums of T voxels from voxel w; `voxels` is a row of the input
template <int T, int K, bool WHOLE>
INLINE void add_line(const Depthwise &s, const float *voxels, const float *taps, int64_t w, int64_t lanes, vf *sums) {
  const int64_t n = s.size[2], step = s.dilation[2];
  if (step == 1) {  // neighbouring taps share what they read
    const int64_t first = w - K / 2;
    const bool whole = first >= 0 && first + T + K - 1 <= n;
    vf x[T + K - 1];
    for (int i = 0; i < T + K - 1; ++i) {
      const bool inside = whole || (first + i >= 0 && first + i < n);
      x[i] = read<WHOLE>(inside ? voxels + (first + i) * s.channels : ZEROS, lanes);
    }
    for (int k = 0; k < K; ++k) {
      const vf tap = read<WHOLE>(taps + k * s.channels, lanes);
      for (int i = 0; i < T; ++i) sums[i] += tap * x[i + k];
    }
    return;
  }
  for (int k = 0; k < K; ++k) {
    const int64_t first = w + (k - K / 2) * step;
    const vf tap = read<WHOLE>(taps + k * s.channels, lanes);
    if (first >= 0 && first + T <= n) {
      for (int i = 0; i < T; ++i) sums[i] += tap * read<WHOLE>(voxels + (first + i) * s.channels, lanes);
    } else if (first + T > 0 && first < n) {
      for (int i = 0; i < T; ++i) {
        const bool inside = first + i >= 0 && first + i < n;
        sums[i] += tap * read<WHOLE>(inside ? voxels + (first + i) * s.channels : ZEROS, lanes);
      }
    }
  }
}

// Requests the voxels that the same T voxels of the next row will be the first to read, which halves the time of large maps
template <int T>
INLINE void prefetch_for_next_row(const Depthwise &s, const float *item, const Row &row, int64_t w) {
  const int64_t h = row.h + reach(s, 1, s.kernel[1] - 1) + 1;
  if (h >= s.size[1]) return;
  for (int64_t kd = 0; kd < s.kernel[0]; ++kd) {
    const int64_t d = row.d + reach(s, 0, kd);
    if (d < 0 || d >= s.size[0]) continue;
    const float *voxels = item + ((d * s.size[1] + h) * s.size[2] + w) * s.channels;
    for (int i = 0; i < T; ++i) __builtin_prefetch(voxels + i * s.channels, 0, 2);
  }
}

// The result of T voxels of a row from voxel w, for the `lanes` channels at `item`, `weight`, `bias` and `out`
template <int T, int K, bool WHOLE>
void convolve_tile(const Depthwise &s, const float *item, const float *weight, const float *bias, float *out,
                   const Row &row, int64_t w, int64_t lanes) {
  prefetch_for_next_row<T>(s, item, row, w);
  vf sums[T];
  for (int i = 0; i < T; ++i) sums[i] = bias ? read<WHOLE>(bias, lanes) : vf{};
  for (int64_t kd = 0; kd < s.kernel[0]; ++kd) {
    const int64_t d = row.d + reach(s, 0, kd);
    if (d < 0 || d >= s.size[0]) continue;
    for (int64_t kh = 0; kh < s.kernel[1]; ++kh) {
      const int64_t h = row.h + reach(s, 1, kh);
      if (h < 0 || h >= s.size[1]) continue;
      add_line<T, K, WHOLE>(s, item + (d * s.size[1] + h) * s.size[2] * s.channels,
                            weight + (kd * s.kernel[1] + kh) * K * s.channels, w, lanes, sums);
    }
  }
  for (int i = 0; i < T; ++i) {
    float *p = out + i * s.channels;
    WHOLE ? store(p, sums[i]) : store_first(p, sums[i], lanes);
  }
}

// All channels of T voxels of a row from voxel w
template <int T, int K>
void convolve_voxels(const Depthwise &s, const float *item, const float *weight, const float *bias, float *out,
                     const Row &row, int64_t w) {
  out += w * s.channels;
  int64_t c = 0;
  for (; c + W <= s.channels; c += W)
    convolve_tile<T, K, true>(s, item + c, weight + c, bias ? bias + c : nullptr, out + c, row, w, W);
  if (c < s.channels)
    convolve_tile<T, K, false>(s, item + c, weight + c, bias ? bias + c : nullptr, out + c, row, w, s.channels - c);
}

template <int K>
void convolve(const Depthwise &s, const float *x, const float *weight, const float *bias, float *out) {
  parallel_for(s.threads, s.batch * s.size[0] * s.size[1], [&](int64_t number, int64_t) {
    const Row row(s, number);
    const float *item = x + row.item * item_length(s);
    float *to = out + number * s.size[2] * s.channels;
    int64_t w = 0;
    for (; w + TILE <= s.size[2]; w += TILE) convolve_voxels<TILE, K>(s, item, weight, bias, to, row, w);
    for (; w + 2 <= s.size[2]; w += 2) convolve_voxels<2, K>(s, item, weight, bias, to, row, w);
    if (w < s.size[2]) convolve_voxels<1, K>(s, item, weight, bias, to, row, w);
  });
}

// The sums over a row of the products of the gradient and of the inputs of K taps
template <int K, bool WHOLE>
INLINE void correlate_row(const Depthwise &s, const float *inputs, const float *gradients, vf *sums, int64_t lanes) {
  vf row[K] = {};
  const int64_t n = s.size[2], edge = K / 2 * s.dilation[2] < n ? K / 2 * s.dilation[2] : n;
  for (int64_t w = 0; w < n; ++w) {
    const vf gradient = read<WHOLE>(gradients + w * s.channels, lanes);
    if (w >= edge && w < n - edge) {
      for (int k = 0; k < K; ++k)
        row[k] += gradient * read<WHOLE>(inputs + (w + (k - K / 2) * s.dilation[2]) * s.channels, lanes);
    } else {
      for (int k = 0; k < K; ++k) {
        const int64_t at = w + (k - K / 2) * s.dilation[2];
        row[k] += gradient * read<WHOLE>(at >= 0 && at < n ? inputs + at * s.channels : ZEROS, lanes);
      }
    }
  }
  for (int k = 0; k < K; ++k) sums[k] += row[k];
}

// The derivatives of the K weights of a line of taps, for `lanes` channels
template <int K, bool WHOLE>
void correlate_line(const Depthwise &s, const float *x, const float *gradient, float *out, int64_t kd, int64_t kh,
                    int64_t lanes) {
  const int64_t shift_d = reach(s, 0, kd), shift_h = reach(s, 1, kh), line = s.size[2] * s.channels;
  vf total[K] = {};
  for (int64_t item = 0; item < s.batch; ++item)
    for (int64_t d = 0; d < s.size[0]; ++d) {
      if (d + shift_d < 0 || d + shift_d >= s.size[0]) continue;
      vf plane[K] = {};  // sums of sums lose less to rounding
      for (int64_t h = 0; h < s.size[1]; ++h) {
        if (h + shift_h < 0 || h + shift_h >= s.size[1]) continue;
        const int64_t start = item * item_length(s);
        correlate_row<K, WHOLE>(s, x + start + ((d + shift_d) * s.size[1] + h + shift_h) * line,
                                gradient + start + (d * s.size[1] + h) * line, plane, lanes);
      }
      for (int k = 0; k < K; ++k) total[k] += plane[k];
    }
  for (int k = 0; k < K; ++k) {
    float *p = out + k * s.channels;
    WHOLE ? store(p, total[k]) : store_first(p, total[k], lanes);
  }
}

template <int K>
void correlate(const Depthwise &s, const float *x, const float *gradient, float *out) {
  const int64_t blocks = (s.channels + W - 1) / W, lines = s.kernel[0] * s.kernel[1];
  parallel_for(s.threads, blocks * lines, [&](int64_t task, int64_t) {
    const int64_t c = task / lines * W, line = task % lines, kd = line / s.kernel[1], kh = line % s.kernel[1];
    const int64_t lanes = s.channels - c;
    float *to = out + line * K * s.channels + c;
    if (lanes >= W)
      correlate_line<K, true>(s, x + c, gradient + c, to, kd, kh, W);
    else
      correlate_line<K, false>(s, x + c, gradient + c, to, kd, kh, lanes);
  });
}

}  // namespace

// out[n] = bias + sum of weight[tap] * x[n + reach of the tap]; `bias` may be null. The last size of the kernel is 1, 3, 5
// or 7
VW_EXPORT void VW_NAME(vw_depthwise)(const Depthwise *sizes, const float *x, const float *weight, const float *bias,
                                     float *out) {
  switch (sizes->kernel[2]) {
    case 1: return convolve<1>(*sizes, x, weight, bias, out);
    case 3: return convolve<3>(*sizes, x, weight, bias, out);
    case 5: return convolve<5>(*sizes, x, weight, bias, out);
    default: return convolve<7>(*sizes, x, weight, bias, out);
  }
}

// The derivative of the weights: out[tap] = sum over n of gradient[n] * x[n + reach of the tap]; sizes as above
VW_EXPORT void VW_NAME(vw_depthwise_weights)(const Depthwise *sizes, const float *x, const float *gradient, float *out) {
  switch (sizes->kernel[2]) {
    case 1: return correlate<1>(*sizes, x, gradient, out);
    case 3: return correlate<3>(*sizes, x, gradient, out);
    case 5: return correlate<5>(*sizes, x, gradient, out);
    default: return correlate<7>(*sizes, x, gradient, out);
  }
}
