// The layers around the selective scan of a residual block, for channel-last maps (batch, height, width, channels) without
// gradients: norms, linear layers, convolutions of 3 x 3 pixels, gates and the MLP. It is compiled once per instruction-set
// level; the interface is plain C on raw pointers, which kernels/pixel_layers.py calls.
//
// PIXELS pixels go through all layers between two scans in the cache. Weights are packed into panels for products.h. No
// result depends on the number of threads.

#include <cstdint>
#include <cstring>

#include "export.h"
#include "lanes.h"
#include "products.h"
#include "threads.h"

extern "C" {
// Sizes of one call, mirrored in kernels/pixel_layers.py
struct Pixels {
  int64_t batch, height, width;                 // of the map
  int64_t channels, inner, hidden, projected;   // of features; of the scan; of the MLP; of what is projected for the scan
  int64_t directions;
  float epsilon;  // of the norms
  int64_t threads;
  float *scratch;  // vw_pixel_scratch floats
};
}

namespace {

constexpr int BAND = 8;     // rows of the map in a task of the convolution
constexpr int PIXELS = 48;  // a multiple of the rows of a tile of products.h; 24 and 96 measured alike

INLINE int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }  // whole panels for any number of lanes
INLINE int64_t count_of(const Pixels &s) { return s.batch * s.height * s.width; }

struct Memory {
  float *next;
  float *floats(int64_t n) {
    float *p = next;
    next += padded(n);
    return p;
  }
  // A vector with zeros up to a whole panel; zeros for null
  float *vector(const float *from, int64_t n) {
    float *p = floats(n);
    memset(p, 0, padded(n) * sizeof(float));
    if (from) memcpy(p, from, n * sizeof(float));
    return p;
  }
  // A weight (outputs, inputs) as panels [panel][input][COLUMNS]
  float *panels(const float *weight, int64_t outputs, int64_t inputs) {
    float *packed = floats(padded(outputs) * inputs);
    for (int64_t first = 0; first < padded(outputs); first += COLUMNS)
      for (int j = 0; j < COLUMNS; ++j) {
        const int64_t n = first + j;
        float *to = packed + first * inputs + j;
        for (int64_t k = 0; k < inputs; ++k) to[k * COLUMNS] = n < outputs ? weight[n * inputs + k] : 0;
      }
    return packed;
  }
};

template <class Each>
INLINE void over(int64_t n, const Each &each) {
  int64_t c = 0;
  for (; c + W <= n; c += W) each(c, (int64_t)W);
  if (c < n) each(c, n - c);
}

// Calls use(pixel, column, low, high) for products of the rows with a weight; `rows` are padded(inputs) apart
template <class Use>
INLINE void multiply_all(const float *rows, int64_t count, const float *panels, int64_t inputs, int64_t outputs,
                         const Use &use) {
  const int64_t step = padded(inputs);
  for (int64_t column = 0; column < outputs; column += COLUMNS)
    for (int64_t first = 0; first < count; first += ROWS) {
      const int64_t some = count - first < ROWS ? count - first : ROWS;
      const Rows some_rows{{rows + first * step}, 1, step, 1, inputs};
      multiply_rows(some, some_rows, panels + column * inputs,
                    [&](int64_t i, vf low, vf high) { use(first + i, column, low, high); });
    }
}

INLINE void store_both(float *p, vf low, vf high, int64_t lanes) {
  store_first(p, low, lanes);
  if (lanes > W) store_first(p + W, high, lanes - W);
}

// Layer norm of n values; `weight` and `bias` are padded with zeros
INLINE void normalise(const float *x, int64_t n, const float *weight, const float *bias, float epsilon, float *out) {
  vf sum = {}, squares = {};
  over(n, [&](int64_t c, int64_t lanes) { sum += load_first(x + c, lanes); });
  const float mean = sum_of_lanes(sum) / (float)n;
  over(n, [&](int64_t c, int64_t lanes) {
    const vf each = first_lanes(load_first(x + c, lanes) - mean, lanes);
    squares += each * each;
  });
  const float factor = 1 / __builtin_sqrtf(sum_of_lanes(squares) / (float)n + epsilon);
  over(n, [&](int64_t c, int64_t lanes) {
    store(out + c, (load_first(x + c, lanes) - mean) * factor * load(weight + c) + load(bias + c));
  });
}

INLINE vf silu(vf x) { return x / (1.0f + exp2_lanes(x * -LOG2_E)); }

