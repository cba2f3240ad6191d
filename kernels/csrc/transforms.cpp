// Transforms between two worlds on the CPU: reading an image through a displacement field, and inverting a field. One
// compilation per instruction-set level; plain C on raw pointers, called by kernels/transforms.py.
//
// A field is (D, H, W, 3) floats, the displacement in mm. An affine is (3, 4) doubles. Every voxel of the result is
// computed in the same way for any number of threads.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "export.h"
#include "threads.h"

namespace {

typedef double d4 __attribute__((vector_size(32)));

INLINE d4 least4(d4 a, d4 b) { return a < b ? a : b; }
INLINE d4 greatest4(d4 a, d4 b) { return a > b ? a : b; }
INLINE double length(d4 a) { return std::sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2]); }

struct Shape {
  int64_t d, h, w;
  explicit Shape(const int64_t *n) : d(n[0]), h(n[1]), w(n[2]) {}
  d4 last() const { return d4{double(d - 1), double(h - 1), double(w - 1), 0}; }
};

// columns[k] is the image of the unit vector k, columns[3] that of the origin
struct Affine {
  d4 columns[4];
  explicit Affine(const double *m) {
    for (int k = 0; k < 4; ++k) columns[k] = d4{m[k], m[4 + k], m[8 + k], 0};
  }
  INLINE d4 turn(d4 v) const { return v[0] * columns[0] + v[1] * columns[1] + v[2] * columns[2]; }
  INLINE d4 operator()(d4 x) const { return turn(x) + columns[3]; }
};

// Whether a point lies in a voxel of the grid, including the outer halves of the border voxels
INLINE bool within(d4 point, d4 last) {
  const double edge = 0.5 + 1e-6;
  return point[0] >= -edge && point[1] >= -edge && point[2] >= -edge && point[0] <= last[0] + edge &&
         point[1] <= last[1] + edge && point[2] <= last[2] + edge;
}

// The eight voxels around a point of the grid: the first, the steps to the next along each axis, and their weights
struct Cell {
  int64_t first, step_d, step_h, step_w;
  float wd, wh, ww;
  Cell(Shape n, d4 point) {
    float weights[3];
    int64_t index[3];
    const int64_t size[3] = {n.d, n.h, n.w};
    for (int axis = 0; axis < 3; ++axis) {
      const double nearest = std::floor(point[axis] + 0.5);
      // a rounding error beside a voxel centre must not mix in the value of a neighbour
      const double x = std::fabs(point[axis] - nearest) < 1e-7 ? nearest : point[axis];
      const double floor = std::floor(x);
      index[axis] = floor < double(size[axis] - 2) ? int64_t(floor) : (size[axis] > 1 ? size[axis] - 2 : 0);
      weights[axis] = float(x - double(index[axis]));
    }
    step_d = n.d > 1 ? n.h * n.w : 0, step_h = n.h > 1 ? n.w : 0, step_w = n.w > 1 ? 1 : 0;
    first = (index[0] * n.h + index[1]) * n.w + index[2];
    wd = weights[0], wh = weights[1], ww = weights[2];
  }
};

INLINE float between(float a, float b, float weight) { return weight == 1.0f ? b : a + weight * (b - a); }

// The interpolated value of channel `c` of `channels` interleaved ones
INLINE float read(const float *image, const Cell &cell, int64_t channels, int64_t c) {
  const float *p = image + channels * cell.first + c;
  const int64_t d = channels * cell.step_d, h = channels * cell.step_h, w = channels * cell.step_w;
  const float near = between(between(p[0], p[w], cell.ww), between(p[h], p[h + w], cell.ww), cell.wh);
  p += d;
  const float far = between(between(p[0], p[w], cell.ww), between(p[h], p[h + w], cell.ww), cell.wh);
  return between(near, far, cell.wd);
}

INLINE d4 clamped(d4 point, d4 last) { return greatest4(least4(point, last), d4{}); }

struct Field {
  const float *vectors;
  Shape n;
  Affine to_voxel;
  Field(const float *v, const int64_t *shape, const double *inverse) : vectors(v), n(shape), to_voxel(inverse) {}
  INLINE d4 at(d4 voxel) const {  // `voxel` lies on the grid
    const Cell cell(n, voxel);
    return d4{read(vectors, cell, 3, 0), read(vectors, cell, 3, 1), read(vectors, cell, 3, 2), 0};
  }
};

