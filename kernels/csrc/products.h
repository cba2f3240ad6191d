// Products of matrices whose one side is small, in tiles of ROWS x (2 W) sums that stay in registers.

#pragma once

#include <cstdint>

#include "lanes.h"

namespace {

constexpr int ROWS = VW_LANES == 16 ? 12 : 6;  // 12 sums of two vectors fill the registers of AVX2, 24 of 32 those of AVX-512
constexpr int COLUMNS = 2 * W;

// The small matrix of a product: number k of row i is part[k / depth][i * row + k % depth * step].
struct Rows {
  const float *part[3];
  int64_t parts, row, step, depth;
};

// out[i] = sums over k of number k of row first + i, times b[k][.], for N rows and COLUMNS columns; b is packed, COLUMNS
// numbers for each k. It is not inlined: beside other code, compilers move the sums to the stack.
template <int N>
__attribute__((noinline)) void multiply(const Rows &a, int64_t first, const float *b, float *out) {
  vf sums[N][2] = {};
  const int64_t row = a.row, step = a.step;
  for (int64_t part = 0; part < a.parts; ++part) {
    const float *p = a.part[part] + first * row;
    for (int64_t k = 0; k < a.depth; ++k, b += COLUMNS) {
      const vf low = load(b), high = load(b + W);
      for (int i = 0; i < N; ++i) {
        const vf factor = splat(p[i * row + k * step]);
        sums[i][0] += factor * low, sums[i][1] += factor * high;
      }
    }
  }
  for (int i = 0; i < N; ++i) store(out + i * COLUMNS, sums[i][0]), store(out + i * COLUMNS + W, sums[i][1]);
}

// Calls use(row, low, high) with the sums of `count` rows, at most ROWS
template <class Use>
INLINE void multiply_rows(int64_t count, const Rows &a, const float *b, const Use &use) {
  alignas(64) float sums[ROWS * COLUMNS];
  int64_t i = 0;
  if (count == ROWS) multiply<ROWS>(a, 0, b, sums), i = ROWS;
  for (; i + 4 <= count; i += 4) multiply<4>(a, i, b, sums + i * COLUMNS);
  for (; i + 2 <= count; i += 2) multiply<2>(a, i, b, sums + i * COLUMNS);
  for (; i < count; ++i) multiply<1>(a, i, b, sums + i * COLUMNS);
  for (i = 0; i < count; ++i) use(i, load(sums + i * COLUMNS), load(sums + i * COLUMNS + W));
}

}  // namespace