// erf, error below 3e-7: a rational function of x on [-4, 4] (Eigen)
INLINE vf erf_lanes(vf x) {
  x = at_most(splat(4.0f), at_least(splat(-4.0f), x));
  const vf q = x * x;
  vf p = q * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * q - 2.10102402082508e-06f;
  p = p * q - 5.69250639462346e-05f;
  p = p * q - 7.34990630326855e-04f;
  p = p * q - 2.95459980854025e-03f;
  p = p * q - 1.60960333262415e-02f;
  vf r = q * -1.45660718464996e-05f - 2.13374055278905e-04f;
  r = r * q - 1.68282697438203e-03f;
  r = r * q - 7.37332916720468e-03f;
  r = r * q - 1.42647390514189e-02f;
  return x * p / r;
}

INLINE vf gelu(vf x) { return 0.5f * x * (1.0f + erf_lanes(x * 0.707106781f)); }

// Calls work(first pixel, pixels, memory of the thread) for blocks of pixels
template <class Work>
void over_pixels(const Pixels &s, float *memory, int64_t per_thread, const Work &work) {
  const int64_t pixels = count_of(s);
  parallel_for(s.threads, (pixels + PIXELS - 1) / PIXELS, [&](int64_t number, int64_t thread) {
    const int64_t first = number * PIXELS, left = pixels - first;
    work(first, left < PIXELS ? left : (int64_t)PIXELS, Memory{memory + thread * per_thread});
  });
}

INLINE int64_t largest(const Pixels &s) {
  int64_t most = s.channels > s.inner ? s.channels : s.inner;
  return padded(most > s.hidden ? most : s.hidden);
}

INLINE int64_t per_thread(const Pixels &s) { return 4 * PIXELS * largest(s); }

}  // namespace

// Floats of Pixels::scratch
VW_EXPORT int64_t VW_NAME(vw_pixel_scratch)(const Pixels *s) {
  const int64_t c = padded(s->channels), d = padded(s->inner), h = padded(s->hidden), p = padded(s->projected);
  const int64_t weights = 2 * c * d + 2 * c * h + d * p + d * c;
  return weights + 16 * (c + d + h) + 12 * d + s->threads * per_thread(*s) + 64;
}

// result = norm(features), (pixels, channels)
VW_EXPORT void VW_NAME(vw_pixel_norm)(const Pixels *s, const float *features, const float *weight, const float *bias,
                                      float *result) {
  const int64_t channels = s->channels, step = padded(channels);
  Memory shared{s->scratch};
  const float *gain = shared.vector(weight, channels), *shift = shared.vector(bias, channels);
  over_pixels(*s, shared.next, per_thread(*s), [&](int64_t first, int64_t count, Memory memory) {
    float *row = memory.floats(step);
    for (int64_t i = first; i < first + count; ++i) {
      normalise(features + i * channels, channels, gain, shift, s->epsilon, row);
      memcpy(result + i * channels, row, channels * sizeof(float));
    }
  });
}

// content = weight norm(features), (pixels, inner)
VW_EXPORT void VW_NAME(vw_pixel_enter)(const Pixels *s, const float *features, const float *norm_weight,
                                       const float *norm_bias, const float *weight, float *content) {
  const int64_t channels = s->channels, inner = s->inner, step = padded(channels);
  Memory shared{s->scratch};
  const float *gain = shared.vector(norm_weight, channels), *shift = shared.vector(norm_bias, channels);
  const float *panels = shared.panels(weight, inner, channels);
  over_pixels(*s, shared.next, per_thread(*s), [&](int64_t first, int64_t count, Memory memory) {
    float *rows = memory.floats(PIXELS * step);
    for (int64_t i = 0; i < count; ++i)
      normalise(features + (first + i) * channels, channels, gain, shift, s->epsilon, rows + i * step);
    multiply_all(rows, count, panels, channels, inner, [&](int64_t i, int64_t column, vf low, vf high) {
      store_both(content + (first + i) * inner + column, low, high, inner - column);
    });
  });
}

