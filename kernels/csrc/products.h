// Products of matrices whose one side is small, in tiles of ROWS x (2 W) sums that stay in registers.

#pragma once

#include <cstdint>

#include "lanes.h"

namespace {

constexpr int ROWS = VW_LANES == 16 ? 12 : 6;  // 12 sums of two vectors fill the registers of AVX2, 24 of 32 those of AVX-512
constexpr int COLUMNS = 2 * W;

// sums of a[i * row + k * step] * b[k][.] over k, for N rows and COLUMNS columns; b is packed, COLUMNS numbers for each k
template <int N>
INLINE void multiply(const float *a, int64_t row, int64_t step, const float *b, int64_t depth, vf (*sums)[2]) {
  for (int i = 0; i < N; ++i) sums[i][0] = sums[i][1] = vf{};
  for (int64_t k = 0; k < depth; ++k) {
    const vf low = load(b + k * COLUMNS), high = load(b + k * COLUMNS + W);
    for (int i = 0; i < N; ++i) {
      const vf factor = splat(a[i * row + k * step]);
      sums[i][0] += factor * low, sums[i][1] += factor * high;
    }
  }
}

template <int N, class Use>
INLINE void multiply_and_use(const float *a, int64_t row, int64_t step, const float *b, int64_t depth, const Use &use) {
  vf sums[N][2];
  multiply<N>(a, row, step, b, depth, sums);
  for (int i = 0; i < N; ++i) use(i, sums[i][0], sums[i][1]);
}

// Calls use(row, low, high) with the sums of `count` rows, at most ROWS
template <class Use>
INLINE void multiply_rows(int64_t count, const float *a, int64_t row, int64_t step, const float *b, int64_t depth,
                          const Use &use) {
  if (count == ROWS) return multiply_and_use<ROWS>(a, row, step, b, depth, use);
  int64_t i = 0;
  auto rest = [&](int64_t from) { return [&use, from](int64_t r, vf low, vf high) { use(from + r, low, high); }; };
  for (; i + 4 <= count; i += 4) multiply_and_use<4>(a + i * row, row, step, b, depth, rest(i));
  for (; i + 2 <= count; i += 2) multiply_and_use<2>(a + i * row, row, step, b, depth, rest(i));
  for (; i < count; ++i) multiply_and_use<1>(a + i * row, row, step, b, depth, rest(i));
}

}  // namespace
