// The normalised mutual information of two images under a linear map, from samples of the fixed image, and its
// derivative with respect to the map. kernels/information.py calls it; registration/linear.py has the same in plain PyTorch.
//
// Samples are taken in chunks of a fixed size, whose sums are added in order, so that no result depends on the number of
// threads.

#include <cmath>
#include <cstdint>
#include <vector>

#include "export.h"
#include "threads.h"

namespace {

constexpr int64_t BLOCK = 64, CHUNK = 64 * BLOCK;
constexpr int64_t BINS = 32, COLUMNS = BINS + 3;  // the spline of bin b is centred on column b + 1
constexpr int64_t CELLS = BINS * COLUMNS;
constexpr int64_t LANES = 8;
constexpr float RAMP = 2;  // voxels over which the weight falls to 0 at the border of the moving image

// What the second pass needs of a block of samples
struct Block {
  float weight[BLOCK], fraction[BLOCK];  // of the sample; of its grey value after the bin below
  float by_position[3][BLOCK], by_place[3][BLOCK];  // derivatives of grey value and weight by the voxel coordinates
  int32_t cell[BLOCK];  // of the joint histogram: row of the fixed value, first of four columns
};

// The moving image as the samples see it
struct Grid {
  int64_t shape[3], stride[3], step[3];
  float last[3], last_cell[3], end[3], per_width[3];
  explicit Grid(const int64_t *n) {
    stride[0] = n[1] * n[2], stride[1] = n[2], stride[2] = 1;
    for (int a = 0; a < 3; ++a) {
      const float size = float(n[a]), width = size / 4 < RAMP ? size / 4 : RAMP;
      shape[a] = n[a], step[a] = n[a] > 1 ? stride[a] : 0;
      last[a] = size - 1, last_cell[a] = n[a] > 1 ? size - 2 : 0, end[a] = size - 0.5f, per_width[a] = 1 / width;
    }
  }
};

// Voxel coordinates of a block of points
INLINE void transform(const double *points, int64_t count, const double *map, int64_t n, float (*voxel)[BLOCK]) {
  for (int a = 0; a < 3; ++a) {
    const double *m = map + 4 * a;
    for (int64_t b = 0; b < n; ++b)
      voxel[a][b] = float(m[0] * points[b] + m[1] * points[count + b] + m[2] * points[2 * count + b] + m[3]);
    for (int64_t b = n; b < BLOCK; ++b) voxel[a][b] = -4;  // outside: weight 0
  }
}

// The weight rises from 0, half a voxel outside the image, to 1
INLINE void weigh(const Grid &grid, const float (*voxel)[BLOCK], Block &block) {
  float along[3][BLOCK], slope[3][BLOCK];
  for (int a = 0; a < 3; ++a)
    for (int64_t b = 0; b < BLOCK; ++b) {
      const float low = (voxel[a][b] + 0.5f) * grid.per_width[a], high = (grid.end[a] - voxel[a][b]) * grid.per_width[a];
      const float least = low < high ? low : high;
      const float sign = low < high ? grid.per_width[a] : -grid.per_width[a];
      slope[a][b] = least > 0 && least < 1 ? sign : 0;
      along[a][b] = least > 0 ? (least < 1 ? least : 1) : 0;
    }
  for (int64_t b = 0; b < BLOCK; ++b) {
    block.weight[b] = along[0][b] * along[1][b] * along[2][b];
    block.by_place[0][b] = slope[0][b] * along[1][b] * along[2][b];
    block.by_place[1][b] = along[0][b] * slope[1][b] * along[2][b];
    block.by_place[2][b] = along[0][b] * along[1][b] * slope[2][b];
  }
}

// Cells of the image and positions in them; a point outside is moved to the border
INLINE void locate(const Grid &grid, const float (*voxel)[BLOCK], int32_t *first, float (*within)[BLOCK]) {
  for (int64_t b = 0; b < BLOCK; ++b) first[b] = 0;
  for (int a = 0; a < 3; ++a)
    for (int64_t b = 0; b < BLOCK; ++b) {
      float place = voxel[a][b] > 0 ? voxel[a][b] : 0;
      place = place < grid.last[a] ? place : grid.last[a];
      const int32_t index = int32_t(place < grid.last_cell[a] ? place : grid.last_cell[a]);
      within[a][b] = place - float(index);
      first[b] += index * int32_t(grid.stride[a]);
    }
}

// Linear interpolation in a block, and its exact derivative
INLINE void interpolate(const Grid &grid, const float *image, const int32_t *first, const float (*within)[BLOCK],
                        float *value, float (*slope)[BLOCK]) {
  const int64_t d = grid.step[0], h = grid.step[1], w = grid.step[2];
  float corner[8][BLOCK];
  for (int64_t b = 0; b < BLOCK; ++b) {
    const float *p = image + first[b], *q = p + d;
    corner[0][b] = p[0], corner[1][b] = p[w], corner[2][b] = p[h], corner[3][b] = p[h + w];
    corner[4][b] = q[0], corner[5][b] = q[w], corner[6][b] = q[h], corner[7][b] = q[h + w];
  }
  for (int64_t b = 0; b < BLOCK; ++b) {
    const float td = within[0][b], th = within[1][b], tw = within[2][b];
    const float along0 = corner[1][b] - corner[0][b], along1 = corner[3][b] - corner[2][b];
    const float along2 = corner[5][b] - corner[4][b], along3 = corner[7][b] - corner[6][b];
    const float near = corner[0][b] + tw * along0, near_h = corner[2][b] + tw * along1;
    const float far = corner[4][b] + tw * along2, far_h = corner[6][b] + tw * along3;
    const float low = near + th * (near_h - near), high = far + th * (far_h - far);
    const float low_w = along0 + th * (along1 - along0), high_w = along2 + th * (along3 - along2);
    value[b] = low + td * (high - low);
    slope[0][b] = high - low;
    slope[1][b] = (near_h - near) + td * ((far_h - far) - (near_h - near));
    slope[2][b] = low_w + td * (high_w - low_w);
  }
}

// The four cubic B-spline weights of a value at t in [0, 1) after a bin, and their derivatives
INLINE void spline(float t, float *share) {
  const float s = 1 - t;
  share[0] = s * s * s * (1.0f / 6), share[3] = t * t * t * (1.0f / 6);
  share[1] = 2.0f / 3 - t * t + 0.5f * t * t * t;
  share[2] = (1 + 3 * t + 3 * t * t - 3 * t * t * t) * (1.0f / 6);
}

INLINE void spline_slope(float t, float *slope) {
  const float s = 1 - t;
  slope[0] = -0.5f * s * s, slope[1] = 1.5f * t * t - 2 * t, slope[2] = 0.5f + t - 1.5f * t * t, slope[3] = 0.5f * t * t;
}

struct Histogram {
  double cells[2][CELLS] = {};  // of even and odd samples, since equal cells follow each other
  double total = 0;
  int64_t used = 0;
};

struct Sums {
  double by_map[12] = {};    // sum over samples of the derivative by the voxel, times the point and 1
  double by_weight[12] = {};  // the same of the derivative of the weights
  double mean = 0;
};

struct Samples {
  const double *points;  // (3, count)
  const int32_t *rows;   // (count,) first cell of the row of each fixed value
  const float *image, *mask;
  const double *map;
  int64_t count;
  Grid grid;