// mixed = silu(depthwise 3 x 3 convolution of content + bias), (pixels, inner), and weight mixed, (pixels, projected); the taps
// are (9, inner)
VW_EXPORT void VW_NAME(vw_pixel_convolve)(const Pixels *s, const float *content, const float *taps, const float *bias,
                                          const float *weight, float *mixed, float *projected) {
  const int64_t inner = s->inner, step = padded(inner);
  Memory shared{s->scratch};
  const float *zeros = shared.vector(nullptr, inner), *start = shared.vector(bias, inner);
  const float *factors[9];
  for (int j = 0; j < 9; ++j) factors[j] = shared.vector(taps + j * inner, inner);
  const float *panels = shared.panels(weight, s->projected, inner);
  over_pixels(*s, shared.next, per_thread(*s), [&](int64_t first, int64_t count, Memory memory) {
    float *rows = memory.floats(PIXELS * step);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t pixel = first + i, x = pixel % s->width, y = pixel / s->width % s->height;
      const float *near[9];
      for (int j = 0; j < 9; ++j) {
        const int64_t dy = j / 3 - 1, dx = j % 3 - 1;
        const bool inside = y + dy >= 0 && y + dy < s->height && x + dx >= 0 && x + dx < s->width;
        near[j] = inside ? content + (pixel + dy * s->width + dx) * inner : zeros;
      }
      float *row = rows + i * step, *out = mixed + pixel * inner;
      over(inner, [&](int64_t c, int64_t lanes) {
        vf sum = load(start + c);
        for (int j = 0; j < 9; ++j) sum += load_first(near[j] + c, lanes) * load(factors[j] + c);
        sum = silu(sum);
        store(row + c, sum);
        store_first(out + c, sum, lanes);
      });
    }
    multiply_all(rows, count, panels, inner, s->projected, [&](int64_t i, int64_t column, vf low, vf high) {
      store_both(projected + (first + i) * s->projected + column, low, high, s->projected - column);
    });
  });
}

extern "C" {
// Parameters of the layers after the scan, mirrored in kernels/pixel_layers.py
struct Leaving {
  const float *norm_weight, *norm_bias, *gate;            // of the norm before the scan, (channels,), and (inner, channels)
  const float *scanned_weight, *scanned_bias, *out;       // of the norm after the scan, (inner,), and (channels, inner)
  const float *skip;                                      // (channels,)
  const float *mlp_weight, *mlp_bias;                     // of the norm before the MLP, (channels,)
  const float *fc1, *fc1_bias, *fc2, *fc2_bias, *skip2;   // (hidden, channels), (hidden,), (channels, hidden), (channels,) twice
};
}

// The rest of the block, from its input, the scan (pixels, directions, inner) and the gates (batch, directions, inner)
VW_EXPORT void VW_NAME(vw_pixel_leave)(const Pixels *s, const Leaving *p, const float *features, const float *scanned,
                                       const float *gates, float *result) {
  const int64_t channels = s->channels, inner = s->inner, hidden = s->hidden, directions = s->directions;
  const int64_t c_step = padded(channels), d_step = padded(inner), h_step = padded(hidden), map = s->height * s->width;
  Memory shared{s->scratch};
  const float *gain1 = shared.vector(p->norm_weight, channels), *shift1 = shared.vector(p->norm_bias, channels);
  const float *gain2 = shared.vector(p->scanned_weight, inner), *shift2 = shared.vector(p->scanned_bias, inner);
  const float *gain3 = shared.vector(p->mlp_weight, channels), *shift3 = shared.vector(p->mlp_bias, channels);
  const float *skip = shared.vector(p->skip, channels), *skip2 = shared.vector(p->skip2, channels);
  const float *bias1 = shared.vector(p->fc1_bias, hidden), *bias2 = shared.vector(p->fc2_bias, channels);
  const float *gate = shared.panels(p->gate, inner, channels), *out = shared.panels(p->out, channels, inner);
  const float *fc1 = shared.panels(p->fc1, hidden, channels), *fc2 = shared.panels(p->fc2, channels, hidden);
  over_pixels(*s, shared.next, per_thread(*s), [&](int64_t first, int64_t count, Memory memory) {
    float *normed = memory.floats(PIXELS * c_step), *mixed = memory.floats(PIXELS * d_step);
    float *between = memory.floats(PIXELS * c_step), *wide = memory.floats(PIXELS * h_step);
    const float *given = features + first * channels;
    for (int64_t i = 0; i < count; ++i)
      normalise(given + i * channels, channels, gain1, shift1, s->epsilon, normed + i * c_step);
    multiply_all(normed, count, gate, channels, inner, [&](int64_t i, int64_t column, vf low, vf high) {
      store(mixed + i * d_step + column, silu(low)), store(mixed + i * d_step + column + W, silu(high));
    });
    for (int64_t i = 0; i < count; ++i) {
      const float *from = scanned + (first + i) * directions * inner, *factor = gates + (first + i) / map * directions * inner;
      float *sums = wide, *row = mixed + i * d_step, *gated = wide + d_step;
      over(inner, [&](int64_t c, int64_t lanes) {
        vf sum = {};
        for (int64_t k = 0; k < directions; ++k)
          sum += load_first(from + k * inner + c, lanes) * load_first(factor + k * inner + c, lanes);
        store(sums + c, sum);
      });
      normalise(sums, inner, gain2, shift2, s->epsilon, gated);
      over(inner, [&](int64_t c, int64_t) { store(row + c, load(gated + c) * load(row + c)); });
    }
    multiply_all(mixed, count, out, inner, channels, [&](int64_t i, int64_t column, vf low, vf high) {
      const float *x = given + i * channels + column;
      float *to = between + i * c_step + column;
      const int64_t lanes = channels - column;
      store(to, low + load_first(x, lanes) * load(skip + column));
      if (lanes > W) store(to + W, high + load_first(x + W, lanes - W) * load(skip + column + W));
    });
    for (int64_t i = 0; i < count; ++i)
      normalise(between + i * c_step, channels, gain3, shift3, s->epsilon, normed + i * c_step);
    multiply_all(normed, count, fc1, channels, hidden, [&](int64_t i, int64_t column, vf low, vf high) {
      float *to = wide + i * h_step + column;
      store(to, gelu(low + load(bias1 + column))), store(to + W, gelu(high + load(bias1 + column + W)));
    });
    multiply_all(wide, count, fc2, hidden, channels, [&](int64_t i, int64_t column, vf low, vf high) {
      const float *x = between + i * c_step + column;
      low += load(bias2 + column) + load(x) * load(skip2 + column);
      const int64_t lanes = channels - column;
      if (lanes > W) high += load(bias2 + column + W) + load(x + W) * load(skip2 + column + W);
      store_both(result + (first + i) * channels + column, low, high, lanes);
    });
  });
}

