// Displacement fields on the CPU: warping, composition, smoothing, Jacobian determinants, and the descent direction of
// local correlation. It is compiled once per instruction-set level; the interface is plain C on raw pointers, which
// kernels/fields.py calls.
//
// An image is (D, H, W) floats. A field is (D, H, W, 4) floats: the displacement along (d, h, w) in voxels and a 0, so
// that one 128-bit load fetches a vector. No result depends on the number of threads: each voxel is always computed in
// the same way, and sums are computed per slice.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "export.h"
#include "lanes.h"
#include "threads.h"

namespace {

typedef float f2 __attribute__((vector_size(8)));
typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i4 __attribute__((vector_size(16)));

INLINE f4 load4(const float *p) { f4 v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE void store4(float *p, f4 v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE f4 splat4(float x) { return x - f4{}; }
INLINE void load8(const float *p, f8 &v) { __builtin_memcpy(&v, p, sizeof v); }
INLINE f4 pairs(const float *p, const float *q) {  // p[0], p[1], q[0], q[1]
  f2 a, b;
  __builtin_memcpy(&a, p, sizeof a), __builtin_memcpy(&b, q, sizeof b);
  return __builtin_shufflevector(a, b, 0, 1, 2, 3);
}
INLINE f4 least4(f4 a, f4 b) { return a < b ? a : b; }
INLINE f4 greatest4(f4 a, f4 b) { return a > b ? a : b; }

struct Shape {
  int64_t d, h, w;
  explicit Shape(const int64_t *n) : d(n[0]), h(n[1]), w(n[2]) {}
  int64_t slice() const { return h * w; }
};

// Calls work(voxel, point) with the index and the position of each voxel
template <class Work>
void for_each_voxel(Shape n, int64_t threads, const Work &work) {
  parallel_for(threads, n.d, [&](int64_t d, int64_t) {
    for (int64_t h = 0; h < n.h; ++h)
      for (int64_t w = 0; w < n.w; ++w) work((d * n.h + h) * n.w + w, f4{float(d), float(h), float(w), 0});
  });
}

// The eight voxels around a point: the first of them, the steps to the next along each axis, and the weights of the next.
struct Cell {
  int64_t first;
  f4 weight;
};

// Finds the cell of a point; a point outside is moved to the border.
struct Locator {
  f4 last, last_cell;
  int64_t step_d, step_h, step_w;  // 0 along an axis of one voxel
  int64_t stride_d, stride_h;
  explicit Locator(Shape n) {
    last = f4{float(n.d - 1), float(n.h - 1), float(n.w - 1), 0};
    last_cell = greatest4(last - 1.0f, f4{});
    stride_d = n.slice(), stride_h = n.w;
    step_d = n.d > 1 ? stride_d : 0, step_h = n.h > 1 ? stride_h : 0, step_w = n.w > 1 ? 1 : 0;
  }
  INLINE Cell find(f4 point) const {
    point = greatest4(least4(point, last), f4{});  // NaN becomes 0
    const i4 index = __builtin_convertvector(least4(point, last_cell), i4);  // truncation is floor here
    return {index[0] * stride_d + index[1] * stride_h + index[2], point - __builtin_convertvector(index, f4)};
  }
};

INLINE float sample(const float *image, const Locator &at, f4 point) {
  const Cell cell = at.find(point);
  const float *p = image + cell.first;
  const float *q = p + at.step_d;
  f4 near, far;
  if (at.step_w) {  // neighbours along w are side by side
    near = pairs(p, p + at.step_h), far = pairs(q, q + at.step_h);
  } else {
    near = f4{p[0], p[0], p[at.step_h], p[at.step_h]}, far = f4{q[0], q[0], q[at.step_h], q[at.step_h]};
  }
  const f4 plane = near + cell.weight[0] * (far - near);
  const float low = plane[0] + cell.weight[2] * (plane[1] - plane[0]);
  const float high = plane[2] + cell.weight[2] * (plane[3] - plane[2]);
  return low + cell.weight[1] * (high - low);
}

INLINE f4 sample_field(const float *field, const Locator &at, f4 point) {
  const Cell cell = at.find(point);
  const float *p = field + 4 * cell.first, *q = p + 4 * at.step_h;
  const int64_t d = 4 * at.step_d;
  const float wd = cell.weight[0], wh = cell.weight[1];
  f4 low, high;  // at w and w + 1
  if (at.step_w) {
    f8 near, far, near_d, far_d;
    load8(p, near), load8(q, far), load8(p + d, near_d), load8(q + d, far_d);
    near += wd * (near_d - near), far += wd * (far_d - far);
    near += wh * (far - near);
    low = __builtin_shufflevector(near, near, 0, 1, 2, 3), high = __builtin_shufflevector(near, near, 4, 5, 6, 7);
  } else {
    const f4 near = load4(p) + wd * (load4(p + d) - load4(p)), far = load4(q) + wd * (load4(q + d) - load4(q));
    low = high = near + wh * (far - near);
  }
  return low + cell.weight[2] * (high - low);
}

// ---- smoothing along one axis. weights[i * (2 * radius + 1) + k] is the weight at position i of its neighbour
// i + k - radius, and 0 beyond the border; between `radius` and n - radius the weights do not depend on i.

constexpr int ROWS = 4, VECTORS = W == 16 ? 4 : 2;  // of a block whose sums stay in registers

// Calls block(j) for the places of VECTORS vectors that together cover [begin, end), the last of which may overlap its
// neighbour, or one(j) for each number of a shorter range
template <class Block, class One>
INLINE void for_blocks(int64_t begin, int64_t end, const Block &block, const One &one) {
  constexpr int64_t LENGTH = VECTORS * W;
  if (end - begin < LENGTH) {
    for (int64_t j = begin; j < end; ++j) one(j);
    return;
  }
  for (int64_t j = begin; j < end; j += LENGTH) block(j + LENGTH <= end ? j : end - LENGTH);
}

void smooth_row(const float *in, int64_t n, const float *weights, int64_t radius, float *out) {
  const int64_t taps = 2 * radius + 1;
  auto one = [&](int64_t i) {
    f4 sum = {};
    const int64_t low = i < radius ? radius - i : 0, high = i + radius >= n ? n - 1 - i + radius : taps - 1;
    for (int64_t k = low; k <= high; ++k) sum += weights[i * taps + k] * load4(in + 4 * (i + k - radius));
    store4(out + 4 * i, sum);
  };
  if (n <= 2 * radius) {
    for (int64_t i = 0; i < n; ++i) one(i);
    return;
  }
  for (int64_t i = 0; i < radius; ++i) one(i);
  for (int64_t i = n - radius; i < n; ++i) one(i);
  const float *inner = weights + radius * taps;
  const int64_t begin = 4 * radius, end = 4 * (n - radius);
  for_blocks(begin, end, [&](int64_t j) {
    vf sum[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sum[v] = inner[radius] * load(in + j + v * W);
    for (int64_t k = 1; k <= radius; ++k)
      for (int v = 0; v < VECTORS; ++v)
        sum[v] += inner[radius + k] * (load(in + j + v * W - 4 * k) + load(in + j + v * W + 4 * k));
    for (int v = 0; v < VECTORS; ++v) store(out + j + v * W, sum[v]);
  }, [&](int64_t j) {
    float sum = inner[radius] * in[j];
    for (int64_t k = 1; k <= radius; ++k) sum += inner[radius + k] * (in[j - 4 * k] + in[j + 4 * k]);
    out[j] = sum;
  });
}

// Row i of n rows, from its neighbours: row(j) is the place of row j, of `length` floats
template <class Row>
void smooth_across_row(const Row &row, int64_t i, int64_t n, int64_t length, const float *weights, int64_t radius,
                       float *out) {
  const int64_t taps = 2 * radius + 1, low = i < radius ? radius - i : 0;
  const int64_t high = i + radius >= n ? n - 1 - i + radius : taps - 1;
  weights += i * taps;
  for_blocks(0, length, [&](int64_t j) {
    vf sum[VECTORS] = {};
    for (int64_t k = low; k <= high; ++k) {
      const float *from = row(i - radius + k) + j;
      for (int v = 0; v < VECTORS; ++v) sum[v] += weights[k] * load(from + v * W);
    }
    for (int v = 0; v < VECTORS; ++v) store(out + j + v * W, sum[v]);
  }, [&](int64_t j) {
    float sum = 0;
    for (int64_t k = low; k <= high; ++k) sum += weights[k] * row(i - radius + k)[j];
    out[j] = sum;
  });
}

// ROWS rows from row i on, which have the same weights, so that each input is loaded once for all of them
template <class Row>
void smooth_across_rows(const Row &row, int64_t i, int64_t length, const float *weights, int64_t radius, float *out,
                        int64_t out_stride) {
  const int64_t taps = 2 * radius + 1;
  weights += i * taps;
  for_blocks(0, length, [&](int64_t j) {
    vf sum[ROWS][VECTORS] = {};
    auto add = [&](int64_t k, int from, int to) {
      const float *place = row(i - radius + k) + j;
      vf values[VECTORS];
      for (int v = 0; v < VECTORS; ++v) values[v] = load(place + v * W);
      for (int r = from; r < to; ++r)
        for (int v = 0; v < VECTORS; ++v) sum[r][v] += weights[k - r] * values[v];
    };
    for (int k = 0; k < ROWS - 1; ++k) add(k, 0, k + 1);
    for (int64_t k = ROWS - 1; k < taps; ++k) add(k, 0, ROWS);
    for (int k = 0; k < ROWS - 1; ++k) add(taps + k, k + 1, ROWS);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < VECTORS; ++v) store(out + r * out_stride + j + v * W, sum[r][v]);
  }, [&](int64_t j) {
    for (int r = 0; r < ROWS; ++r) {
      float sum = 0;
      for (int64_t k = 0; k < taps; ++k) sum += weights[k] * row(i + r - radius + k)[j];
      out[r * out_stride + j] = sum;
    }
  });
}

// The number of rows from row i on, up to `end`, that are smoothed together
INLINE int64_t rows_together(int64_t i, int64_t end, int64_t n, int64_t radius) {
  return 2 * radius + 1 >= ROWS && i >= radius && i + ROWS <= n - radius && i + ROWS <= end ? ROWS : 1;
}

// Some or one of n rows of `length` floats, from row i on; they are written `out_stride` floats apart
template <class Row>
void smooth_across(const Row &row, int64_t i, int64_t together, int64_t n, int64_t length, const float *weights,
                   int64_t radius, float *out, int64_t out_stride) {
  if (together == ROWS)
    smooth_across_rows(row, i, length, weights, radius, out, out_stride);
  else
    smooth_across_row(row, i, n, length, weights, radius, out);
}

// The largest squared length of n vectors, in units of `squared` (the squares of three lengths and 0)
INLINE float longest_of(const float *vectors, int64_t n, f4 squared) {
  f4 most = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    f4 s[4];
    for (int k = 0; k < 4; ++k) {
      const f4 v = load4(vectors + 4 * (i + k));
      s[k] = v * v * squared;
    }
    const f4 a = __builtin_shufflevector(s[0], s[1], 0, 4, 1, 5), b = __builtin_shufflevector(s[2], s[3], 0, 4, 1, 5);
    const f4 c = __builtin_shufflevector(s[0], s[1], 2, 6, 2, 6), d = __builtin_shufflevector(s[2], s[3], 2, 6, 2, 6);
    const f4 first = __builtin_shufflevector(a, b, 0, 1, 4, 5), second = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    most = greatest4(first + second + __builtin_shufflevector(c, d, 0, 1, 4, 5), most);
  }
  float longest = 0;
  for (int k = 0; k < 4; ++k) longest = most[k] > longest ? most[k] : longest;
  for (; i < n; ++i) {
    const f4 v = load4(vectors + 4 * i), s = v * v * squared;
    const float length = s[0] + s[1] + s[2];
    longest = length > longest ? length : longest;
  }
  return longest;
}

// ---- derivatives: central inside, one-sided on the border, 0 along an axis of one voxel

struct Neighbours {
  int64_t before, after;
  float factor;
  Neighbours(int64_t i, int64_t n) : before(i > 0 ? 1 : 0), after(i + 1 < n ? 1 : 0) {
    factor = before + after ? 1.0f / float(before + after) : 0.0f;
  }
};

// The vectors of four voxels from their components
INLINE void store_vectors(float *field, f4 d, f4 h, f4 w) {
  const f4 zero = {};
  const f4 a = __builtin_shufflevector(d, h, 0, 4, 1, 5), b = __builtin_shufflevector(w, zero, 0, 4, 1, 5);
  const f4 c = __builtin_shufflevector(d, h, 2, 6, 3, 7), e = __builtin_shufflevector(w, zero, 2, 6, 3, 7);
  store4(field, __builtin_shufflevector(a, b, 0, 1, 4, 5)), store4(field + 4, __builtin_shufflevector(a, b, 2, 3, 6, 7));
  store4(field + 8, __builtin_shufflevector(c, e, 0, 1, 4, 5));
  store4(field + 12, __builtin_shufflevector(c, e, 2, 3, 6, 7));
}

// field = -slope * gradient(image) * scale, for slice d
void descent_slice(const float *image, const float *slope, Shape n, int64_t d, f4 scale, float *field) {
  const Neighbours nd(d, n.d);
  for (int64_t h = 0; h < n.h; ++h) {
    const Neighbours nh(h, n.h);
    const float *row = image + (d * n.h + h) * n.w;
    const float *row_slope = slope + h * n.w;
    float *out = field + 4 * (d * n.h + h) * n.w;
    const float *d_after = row + nd.after * n.slice(), *d_before = row - nd.before * n.slice();
    const float *h_after = row + nh.after * n.w, *h_before = row - nh.before * n.w;
    const float by_d = -scale[0] * nd.factor, by_h = -scale[1] * nh.factor, by_w = -0.5f * scale[2];
    auto one = [&](int64_t w) {
      const Neighbours nw(w, n.w);
      const float s = row_slope[w];
      store4(out + 4 * w, f4{s * by_d * (d_after[w] - d_before[w]), s * by_h * (h_after[w] - h_before[w]),
                             -s * scale[2] * nw.factor * (row[w + nw.after] - row[w - nw.before]), 0});
    };
    one(0);
    int64_t w = 1;
    for (; w + 4 < n.w; w += 4) {  // none of the four is on the border
      const f4 s = load4(row_slope + w);
      store_vectors(out + 4 * w, s * by_d * (load4(d_after + w) - load4(d_before + w)),
                    s * by_h * (load4(h_after + w) - load4(h_before + w)),
                    s * by_w * (load4(row + w + 1) - load4(row + w - 1)));
    }
    for (; w < n.w; ++w) one(w);
  }
}

// ---- local correlation over windows of 5 x 5 x 5 voxels

constexpr int64_t R = 2, TAPS = 2 * R + 1;

// Sums over the 5 x 5 window within one slice of three images; `rows` holds 3 x (h + 2 R) x w floats, its margins 0.
struct SliceSums {
  Shape n;
  std::vector<float> padded, rows;
  explicit SliceSums(Shape shape) : n(shape), padded(3 * (n.w + 2 * R)), rows(3 * (n.h + 2 * R) * n.w) {}

  float *row_of(int64_t channel) { return padded.data() + channel * (n.w + 2 * R) + R; }

  // Sums of the three rows that `row_of` holds
  void add_row(int64_t h) {
    for (int64_t c = 0; c < 3; ++c) {
      const float *in = row_of(c) - R;
      float *out = rows.data() + (c * (n.h + 2 * R) + h + R) * n.w;
      for (int64_t w = 0; w < n.w; ++w) out[w] = ((in[w] + in[w + 1]) + (in[w + 2] + in[w + 3])) + in[w + 4];
    }
  }

  void finish(float *sums) const {
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t h = 0; h < n.h; ++h) {
        const float *in = rows.data() + (c * (n.h + 2 * R) + h) * n.w;
        float *out = sums + (c * n.h + h) * n.w;
        const int64_t s = n.w;
        for (int64_t w = 0; w < s; ++w)
          out[w] = ((in[w] + in[w + s]) + (in[w + 2 * s] + in[w + 3 * s])) + in[w + 4 * s];
      }
  }
};

// The last five slices of sums, three images each
struct Ring {
  Shape n;
  std::vector<float> slices;
  explicit Ring(Shape shape) : n(shape), slices(TAPS * 3 * shape.slice()) {}

