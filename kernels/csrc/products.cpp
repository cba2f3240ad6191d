// The product of a small matrix with a wide one on the CPU: out (m, n) = a (m, k) b (k, n), where n is large. It is compiled
// once per instruction-set level; kernels/products.py calls it. No result depends on the number of threads.
//
// A panel of columns of the wide matrix is copied into the cache and multiplied with all rows of the small one. Its rows are
// far apart in memory, often by a power of two, which a general product (MKL) reads at half of this speed.

#include <cstdint>

#include "export.h"
#include "lanes.h"
#include "products.h"
#include "threads.h"

extern "C" {
// Sizes of one call, mirrored in kernels/products.py
struct Product {
  int64_t rows, depth, columns;
  int64_t a_row, a_step;      // distance of neighbouring rows and columns of the small matrix
  int64_t b_row, out_row;     // of neighbouring rows of the wide matrix and of the result
  int64_t add;                // to what `out` holds
  int64_t threads;
  float *scratch;  // vw_product_scratch floats
};
}

namespace {

constexpr int PANEL = 256;  // columns; 64 measured 5 % slower, 16 30 %

INLINE int64_t strips(int64_t rows) { return (rows + ROWS - 1) / ROWS; }

// The small matrix in strips of ROWS rows, [strip][k][row], zeros after the last row
void pack(const Product &s, const float *a, float *packed) {
  for (int64_t strip = 0; strip < strips(s.rows); ++strip)
    for (int64_t k = 0; k < s.depth; ++k)
      for (int i = 0; i < ROWS; ++i) {
        const int64_t row = strip * ROWS + i;
        packed[(strip * s.depth + k) * ROWS + i] = row < s.rows ? a[row * s.a_row + k * s.a_step] : 0;
      }
}

void multiply_panel(const Product &s, const float *packed, const float *b, int64_t columns, float *out, float *panel) {
  const int64_t parts = (columns + COLUMNS - 1) / COLUMNS, whole = columns / W * W;
  for (int64_t k = 0; k < s.depth; ++k) {
    const float *row = b + k * s.b_row;
    auto place = [&](int64_t n) { return panel + (n / COLUMNS * s.depth + k) * COLUMNS + n % COLUMNS; };
    for (int64_t n = 0; n < whole; n += W) store(place(n), load(row + n));
    for (int64_t n = whole; n < parts * COLUMNS; n += W)
      store(place(n), n < columns ? load_first(row + n, columns - n) : vf{});
  }
  for (int64_t strip = 0; strip < strips(s.rows); ++strip) {
    const int64_t first = strip * ROWS, count = s.rows - first < ROWS ? s.rows - first : ROWS;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t column = part * COLUMNS, lanes = columns - column;
      const Rows rows{{packed + strip * s.depth * ROWS}, 1, 1, ROWS, s.depth};
      multiply_rows(count, rows, panel + part * s.depth * COLUMNS, [&](int64_t i, vf low, vf high) {
        float *p = out + (first + i) * s.out_row + column;
        if (s.add) low += load_first(p, lanes);
        store_first(p, low, lanes);
        if (lanes <= W) return;
        if (s.add) high += load_first(p + W, lanes - W);
        store_first(p + W, high, lanes - W);
      });
    }
  }
}

INLINE int64_t packed_size(const Product &s) { return strips(s.rows) * s.depth * ROWS / 16 * 16 + 16; }

}  // namespace

// Floats of Product::scratch
VW_EXPORT int64_t VW_NAME(vw_product_scratch)(const Product *s) { return packed_size(*s) + s->threads * s->depth * PANEL; }

VW_EXPORT void VW_NAME(vw_product)(const Product *s, const float *a, const float *b, float *out) {
  float *panels = s->scratch + packed_size(*s);
  pack(*s, a, s->scratch);
  parallel_for(s->threads, (s->columns + PANEL - 1) / PANEL, [&](int64_t number, int64_t thread) {
    const int64_t first = number * PANEL, left = s->columns - first;
    multiply_panel(*s, s->scratch, b + first, left < PANEL ? left : PANEL, out + first, panels + thread * s->depth * PANEL);
  });
}
