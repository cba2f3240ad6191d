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
#include "threads.h"


namespace {

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

INLINE f4 load4(const float *p) { f4 v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE void store4(float *p, f4 v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE f4 splat4(float x) { return x - f4{}; }
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
  const f4 near = {p[0], p[at.step_w], p[at.step_h], p[at.step_h + at.step_w]};
  const f4 far = {q[0], q[at.step_w], q[at.step_h], q[at.step_h + at.step_w]};
  const f4 plane = near + cell.weight[0] * (far - near);
  const float low = plane[0] + cell.weight[2] * (plane[1] - plane[0]);
  const float high = plane[2] + cell.weight[2] * (plane[3] - plane[2]);
  return low + cell.weight[1] * (high - low);
}

INLINE f4 between(f4 a, f4 b, float weight) { return a + weight * (b - a); }

INLINE f4 sample_field(const float *field, const Locator &at, f4 point) {
  const Cell cell = at.find(point);
  const float *p = field + 4 * cell.first;
  const int64_t d = 4 * at.step_d, h = 4 * at.step_h, w = 4 * at.step_w;
  const float wd = cell.weight[0], wh = cell.weight[1], ww = cell.weight[2];
  const f4 near = between(between(load4(p), load4(p + w), ww), between(load4(p + h), load4(p + h + w), ww), wh);
  p += d;
  const f4 far = between(between(load4(p), load4(p + w), ww), between(load4(p + h), load4(p + h + w), ww), wh);
  return between(near, far, wd);
}

// ---- smoothing along one axis. weights[i * (2 * radius + 1) + k] is the weight at position i of its neighbour
// i + k - radius, and 0 beyond the border; between `radius` and n - radius the weights do not depend on i.

void smooth_row(const float *in, int64_t n, const float *weights, int64_t radius, float *out) {
  const int64_t taps = 2 * radius + 1;
  auto one = [&](int64_t i) {
    f4 sum = {};
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t j = i + k - radius;
      if (j >= 0 && j < n) sum += weights[i * taps + k] * load4(in + 4 * j);
    }
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
  constexpr int64_t BLOCK = 64;
  int64_t j = begin;
  for (; j + BLOCK <= end; j += BLOCK) {
    float sum[BLOCK];
    for (int64_t b = 0; b < BLOCK; ++b) sum[b] = inner[radius] * in[j + b];
    for (int64_t k = 1; k <= radius; ++k) {
      const float weight = inner[radius + k];
      for (int64_t b = 0; b < BLOCK; ++b) sum[b] += weight * (in[j + b - 4 * k] + in[j + b + 4 * k]);
    }
    std::memcpy(out + j, sum, sizeof sum);
  }
  for (; j < end; ++j) {
    float sum = inner[radius] * in[j];
    for (int64_t k = 1; k <= radius; ++k) sum += inner[radius + k] * (in[j - 4 * k] + in[j + 4 * k]);
    out[j] = sum;
  }
}

// Row i of n rows that are `stride` floats apart, each of `length` floats.
void smooth_across(const float *in, int64_t i, int64_t n, int64_t stride, int64_t length, const float *weights,
                   int64_t radius, float *out) {
  const int64_t taps = 2 * radius + 1, low = i < radius ? radius - i : 0;
  const int64_t high = i + radius >= n ? n - 1 - i + radius : taps - 1;
  weights += i * taps;
  const float *first = in + (i - radius) * stride;
  constexpr int64_t BLOCK = 64;
  int64_t j = 0;
  for (; j + BLOCK <= length; j += BLOCK) {
    float sum[BLOCK] = {};
    for (int64_t k = low; k <= high; ++k) {
      const float weight = weights[k];
      const float *row = first + k * stride + j;
      for (int64_t b = 0; b < BLOCK; ++b) sum[b] += weight * row[b];
    }
    std::memcpy(out + j, sum, sizeof sum);
  }
  for (; j < length; ++j) {
    float sum = 0;
    for (int64_t k = low; k <= high; ++k) sum += weights[k] * first[k * stride + j];
    out[j] = sum;
  }
}

// ---- derivatives: central inside, one-sided on the border, 0 along an axis of one voxel

struct Neighbours {
  int64_t before, after;
  float factor;
  Neighbours(int64_t i, int64_t n) : before(i > 0 ? 1 : 0), after(i + 1 < n ? 1 : 0) {
    factor = before + after ? 1.0f / float(before + after) : 0.0f;
  }
};

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
    const float by_d = -scale[0] * nd.factor, by_h = -scale[1] * nh.factor;
    for (int64_t w = 0; w < n.w; ++w) {
      const Neighbours nw(w, n.w);
      const float s = row_slope[w];
      out[4 * w] = s * by_d * (d_after[w] - d_before[w]);
      out[4 * w + 1] = s * by_h * (h_after[w] - h_before[w]);
      out[4 * w + 2] = -s * scale[2] * nw.factor * (row[w + nw.after] - row[w - nw.before]);
      out[4 * w + 3] = 0;
    }
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
        const int64_t place = (last * n.h + h) * n.w;
        for (int64_t w = 0; w < n.w; ++w) {
          const float m = mask[place + w];
          const float inside = fixed[place + w] * ratio[w] + m * warped[place + w] * by_variance[w];
          slope[h * n.w + w] = -2.0f * m * (inside - means[w]);
        }
      }
      descent_slice(warped, slope.data(), n, last, scale, field);
    }
  }

  void products(int64_t d, SliceSums &sums, Ring &ring) const {
    if (d < 0 || d >= n.d) return ring.clear(d + 2 * TAPS);
    for (int64_t h = 0; h < n.h; ++h) {
      const int64_t place = (d * n.h + h) * n.w;
      float *a = sums.row_of(0), *b = sums.row_of(1), *c = sums.row_of(2);
      for (int64_t w = 0; w < n.w; ++w) {
        const float x = warped[place + w] * mask[place + w];
        a[w] = x, b[w] = x * x, c[w] = x * fixed[place + w];
      }
      sums.add_row(h);
    }
    sums.finish(ring.slice(d + 2 * TAPS));
  }

  void statistics(int64_t d, bool counted, SliceSums &sums, const Ring &from, Ring &to, float *buffer) const {
    if (d < 0 || d >= n.d) return to.clear(d + 2 * TAPS);
    double total = 0;
    for (int64_t h = 0; h < n.h; ++h) {
      float *linear = buffer, *squares = linear + n.w, *products = squares + n.w;
      from.row(0, h, linear), from.row(1, h, squares), from.row(2, h, products);
      const int64_t place = (d * n.h + h) * n.w;
      float *a = sums.row_of(0), *b = sums.row_of(1), *c = sums.row_of(2);
      float *correlation = products + n.w;
      for (int64_t w = 0; w < n.w; ++w) {
        const float m = linear[w] / count[place + w], fixed_mean = mean[place + w], spread = variance[place + w];
        const float covariance = products[w] - linear[w] * fixed_mean;
        const float own = squares[w] - m * linear[w];
        const float ratio = mask[place + w] * covariance / ((own > 0 ? own : 0) * spread + 1e-5f);
        const float by_variance = -ratio * ratio * spread;
        a[w] = ratio, b[w] = by_variance, c[w] = ratio * fixed_mean + by_variance * m;
        correlation[w] = ratio * covariance;
      }
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

// Smooths along the three axes. `weights` holds the concatenated tables of the axes, and `scratch` has room for a field;
// `longest` (h floats) receives the largest squared length, in units of `unit` per voxel, among the rows (., h, .).
VW_EXPORT void VW_NAME(vw_field_smooth)(const float *field, const int64_t *shape, const float *weights,
                                        const int64_t *radius, const float *unit, float *scratch, float *out,
                                        float *longest, int64_t threads) {
  const Shape n(shape);
  const float *weights_d = weights, *weights_h = weights_d + n.d * (2 * radius[0] + 1);
  const float *weights_w = weights_h + n.h * (2 * radius[1] + 1);
  const int64_t row = 4 * n.w, slice = n.h * row;
  std::vector<float> buffers((threads < 1 ? 1 : threads) * slice);
  parallel_for(threads, n.d, [&](int64_t d, int64_t thread) {
    float *rows = buffers.data() + thread * slice;
    for (int64_t h = 0; h < n.h; ++h)
      smooth_row(field + d * slice + h * row, n.w, weights_w, radius[2], rows + h * row);
    for (int64_t h = 0; h < n.h; ++h)
      smooth_across(rows, h, n.h, row, row, weights_h, radius[1], scratch + d * slice + h * row);
  });
  const f4 squared = {unit[0] * unit[0], unit[1] * unit[1], unit[2] * unit[2], 0};
  parallel_for(threads, n.h, [&](int64_t h, int64_t) {
    float most = 0;
    for (int64_t d = 0; d < n.d; ++d) {
      float *target = out + d * slice + h * row;
      smooth_across(scratch + h * row, d, n.d, slice, row, weights_d, radius[0], target);
      for (int64_t w = 0; w < n.w; ++w) {
        const f4 v = load4(target + 4 * w), s = v * v * squared;
        const float length = s[0] + s[1] + s[2];
        most = length > most ? length : most;
      }
    }
    longest[h] = most;
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