  float *slice(int64_t d) { return slices.data() + (d % TAPS) * 3 * n.slice(); }

  void clear(int64_t d) { std::memset(slice(d), 0, 3 * n.slice() * sizeof(float)); }

  // Sum over the five slices of row h of image c
  void row(int64_t c, int64_t h, float *out) const {
    const int64_t offset = (c * n.h + h) * n.w, step = 3 * n.slice();
    const float *p = slices.data() + offset;
    for (int64_t w = 0; w < n.w; ++w)
      out[w] = ((p[w] + p[w + step]) + (p[w + 2 * step] + p[w + 3 * step])) + p[w + 4 * step];
  }
};

float sum_of(const float *values, int64_t n) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int64_t j = 0; j < 16; ++j) lanes[j] += values[i + j];
  float sum = 0;
  for (; i < n; ++i) sum += values[i];
  for (float lane : lanes) sum += lane;
  return sum;
}

struct Correlation {
  Shape n;
  const float *warped, *fixed, *mask, *count, *mean, *variance;
  float *field;
  double *loss;  // one per slice
  f4 scale;

  // Slices [begin, end) of the field
  void slab(int64_t begin, int64_t end) const {
    Ring first(n), second(n);
    SliceSums sums(n);
    std::vector<float> buffer(4 * n.w), slope(n.slice());
    for (int64_t d = begin - 2 * R; d < end + 2 * R; ++d) {
      products(d, sums, first);
      const int64_t middle = d - R;  // its five slices of products are complete
      if (middle < begin - R) continue;
      statistics(middle, middle >= begin && middle < end, sums, first, second, buffer.data());
      const int64_t last = middle - R;
      if (last < begin) continue;
      for (int64_t h = 0; h < n.h; ++h) {
        float *ratio = buffer.data(), *by_variance = ratio + n.w, *means = by_variance + n.w;
        second.row(0, h, ratio), second.row(1, h, by_variance), second.row(2, h, means);
        slope_row((last * n.h + h) * n.w, ratio, by_variance, means, slope.data() + h * n.w);
      }
      descent_slice(warped, slope.data(), n, last, scale, field);
    }
  }

