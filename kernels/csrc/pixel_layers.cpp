// The layers around the selective scan of a residual block, for channel-last maps (batch, height, width, channels) without
// gradients: norms, linear layers, convolutions of 3 x 3 pixels, gates and the MLP; and the check of its paths. It is compiled once per
// instruction-set level; the interface is plain C on raw pointers, which kernels/pixel_layers.py calls.
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

namespace {

// The convolution of 3 x 3 pixels for blocks of 2 x 2 results, by Winograd's F(2 x 2, 3 x 3) (Lavin and Gray 2016, arXiv
// 1509.09308): each block needs 16 products of a channel with a weight in place of 36.
constexpr int BLOCKS = 24;       // blocks side by side in the cache, a multiple of ROWS
constexpr int64_t FEW = 16;      // with fewer channels, or a smaller map, the transforms take longer than they save
constexpr int64_t SMALL = 1024;  // pixels

INLINE bool by_blocks(const Pixels &s) { return s.channels >= FEW && s.height * s.width >= SMALL; }

// A row of the map with zeros before and after it
INLINE int64_t line_of(const Pixels &s) { return padded((s.width + 3) * s.channels); }

INLINE int64_t filter_weights(const Pixels &s) { return padded(s.inner) * s.channels * (by_blocks(s) ? 16 : 9); }

INLINE int64_t filter_memory(const Pixels &s) {
  return 4 * line_of(s) + (by_blocks(s) ? 16 * BLOCKS * (padded(s.channels) + COLUMNS) : 0);
}

// d -> B^T d of four rows that are `step` apart
INLINE void transform_rows(vf *d, int step) {
  const vf first = d[0] - d[2 * step], last = d[step] - d[3 * step], sum = d[step] + d[2 * step];
  d[2 * step] = d[2 * step] - d[step];
  d[0] = first, d[step] = sum, d[3 * step] = last;
}

// The weights (inner, 9, channels) as 16 packed matrices G g G^T
void transform_weights(const Pixels &s, const float *weight, Memory &shared, float *matrix, const float **packed) {
  const int64_t channels = s.channels, inner = s.inner;
  for (int f = 0; f < 16; ++f) {
    constexpr float G[4][3] = {{1, 0, 0}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}};
    for (int64_t n = 0; n < inner; ++n)
      for (int64_t c = 0; c < channels; ++c) {
        float sum = 0;
        for (int j = 0; j < 9; ++j) sum += G[f / 4][j / 3] * G[f % 4][j % 3] * weight[(n * 9 + j) * channels + c];
        matrix[n * channels + c] = sum;
      }
    packed[f] = shared.panels(matrix, inner, channels);
  }
}

// Writes two vectors of results of a pixel, + bias + added
struct Finish {
  const float *start, *added;
  float *result;
  int64_t inner;
  INLINE void operator()(int64_t pixel, int64_t column, vf low, vf high) const {
    const int64_t place = pixel * inner + column, lanes = inner - column;
    low += load(start + column), high += load(start + column + W);
    if (added) low += load_first(added + place, lanes);
    if (added && lanes > W) high += load_first(added + place + W, lanes - W);
    store_both(result + place, low, high, lanes);
  }
};

// Two rows of results from the four lines around them
void filter_two_rows(const Pixels &s, const float *const *lines, const float *const *packed, int64_t pixel, int64_t rows,
                     float *memory, const Finish &finish) {
  const int64_t channels = s.channels, step = padded(channels), blocks = (s.width + 1) / 2;
  float *inputs = memory, *products = memory + 16 * BLOCKS * step;  // (16, BLOCKS, step) and (16, BLOCKS, COLUMNS)
  for (int64_t first = 0; first < blocks; first += BLOCKS) {
    const int64_t count = blocks - first < BLOCKS ? blocks - first : BLOCKS;
    for (int64_t t = 0; t < count; ++t)
      over(channels, [&](int64_t c, int64_t lanes) {
        vf d[16];
        for (int i = 0; i < 16; ++i) d[i] = load_first(lines[i / 4] + (2 * (first + t) + i % 4) * channels + c, lanes);
        for (int i = 0; i < 4; ++i) transform_rows(d + i, 4);
        for (int i = 0; i < 4; ++i) transform_rows(d + 4 * i, 1);
        for (int i = 0; i < 16; ++i) store(inputs + (i * BLOCKS + t) * step + c, d[i]);
      });
    for (int64_t column = 0; column < s.inner; column += COLUMNS) {
      for (int f = 0; f < 16; ++f) {
        const Rows rows_of{{inputs + f * BLOCKS * step}, 1, step, 1, channels};
        for (int64_t t = 0; t < count; t += ROWS)
          multiply<ROWS>(rows_of, t, packed[f] + column * channels, products + (f * BLOCKS + t) * COLUMNS);
      }
      for (int64_t t = 0; t < count; ++t) {
        vf out[4][2];
        for (int half = 0; half < 2; ++half) {
          vf m[16], sums[2][4];
          for (int f = 0; f < 16; ++f) m[f] = load(products + (f * BLOCKS + t) * COLUMNS + half * W);
          for (int j = 0; j < 4; ++j) {
            sums[0][j] = m[j] + m[4 + j] + m[8 + j];
            sums[1][j] = m[4 + j] - m[8 + j] - m[12 + j];
          }
          for (int i = 0; i < 2; ++i) {
            out[2 * i][half] = sums[i][0] + sums[i][1] + sums[i][2];
            out[2 * i + 1][half] = sums[i][1] - sums[i][2] - sums[i][3];
          }
        }
        for (int i = 0; i < 4; ++i) {
          const int64_t x = 2 * (first + t) + i % 2;
          if (i / 2 < rows && x < s.width) finish(pixel + i / 2 * s.width + x, column, out[i][0], out[i][1]);
        }
      }
    }
  }
}