  void fill(int64_t chunk, Histogram &histogram, Block *blocks) const {
    float voxel[3][BLOCK], within[3][BLOCK], grey[BLOCK], seen[BLOCK], unused[3][BLOCK];
    int32_t first[BLOCK];
    const int64_t begin = chunk * CHUNK, end = begin + CHUNK < count ? begin + CHUNK : count;
    for (int64_t start = begin; start < end; start += BLOCK) {
      Block &block = blocks[start / BLOCK];
      const int64_t n = end - start < BLOCK ? end - start : BLOCK;
      transform(points + start, count, map, n, voxel);
      weigh(grid, voxel, block);
      locate(grid, voxel, first, within);
      interpolate(grid, image, first, within, grey, block.by_position);
      if (mask) {
        interpolate(grid, mask, first, within, seen, unused);
        for (int64_t b = 0; b < BLOCK; ++b) block.weight[b] = seen[b] > 0.5f ? block.weight[b] : 0;
      }
      for (int64_t b = 0; b < n; ++b) {
        const float bin = std::floor(grey[b]);
        block.fraction[b] = grey[b] - bin;
        block.cell[b] = rows[start + b] + int32_t(bin < 0 ? 0 : bin > BINS - 1 ? float(BINS - 1) : bin);
      }
      for (int64_t b = n; b < BLOCK; ++b) block.fraction[b] = 0, block.cell[b] = 0;
      for (int64_t b = 0; b < n; ++b) {
        const float weight = block.weight[b];
        if (!(weight > 0)) continue;
        float share[4];
        spline(block.fraction[b], share);
        double *cell = histogram.cells[b & 1] + block.cell[b];
        for (int k = 0; k < 4; ++k) cell[k] += double(share[k] * weight);
        histogram.total += weight, ++histogram.used;
      }
    }
  }