  void products(int64_t d, SliceSums &sums, Ring &ring) const {
    if (d < 0 || d >= n.d) return ring.clear(d + 2 * TAPS);
    for (int64_t h = 0; h < n.h; ++h) {
      products_row((d * n.h + h) * n.w, sums.row_of(0), sums.row_of(1), sums.row_of(2));
      sums.add_row(h);
    }
    sums.finish(ring.slice(d + 2 * TAPS));
  }

  // Rows that start at voxel `place`. Their places do not overlap, which lets the compiler use vectors.

  void products_row(int64_t place, float *__restrict linear, float *__restrict squares, float *__restrict mixed) const {
    const float *image = warped + place, *inside = mask + place, *other = fixed + place;
    for (int64_t w = 0; w < n.w; ++w) {
      const float x = image[w] * inside[w];
      linear[w] = x, squares[w] = x * x, mixed[w] = x * other[w];
    }
  }

  void statistics_row(int64_t place, const float *sums, float *__restrict ratios, float *__restrict by_variance,
                      float *__restrict means, float *__restrict correlation) const {
    const float *linear = sums, *squares = sums + n.w, *products = sums + 2 * n.w;
    const float *voxels = count + place, *fixed_means = mean + place, *spreads = variance + place;
    const float *inside = mask + place;
    for (int64_t w = 0; w < n.w; ++w) {
      const float m = linear[w] / voxels[w], fixed_mean = fixed_means[w], spread = spreads[w];
      const float covariance = products[w] - linear[w] * fixed_mean;
      const float own = squares[w] - m * linear[w];
      const float ratio = inside[w] * covariance / ((own > 0 ? own : 0) * spread + 1e-5f);
      const float by_own = -ratio * ratio * spread;
      ratios[w] = ratio, by_variance[w] = by_own, means[w] = ratio * fixed_mean + by_own * m;
      correlation[w] = ratio * covariance;
    }
  }