void filter_row(const Pixels &s, const float *const *lines, const float *panels, int64_t pixel, const Finish &finish) {
  for (int64_t x = 0; x < s.width; x += ROWS)
    for (int64_t column = 0; column < s.inner; column += COLUMNS) {
      const int64_t at = x * s.channels;
      const Rows rows{{lines[0] + at, lines[1] + at, lines[2] + at}, 3, s.channels, 1, 3 * s.channels};
      multiply_rows(s.width - x < ROWS ? s.width - x : ROWS, rows, panels + column * 9 * s.channels,
                    [&](int64_t i, vf low, vf high) { finish(pixel + x + i, column, low, high); });
    }
}

}  // namespace

// Floats of Pixels::scratch for vw_pixel_filter
VW_EXPORT int64_t VW_NAME(vw_filter_scratch)(const Pixels *s) {
  return padded(s->inner) + filter_weights(*s) + padded(s->inner * s->channels) + s->threads * filter_memory(*s);
}

// result = 3 x 3 convolution of the features, with zeros around the map, + bias + added, (pixels, inner); the weight is
// (inner, 9, channels), and bias and added may be null
VW_EXPORT void VW_NAME(vw_pixel_filter)(const Pixels *s, const float *features, const float *weight, const float *bias,
                                        const float *added, float *result) {
  const int64_t channels = s->channels, width = s->width, height = s->height, line = line_of(*s);
  const int64_t bands = (height + BAND - 1) / BAND, rows = by_blocks(*s) ? 2 : 1;
  Memory shared{s->scratch};
  const Finish finish{shared.vector(bias, s->inner), added, result, s->inner};
  const float *packed[16];
  float *matrix = shared.floats(s->inner * channels);
  if (by_blocks(*s)) transform_weights(*s, weight, shared, matrix, packed);
  else packed[0] = shared.panels(weight, s->inner, 9 * channels);
  parallel_for(s->threads, s->batch * bands, [&](int64_t task, int64_t thread) {
    const int64_t map = task / bands * height, top = task % bands * BAND;
    const int64_t bottom = top + BAND < height ? top + BAND : height;
    float *ring = shared.next + thread * filter_memory(*s);
    const auto line_at = [&](int64_t y) { return ring + (y + 4) % 4 * line; };
    const auto fill = [&](int64_t y) {
      float *to = line_at(y);
      memset(to, 0, line * sizeof(float));
      if (y >= 0 && y < height)
        memcpy(to + channels, features + (map + y) * width * channels, width * channels * sizeof(float));
    };
    fill(top - 1), fill(top);
    for (int64_t y = top; y < bottom; y += rows) {
      for (int64_t next = 1; next <= rows; ++next) fill(y + next);
      const float *lines[4] = {line_at(y - 1), line_at(y), line_at(y + 1), line_at(y + 2)};
      const int64_t pixel = (map + y) * width;
      if (rows == 1) filter_row(*s, lines, packed[0], pixel, finish);
      else filter_two_rows(*s, lines, packed, pixel, bottom - y, ring + 4 * line, finish);
    }
  });
}

// The first of `rows` rows that does not list each of 0 .. length - 1 once, or -1; `seen` has `length` bytes. The scan takes the
// numbers of its paths for addresses; this check in PyTorch would take longer than a small scan.
VW_EXPORT int64_t VW_NAME(vw_row_without_permutation)(const int32_t *numbers, int64_t rows, int64_t length,
                                                      uint8_t *seen) {
  for (int64_t row = 0; row < rows; ++row, numbers += length) {
    memset(seen, 0, length);
    for (int64_t i = 0; i < length; ++i) {
      const int64_t number = numbers[i];
      if (number < 0 || number >= length || seen[number]) return row;
      seen[number] = 1;
    }
  }
  return -1;
}