// Calls inside(voxel of the result, point in the image's voxels, on its grid), or outside(voxel) beyond the image or beyond
// the field, which may be null; `lost` (one per slice) receives the number of voxels beyond the field
template <class Inside, class Outside>
void for_each_source(Shape image, const Affine &start, const float *vectors, const int64_t *field_shape,
                     const double *to_field, const Affine &end, Shape n, int64_t *lost, int64_t threads,
                     const Inside &inside, const Outside &outside) {
  const Field field(vectors, field_shape, to_field);
  const d4 last = image.last(), last_of_field = field.n.last();
  parallel_for(threads, n.d, [&](int64_t d, int64_t) {
    int64_t voxel = d * n.h * n.w, beyond = 0;
    for (int64_t h = 0; h < n.h; ++h) {
      for (int64_t w = 0; w < n.w; ++w, ++voxel) {
        d4 point = start(d4{double(d), double(h), double(w), 0});
        if (vectors) {
          const d4 place = field.to_voxel(point);
          if (!within(place, last_of_field)) {
            ++beyond;
            outside(voxel);
            continue;
          }
          point += field.at(clamped(place, last_of_field));
        }
        const d4 found = end(point);
        if (within(found, last))
          inside(voxel, clamped(found, last));
        else
          outside(voxel);
      }
    }
    lost[d] = beyond;
  });
}

// The inversion of x -> linear(x) + remainder(x), where the remainder continues with its border value
struct Inversion {
  Field field;
  Affine affine, linear, back;  // `affine` is voxel -> world of the field, `back` inverts `linear`
  int64_t iterations;
  double tolerance, longest;
  d4 last;

  INLINE d4 remainder(d4 x) const {
    const d4 voxel = clamped(field.to_voxel(x), last), point = affine(voxel);
    return point + field.at(voxel) - linear(point);
  }

  // The Jacobian of the map at x times a step of Newton's method: solves J move = rest
  d4 newton(d4 x, d4 rest) const {
    d4 by_voxel[3];
    for (int k = 0; k < 3; ++k) by_voxel[k] = remainder(x + 0.5 * affine.columns[k]) - remainder(x - 0.5 * affine.columns[k]);
    d4 slope[3];  // columns: derivatives along the world's axes
    for (int k = 0; k < 3; ++k) {
      slope[k] = linear.columns[k];
      for (int axis = 0; axis < 3; ++axis) slope[k] += by_voxel[axis] * field.to_voxel.columns[k][axis];
    }
    if (std::fabs(determinant(slope)) < 1e-3)
      for (int k = 0; k < 3; ++k) slope[k] = linear.columns[k];
    const double whole = determinant(slope);
    d4 move = {};
    for (int k = 0; k < 3; ++k) {
      d4 swapped[3] = {slope[0], slope[1], slope[2]};
      swapped[k] = rest;
      move[k] = determinant(swapped) / whole;
    }
    const double size = length(move);
    return size > longest ? move * (longest / size) : move;
  }

  static double determinant(const d4 *c) {
    return c[0][0] * (c[1][1] * c[2][2] - c[2][1] * c[1][2]) - c[1][0] * (c[0][1] * c[2][2] - c[2][1] * c[0][2]) +
           c[2][0] * (c[0][1] * c[1][2] - c[1][1] * c[0][2]);
  }

  // Improves `at` until the map takes it to `target`; returns the remaining distance
  double solve(d4 target, d4 &at) const {
    constexpr int64_t FIXED_POINT = 10;  // afterwards Newton's steps: where the map is steep, only they converge
    double error = std::numeric_limits<double>::infinity(), step = 1;
    d4 trial = at, rest = {};
    for (int64_t number = 0; number < iterations; ++number) {
      const d4 left = target - linear(trial) - remainder(trial);
      const double size = length(left);
      if (size < error) {
        at = trial, rest = left, error = size;
        step = step > 2.0 / 3 ? 1 : 1.5 * step;
      } else {
        step *= 0.5;
      }
      if (error < tolerance) break;
      trial = at + step * (number < FIXED_POINT ? back.turn(rest) : newton(at, rest));
    }
    return error;
  }
};

}  // namespace