  void slope_row(int64_t place, const float *ratio, const float *by_variance, const float *means,
                 float *__restrict slope) const {
    const float *image = warped + place, *inside = mask + place, *other = fixed + place;
    for (int64_t w = 0; w < n.w; ++w) {
      const float m = inside[w];
      slope[w] = -2.0f * m * (other[w] * ratio[w] + m * image[w] * by_variance[w] - means[w]);
    }
  }

  void statistics(int64_t d, bool counted, SliceSums &sums, const Ring &from, Ring &to, float *buffer) const {
    if (d < 0 || d >= n.d) return to.clear(d + 2 * TAPS);
    double total = 0;
    for (int64_t h = 0; h < n.h; ++h) {
      for (int64_t c = 0; c < 3; ++c) from.row(c, h, buffer + c * n.w);
      float *correlation = buffer + 3 * n.w;
      statistics_row((d * n.h + h) * n.w, buffer, sums.row_of(0), sums.row_of(1), sums.row_of(2), correlation);
      total += sum_of(correlation, n.w);
      sums.add_row(h);
    }
    if (counted) loss[d] = total;
    sums.finish(to.slice(d + 2 * TAPS));
  }
};

}  // namespace

// out[x] = image[x + field[x]] with linear interpolation; outside the image, the value at its border
VW_EXPORT void VW_NAME(vw_field_warp)(const float *image, const int64_t *image_shape, const float *field,
                                      const int64_t *shape, float *out, int64_t threads) {
  const Locator at{Shape(image_shape)};
  const Shape n(shape);
  for_each_voxel(n, threads, [&](int64_t voxel, f4 point) {
    out[voxel] = sample(image, at, point + load4(field + 4 * voxel));
  });
}