  void differentiate(int64_t chunk, const float *by_cell, const Block *blocks, Sums &sums) const {
    double by_map[12][LANES] = {}, by_weight[12][LANES] = {}, mean[LANES] = {};
    const int64_t begin = chunk * CHUNK, end = begin + CHUNK < count ? begin + CHUNK : count;
    for (int64_t start = begin; start < end; start += BLOCK) {
      const Block &block = blocks[start / BLOCK];
      const int64_t n = end - start < BLOCK ? end - start : BLOCK;
      float grey[BLOCK] = {}, own[BLOCK] = {}, used[BLOCK] = {};
      for (int64_t b = 0; b < n; ++b) {
        if (!(block.weight[b] > 0)) continue;
        float share[4], slope[4];
        spline(block.fraction[b], share), spline_slope(block.fraction[b], slope);
        const float *p = by_cell + block.cell[b];
        grey[b] = block.weight[b] * (slope[0] * p[0] + slope[1] * p[1] + slope[2] * p[2] + slope[3] * p[3]);
        own[b] = share[0] * p[0] + share[1] * p[1] + share[2] * p[2] + share[3] * p[3];
        used[b] = 1;
      }
      double place[4][BLOCK];  // the point and 1
      for (int64_t b = 0; b < BLOCK; ++b) {
        const bool present = b < n;
        for (int c = 0; c < 3; ++c) place[c][b] = present ? points[c * count + start + b] : 0;
        place[3][b] = 1;
      }
      for (int64_t b = 0; b < BLOCK; b += LANES) {
        for (int64_t l = 0; l < LANES; ++l) mean[l] += double(own[b + l] * block.weight[b + l]);
        for (int a = 0; a < 3; ++a)
          for (int c = 0; c < 4; ++c)
            for (int64_t l = 0; l < LANES; ++l) {
              const float border = used[b + l] * block.by_place[a][b + l];
              const float all = grey[b + l] * block.by_position[a][b + l] + own[b + l] * border;
              by_map[4 * a + c][l] += double(all) * place[c][b + l];
              by_weight[4 * a + c][l] += double(border) * place[c][b + l];
            }
      }
    }
    for (int64_t l = 0; l < LANES; ++l) {
      sums.mean += mean[l];
      for (int k = 0; k < 12; ++k) sums.by_map[k] += by_map[k][l], sums.by_weight[k] += by_weight[k][l];
    }
  }
};

double entropy_of(const double *shares, int64_t n, double *logs) {
  double entropy = 0;
  for (int64_t i = 0; i < n; ++i) {
    logs[i] = std::log(shares[i] > 1e-12 ? shares[i] : 1e-12);
    entropy -= shares[i] * logs[i];
  }
  return entropy;
}

}  // namespace

// `points` (3, count) are mapped by `map` (3, 4) to voxels of `image` (shape), whose values are bins from 0 to 31;
// `rows` holds 35 * the bin of each fixed value. `mask` may be null; else only points where it exceeds a half are used.
// `result` receives the value, the sum of the weights, the number of samples in the overlap, and, if `with_slope`, the
// derivative of the value with respect to the map (3, 4). With fewer than `least` samples in the overlap, the value is 1
// and the derivative 0.
VW_EXPORT void VW_NAME(vw_information_linear)(const double *points, const int32_t *rows, int64_t count,
                                               const float *image, const float *mask, const int64_t *shape,
                                               const double *map, int64_t least, int64_t with_slope, double *result,
                                               int64_t threads) {
  const Samples samples{points, rows, image, mask, map, count, Grid(shape)};
  const int64_t chunks = (count + CHUNK - 1) / CHUNK;
  std::vector<Block> blocks((count + BLOCK - 1) / BLOCK);
  std::vector<Histogram> histograms(chunks);
  parallel_for(threads, chunks, [&](int64_t chunk, int64_t) { samples.fill(chunk, histograms[chunk], blocks.data()); });
  Histogram all;
  for (const Histogram &one : histograms) {
    all.total += one.total, all.used += one.used;
    for (int64_t i = 0; i < CELLS; ++i) all.cells[0][i] += one.cells[0][i] + one.cells[1][i];
  }
  result[0] = 1, result[1] = all.total, result[2] = double(all.used);
  for (int k = 0; k < 12; ++k) result[3 + k] = 0;
  if (all.used < least) return;

  std::vector<double> joint(CELLS), logs(CELLS);
  double fixed[BINS] = {}, moving[COLUMNS] = {}, log_fixed[BINS], log_moving[COLUMNS];
  for (int64_t r = 0; r < BINS; ++r)
    for (int64_t c = 0; c < COLUMNS; ++c) {
      const double share = joint[r * COLUMNS + c] = all.cells[0][r * COLUMNS + c] / all.total;
      fixed[r] += share, moving[c] += share;
    }
  const double entropy = entropy_of(joint.data(), CELLS, logs.data());
  if (entropy <= 1e-9) return;
  const double value = (entropy_of(fixed, BINS, log_fixed) + entropy_of(moving, COLUMNS, log_moving)) / entropy;
  result[0] = value;
  if (!with_slope) return;

  // d entropy / d p = -log p - 1; the constants cancel, since the shares of a sample sum to 1
  std::vector<float> by_cell(CELLS);
  for (int64_t r = 0; r < BINS; ++r)
    for (int64_t c = 0; c < COLUMNS; ++c)
      by_cell[r * COLUMNS + c] = float((value * logs[r * COLUMNS + c] - log_fixed[r] - log_moving[c]) / entropy);
  std::vector<Sums> sums(chunks);
  parallel_for(threads, chunks, [&](int64_t chunk, int64_t) {
    samples.differentiate(chunk, by_cell.data(), blocks.data(), sums[chunk]);
  });
  Sums whole;
  for (const Sums &one : sums) {
    whole.mean += one.mean;
    for (int k = 0; k < 12; ++k) whole.by_map[k] += one.by_map[k], whole.by_weight[k] += one.by_weight[k];
  }
  const double mean = whole.mean / all.total;
  for (int k = 0; k < 12; ++k) result[3 + k] = (whole.by_map[k] - mean * whole.by_weight[k]) / all.total;
}