// out[x] = image[end(start(x) + field(start(x)))], linear between voxels; `outside` beyond the image or the field. `start`
// maps voxels of `out` to the world, `to_field` the world to voxels of the field, which may be null, and `end` the world to
// voxels of the image. `lost` (one per slice) receives the number of voxels outside the field.
VW_EXPORT void VW_NAME(vw_transform_linear)(const float *image, const int64_t *image_shape, const double *start,
                                            const float *vectors, const int64_t *field_shape, const double *to_field,
                                            const double *end, const int64_t *shape, float outside, float *out,
                                            int64_t *lost, int64_t threads) {
  const Shape m(image_shape);
  for_each_source(
      m, Affine(start), vectors, field_shape, to_field, Affine(end), Shape(shape), lost, threads,
      [&](int64_t voxel, d4 point) { out[voxel] = read(image, Cell(m, point), 1, 0); },
      [&](int64_t voxel) { out[voxel] = outside; });
}

// The same, but `out` receives the number of the nearest voxel of the image, or -1
VW_EXPORT void VW_NAME(vw_transform_nearest)(const int64_t *image_shape, const double *start, const float *vectors,
                                             const int64_t *field_shape, const double *to_field, const double *end,
                                             const int64_t *shape, int64_t *out, int64_t *lost, int64_t threads) {
  const Shape m(image_shape);
  for_each_source(
      m, Affine(start), vectors, field_shape, to_field, Affine(end), Shape(shape), lost, threads,
      [&](int64_t voxel, d4 point) {
        const d4 near = point + 0.5;  // truncation is floor here
        out[voxel] = (int64_t(near[0]) * m.h + int64_t(near[1])) * m.w + int64_t(near[2]);
      },
      [&](int64_t voxel) { out[voxel] = -1; });
}

// The inverse of a field on a grid of the moving world, (D, H, W, 3) floats. `affine` is voxel -> world of the field and
// `like` that of the grid; `linear` is the field's linear part and `back` its inverse. Per slice of the grid, `worst`
// receives the largest remaining distance among points inside the field, `unsolved` the number of points beyond `limit`.
VW_EXPORT void VW_NAME(vw_transform_invert)(const float *vectors, const int64_t *field_shape, const double *affine,
                                            const double *to_field, const double *linear, const double *back,
                                            const double *like, const int64_t *shape, int64_t iterations,
                                            double tolerance, double limit, float *out, double *worst,
                                            int64_t *unsolved, int64_t threads) {
  const Shape n(shape);
  const Field field(vectors, field_shape, to_field);
  const Affine grid(like), world(affine);
  double finest = length(world.columns[0]);
  for (int k = 1; k < 3; ++k) finest = std::fmin(finest, length(world.columns[k]));
  const Inversion work{field, world, Affine(linear), Affine(back), iterations, tolerance, 2 * finest, field.n.last()};
  parallel_for(threads, n.d, [&](int64_t d, int64_t) {
    double most = 0;
    int64_t count = 0;
    d4 row_start = {}, offset = {};  // difference of the last solution from that of the linear part
    for (int64_t h = 0; h < n.h; ++h) {
      offset = row_start;
      for (int64_t w = 0; w < n.w; ++w) {
        const d4 target = grid(d4{double(d), double(h), double(w), 0}), straight = work.back(target);
        d4 found = straight + offset;  // the neighbour's solution is a good start
        double error = work.solve(target, found);
        if (error >= tolerance) {
          d4 other = straight;
          const double again = work.solve(target, other);
          if (again < error) error = again, found = other;
        }
        offset = error < tolerance ? found - straight : d4{};
        if (w == 0) row_start = offset;
        float *place = out + 3 * ((d * n.h + h) * n.w + w);
        for (int k = 0; k < 3; ++k) place[k] = float(found[k] - target[k]);
        if (within(field.to_voxel(found), work.last)) {
          if (error > most) most = error;
          if (error > limit) ++count;
        }
      }
    }
    worst[d] = most, unsolved[d] = count;
  });
}