// out[x] = image[matrix x] with linear interpolation; `outside` for points more than half a voxel outside the image.
// `matrix` is (3, 4), from voxels of `out` to voxels of `image`.
VW_EXPORT void VW_NAME(vw_field_affine)(const float *image, const int64_t *image_shape, const double *matrix,
                                        const int64_t *shape, float outside, float *out, int64_t threads) {
  const Shape m(image_shape), n(shape);
  const Locator at{m};
  const f4 low = splat4(-0.500001f), high = at.last + 0.500001f;
  const f4 step = {float(matrix[2]), float(matrix[6]), float(matrix[10]), 0};
  parallel_for(threads, n.d, [&](int64_t d, int64_t) {
    for (int64_t h = 0; h < n.h; ++h) {
      f4 start = {};
      for (int axis = 0; axis < 3; ++axis)
        start[axis] = float(matrix[4 * axis] * d + matrix[4 * axis + 1] * h + matrix[4 * axis + 3]);
      float *row = out + (d * n.h + h) * n.w;
      for (int64_t w = 0; w < n.w; ++w) {
        const f4 point = start + float(w) * step;
        const bool within = point[0] >= low[0] && point[1] >= low[1] && point[2] >= low[2] && point[0] <= high[0] &&
                            point[1] <= high[1] && point[2] <= high[2];
        row[w] = within ? sample(image, at, point) : outside;
      }
    }
  });
}