INLINE int64_t line_of(const Pixels &s) { return padded((s.width + 2) * s.channels); }

// Floats of Pixels::scratch for vw_pixel_filter
VW_EXPORT int64_t VW_NAME(vw_filter_scratch)(const Pixels *s) {
  return padded(s->inner) * (9 * s->channels + 1) + s->threads * 3 * line_of(*s);
}

// result = 3 x 3 convolution of the features, with zeros around the map, + bias + added, (pixels, inner); the weight is
// (inner, 9, channels), and bias and added may be null
VW_EXPORT void VW_NAME(vw_pixel_filter)(const Pixels *s, const float *features, const float *weight, const float *bias,
                                        const float *added, float *result) {
  const int64_t channels = s->channels, inner = s->inner, width = s->width, height = s->height, line = line_of(*s);
  const int64_t bands = (height + BAND - 1) / BAND;
  Memory shared{s->scratch};
  const float *start = shared.vector(bias, inner), *panels = shared.panels(weight, inner, 9 * channels);
  parallel_for(s->threads, s->batch * bands, [&](int64_t task, int64_t thread) {
    const int64_t map = task / bands * height, top = task % bands * BAND, left = height - top;
    float *lines = shared.next + thread * 3 * line;
    // A row of the map with a pixel of zeros at both ends, so that the three pixels around each one follow each other
    const auto line_at = [&](int64_t y) { return lines + (y + 3) % 3 * line; };
    const auto fill = [&](int64_t y) {
      float *to = line_at(y);
      memset(to, 0, line * sizeof(float));
      if (y >= 0 && y < height)
        memcpy(to + channels, features + (map + y) * width * channels, width * channels * sizeof(float));
    };
    fill(top - 1), fill(top);
    for (int64_t y = top; y < top + (left < BAND ? left : BAND); ++y) {
      fill(y + 1);
      for (int64_t x = 0; x < width; x += ROWS)
        for (int64_t column = 0; column < inner; column += COLUMNS) {
          const int64_t at = x * channels, pixel = (map + y) * width + x, lanes = inner - column;
          const Rows rows{{line_at(y - 1) + at, line_at(y) + at, line_at(y + 1) + at}, 3, channels, 1, 3 * channels};
          multiply_rows(width - x < ROWS ? width - x : ROWS, rows, panels + column * 9 * channels,
                        [&](int64_t i, vf low, vf high) {
                          const int64_t place = (pixel + i) * inner + column;
                          low += load(start + column), high += load(start + column + W);
                          if (added) low += load_first(added + place, lanes);
                          if (added && lanes > W) high += load_first(added + place + W, lanes - W);
                          store_both(result + place, low, high, lanes);
                        });
        }
    }
  });
}
