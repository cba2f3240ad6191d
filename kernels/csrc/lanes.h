// Vectors of floats of the widest kind of the instruction-set level, and 2^x for them.

#pragma once

#include <cstdint>

#include "export.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// The native vector width; on an AVX2 target, 16 lanes were 7 times slower than 8 because registers spill.
#if defined(__AVX512F__)
#define VW_LANES 16
#elif defined(__AVX2__)
#define VW_LANES 8
#else
#define VW_LANES 4
#endif

namespace {

constexpr int W = VW_LANES;
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

typedef float vf __attribute__((vector_size(4 * VW_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * VW_LANES)));

INLINE vf splat(float x) { return x - vf{}; }
INLINE vf load(const float *p) { vf v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }

INLINE vf load_first(const float *p, int64_t n) {
  if (n >= W) return load(p);
#if VW_LANES == 16
  return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif VW_LANES == 8
  const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (vf)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), numbers));
#else
  vf v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

INLINE void store_first(float *p, vf v, int64_t n) {
  if (n >= W) return store(p, v);
#if VW_LANES == 16
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// The first n lanes; the others are 0
INLINE vf first_lanes(vf v, int64_t n) {
  vi numbers;
  for (int i = 0; i < W; ++i) numbers[i] = i;
  return (vf)((vi)v & (numbers < (int32_t)n));
}

INLINE float sum_of_lanes(vf v) {
  float sum = 0;
  for (int i = 0; i < W; ++i) sum += v[i];
  return sum;
}

INLINE vf at_least(vf lowest, vf x) {  // NaN stays NaN
#if VW_LANES == 8
  return (vf)_mm256_max_ps((__m256)lowest, (__m256)x);
#elif VW_LANES == 4 && defined(__x86_64__)
  return (vf)_mm_max_ps((__m128)lowest, (__m128)x);
#else
  return lowest > x ? lowest : x;
#endif
}

INLINE vf at_most(vf highest, vf x) {
#if VW_LANES == 8
  return (vf)_mm256_min_ps((__m256)highest, (__m256)x);
#elif VW_LANES == 4 && defined(__x86_64__)
  return (vf)_mm_min_ps((__m128)highest, (__m128)x);
#else
  return highest < x ? highest : x;
#endif
}

// The exponentials below process N vectors step by step: the steps of one vector wait for each other, and processors look
// for independent work among the next few dozen instructions only.

// 2^f on [-1/2, 1/2], relative error 9e-8; exactly 1 at 0, since the error of a decay near 1 grows with every step.
template <int N>
INLINE void exp2_fractions(const vf *f, vf *p) {
  constexpr float factors[] = {9.671512676e-03f, 5.550733745e-02f, 2.402224208e-01f, 6.931469776e-01f, 1.0f};
  for (int i = 0; i < N; ++i) p[i] = splat(1.326472668e-03f);
  for (const float factor : factors)
    for (int i = 0; i < N; ++i) p[i] = p[i] * f[i] + factor;
}

// 2^x for finite x; 0 or 2^-126 below -126, inf above 128, NaN for NaN. With NEGATIVE, no x is above 0.
template <int N, bool NEGATIVE = false>
INLINE void exp2_all(vf *x) {
  vf f[N], p[N];
#if VW_LANES == 16
  // reduce_ps would save the subtraction, but takes 6 ns on Zen 4; all of this takes 1.6 ns
  __m512 r[N];
  for (int i = 0; i < N; ++i) r[i] = _mm512_roundscale_ps((__m512)x[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  for (int i = 0; i < N; ++i) f[i] = x[i] - (vf)r[i];
  exp2_fractions<N>(f, p);
  for (int i = 0; i < N; ++i) x[i] = (vf)_mm512_scalef_ps((__m512)p[i], r[i]);
#else
  vf shifted[N];
  for (int i = 0; i < N; ++i) x[i] = at_least(splat(-126.0f), x[i]);
  for (int i = 0; !NEGATIVE && i < N; ++i) x[i] = at_most(splat(128.0f), x[i]);
  for (int i = 0; i < N; ++i) shifted[i] = x[i] + 12582912.0f;  // rounds to the nearest integer, in the low bits
  for (int i = 0; i < N; ++i) f[i] = shifted[i] - 12582912.0f;
  for (int i = 0; i < N; ++i) f[i] = x[i] - f[i];
  exp2_fractions<N>(f, p);
  for (int i = 0; i < N; ++i) x[i] = (vf)((vi)p[i] + ((vi)shifted[i] << 23));
#endif
}

INLINE vf exp2_fraction(vf f) {
  vf p;
  exp2_fractions<1>(&f, &p);
  return p;
}

INLINE vf exp2_lanes(vf x) {
  exp2_all<1>(&x);
  return x;
}

// 2^x for x <= 0; exactly 0 below -125 and for -inf, NaN for NaN
INLINE vf share(vf x) {
  const vf zero = {};
  return x < -125.0f ? zero : exp2_lanes(x);
}

}  // namespace