// out = (id + outer) after (id + scale * inner), minus id
VW_EXPORT void VW_NAME(vw_field_compose)(const float *outer, const float *inner, float scale, const int64_t *shape,
                                         float *out, int64_t threads) {
  const Shape n(shape);
  const Locator at{n};
  for_each_voxel(n, threads, [&](int64_t voxel, f4 point) {
    const f4 step = scale * load4(inner + 4 * voxel);
    store4(out + 4 * voxel, step + sample_field(outer, at, point + step));
  });
}

// Smooths along the three axes. `weights` holds the concatenated tables of the axes; `out` must not be `field`.
// `longest` (d floats, or null) receives the largest squared length in each slice, in units of `unit` per voxel.
VW_EXPORT void VW_NAME(vw_field_smooth)(const float *field, const int64_t *shape, const float *weights,
                                        const int64_t *radius, const float *unit, float *out, float *longest,
                                        int64_t threads) {
  const Shape n(shape);
  const float *weights_d = weights, *weights_h = weights_d + n.d * (2 * radius[0] + 1);
  const float *weights_w = weights_h + n.h * (2 * radius[1] + 1);
  const int64_t row = 4 * n.w, slice = n.h * row, reach = radius[0];
  const f4 squared = {unit[0] * unit[0], unit[1] * unit[1], unit[2] * unit[2], 0};
  const int64_t slabs = threads < 1 ? 1 : threads, thickness = (n.d + slabs - 1) / slabs;
  parallel_for(threads, slabs, [&](int64_t slab, int64_t) {
    const int64_t begin = slab * thickness, end = begin + thickness < n.d ? begin + thickness : n.d;
    if (begin >= end) return;
    // the last slices, smoothed within themselves: those that the next slices of the result need stay in the cache
    const int64_t kept = 2 * reach + ROWS;
    std::vector<float> along_w(slice), within(kept * slice);
    auto smoothed = [&](int64_t d) { return within.data() + d % kept * slice; };
    int64_t next = begin > reach ? begin - reach : 0;
    for (int64_t d = begin; d < end;) {
      const int64_t together = rows_together(d, end, n.d, reach);
      for (; next < n.d && next < d + together + reach; ++next) {
        for (int64_t h = 0; h < n.h; ++h)
          smooth_row(field + next * slice + h * row, n.w, weights_w, radius[2], along_w.data() + h * row);
        auto row_of = [&](int64_t h) { return along_w.data() + h * row; };
        for (int64_t h = 0, some; h < n.h; h += some) {
          some = rows_together(h, n.h, n.h, radius[1]);
          smooth_across(row_of, h, some, n.h, row, weights_h, radius[1], smoothed(next) + h * row, row);
        }
      }
      smooth_across(smoothed, d, together, n.d, slice, weights_d, reach, out + d * slice, slice);
      for (const int64_t last = d + together; d < last; ++d)
        if (longest) longest[d] = longest_of(out + d * slice, n.h * n.w, squared);
    }
  });
}

// field = -slope * gradient(image) * scale
VW_EXPORT void VW_NAME(vw_field_descent)(const float *image, const float *slope, const int64_t *shape,
                                         const float *scale, float *field, int64_t threads) {
  const Shape n(shape);
  const f4 by = {scale[0], scale[1], scale[2], 0};
  parallel_for(threads, n.d,
               [&](int64_t d, int64_t) { descent_slice(image, slope + d * n.slice(), n, d, by, field); });
}

// The descent direction of the squared local correlation of `warped` and `fixed`: -slope * gradient(warped) * scale.
// `fixed` must already be multiplied by the mask. For each window, count is the number of voxels in the mask, and mean
// and variance are the mean and the sum of squared deviations of `fixed` over them. `loss` (d doubles) receives the sum
// of the correlations of each slice.
VW_EXPORT void VW_NAME(vw_field_correlation)(const float *warped, const float *fixed, const float *mask,
                                             const float *count, const float *mean, const float *variance,
                                             const int64_t *shape, const float *scale, float *field, double *loss,
                                             int64_t threads) {
  const Shape n(shape);
  const Correlation work{n, warped, fixed, mask, count, mean, variance, field, loss, {scale[0], scale[1], scale[2], 0}};
  const int64_t slabs = threads < 1 ? 1 : threads, length = (n.d + slabs - 1) / slabs;
  parallel_for(threads, slabs, [&](int64_t slab, int64_t) {
    const int64_t begin = slab * length, end = begin + length < n.d ? begin + length : n.d;
    if (begin < end) work.slab(begin, end);
  });
}

// The Jacobian determinant of id + field
VW_EXPORT void VW_NAME(vw_field_determinant)(const float *field, const int64_t *shape, float *out, int64_t threads) {
  const Shape n(shape);
  const int64_t row = 4 * n.w, slice = n.h * row;
  parallel_for(threads, n.d, [&](int64_t d, int64_t) {
    const Neighbours nd(d, n.d);
    for (int64_t h = 0; h < n.h; ++h) {
      const Neighbours nh(h, n.h);
      const float *p = field + d * slice + h * row;
      for (int64_t w = 0; w < n.w; ++w, p += 4) {
        const Neighbours nw(w, n.w);
        f4 a = nd.factor * (load4(p + nd.after * slice) - load4(p - nd.before * slice));
        f4 b = nh.factor * (load4(p + nh.after * row) - load4(p - nh.before * row));
        f4 c = nw.factor * (load4(p + nw.after * 4) - load4(p - nw.before * 4));
        a[0] += 1, b[1] += 1, c[2] += 1;
        out[(d * n.h + h) * n.w + w] = a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) +
                                       a[2] * (b[0] * c[1] - b[1] * c[0]);
      }
    }
  });
}
