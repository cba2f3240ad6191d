// Vectors of the widest kind of the instruction-set level, and 2^x for them. Their numbers are floats, or doubles in files
// that define VW_DOUBLE.

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

#if defined(VW_DOUBLE)
typedef double real;
typedef int64_t integer;
constexpr int W = VW_LANES / 2;
constexpr int MANTISSA = 52;                  // bits
constexpr real ROUNDING = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, in the low bits of the sum
constexpr real LEAST = -1022, MOST = 1024;     // exponents
#else
typedef float real;
typedef int32_t integer;
constexpr int W = VW_LANES;
constexpr int MANTISSA = 23;
constexpr real ROUNDING = 12582912.0f;  // 1.5 * 2^23
constexpr real LEAST = -126, MOST = 128;
#endif
constexpr real LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

typedef real vf __attribute__((vector_size(4 * VW_LANES)));
typedef integer vi __attribute__((vector_size(4 * VW_LANES)));

INLINE vf splat(real x) { return x - vf{}; }
INLINE vf load(const real *p) { vf v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE void store(real *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }

// a * b + c. GCC 12 forms a multiply-add from operators only after it has moved the product or the sum, here out of the
// loops of the scan, which then save registers to memory.
INLINE vf multiply_add(vf a, vf b, vf c) {
#if VW_LANES == 16 && !defined(VW_DOUBLE)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

INLINE vf load_first(const real *p, int64_t n) {
  if (n >= W) return load(p);
#if defined(VW_DOUBLE)
  vf v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#elif VW_LANES == 16
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

INLINE void store_first(real *p, vf v, int64_t n) {
  if (n >= W) return store(p, v);
#if VW_LANES == 16 && !defined(VW_DOUBLE)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// The first n lanes; the others are 0
INLINE vf first_lanes(vf v, int64_t n) {
  vi numbers;
  for (int i = 0; i < W; ++i) numbers[i] = i;
  return (vf)((vi)v & (numbers < (integer)n));
}

INLINE real sum_of_lanes(vf v) {
#if VW_LANES == 16 && !defined(VW_DOUBLE)
  return _mm512_reduce_add_ps((__m512)v);
#elif VW_LANES == 8 && !defined(VW_DOUBLE)
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  real sum = 0;
  for (int i = 0; i < W; ++i) sum += v[i];
  return sum;
#endif
}

INLINE vf at_least(vf lowest, vf x) {  // NaN stays NaN
#if defined(VW_DOUBLE)
  return lowest > x ? lowest : x;
#elif VW_LANES == 16
  return (vf)_mm512_max_ps((__m512)lowest, (__m512)x);
#elif VW_LANES == 8
  return (vf)_mm256_max_ps((__m256)lowest, (__m256)x);
#elif VW_LANES == 4 && defined(__x86_64__)
  return (vf)_mm_max_ps((__m128)lowest, (__m128)x);
#else
  return lowest > x ? lowest : x;
#endif
}

INLINE vf at_most(vf highest, vf x) {
#if defined(VW_DOUBLE)
  return highest < x ? highest : x;
#elif VW_LANES == 16
  return (vf)_mm512_min_ps((__m512)highest, (__m512)x);
#elif VW_LANES == 8
  return (vf)_mm256_min_ps((__m256)highest, (__m256)x);
#elif VW_LANES == 4 && defined(__x86_64__)
  return (vf)_mm_min_ps((__m128)highest, (__m128)x);
#else
  return highest < x ? highest : x;
#endif
}

// The exponentials below process N vectors step by step: the steps of one vector wait for each other, and processors look
// for independent work among the next few dozen instructions only.

// 2^f on [-1/2, 1/2], relative error 9e-8, or 3e-16 for doubles; exactly 1 at 0, since the error of a decay near 1 grows
// with every step.
template <int N>
INLINE void exp2_fractions(const vf *f, vf *p) {
#if defined(VW_DOUBLE)
  constexpr real first = 4.4549605981865186e-10;
  constexpr real factors[] = {7.072585949269223e-09, 1.0178062445845774e-07, 1.321544258792169e-06, 1.525273382983612e-05,
                              1.540353044173605e-04, 1.3333558146416936e-03, 9.618129107606888e-03, 5.55041086648216e-02,
                              2.4022650695910097e-01, 6.931471805599453e-01, 1.0};
#else
  constexpr real first = 1.326472668e-03f;
  constexpr real factors[] = {9.671512676e-03f, 5.550733745e-02f, 2.402224208e-01f, 6.931469776e-01f, 1.0f};
#endif
  for (int i = 0; i < N; ++i) p[i] = splat(first);
  for (const real factor : factors)
    for (int i = 0; i < N; ++i) p[i] = p[i] * f[i] + factor;
}

#if VW_LANES == 16 && !defined(VW_DOUBLE)
INLINE __m512 nearest(vf x) { return _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#else
// 2^x for LEAST <= x <= MOST, or NaN
template <int N>
INLINE void exp2_bounded(vf *x) {
  vf f[N], p[N], shifted[N];
  for (int i = 0; i < N; ++i) shifted[i] = x[i] + ROUNDING;
  for (int i = 0; i < N; ++i) f[i] = shifted[i] - ROUNDING;
  for (int i = 0; i < N; ++i) f[i] = x[i] - f[i];
  exp2_fractions<N>(f, p);
  for (int i = 0; i < N; ++i) x[i] = (vf)((vi)p[i] + ((vi)shifted[i] << MANTISSA));
}
#endif

// 2^x for finite x; 0 or 2^LEAST below LEAST, inf above MOST, NaN for NaN
template <int N>
INLINE void exp2_all(vf *x) {
#if VW_LANES == 16 && !defined(VW_DOUBLE)
  // reduce_ps would save the subtraction, but takes 6 ns on Zen 4; all of this takes 1.6 ns
  vf f[N], p[N];
  __m512 r[N];
  for (int i = 0; i < N; ++i) r[i] = nearest(x[i]);
  for (int i = 0; i < N; ++i) f[i] = x[i] - (vf)r[i];
  exp2_fractions<N>(f, p);
  for (int i = 0; i < N; ++i) x[i] = (vf)_mm512_scalef_ps((__m512)p[i], r[i]);
#else
  for (int i = 0; i < N; ++i) x[i] = at_least(splat(LEAST), x[i]);
  for (int i = 0; i < N; ++i) x[i] = at_most(splat(MOST), x[i]);
  exp2_bounded<N>(x);
#endif
}

#if VW_LANES == 16 && !defined(VW_DOUBLE)
// Bits of 2^(k / 32), less k << (MANTISSA - 5), for k = 0 .. 31
alignas(64) const int32_t exp2_table[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};

// Element k of a table of 32 for the integer k in the low 5 bits of each lane
INLINE vf look_up(const void *table, vf k) {
  const __m512 low = _mm512_load_ps(table), high = _mm512_load_ps((const float *)table + 16);
  return (vf)_mm512_permutex2var_ps(low, (__m512i)k, high);
}

// The bits of a table's element k, to whose exponent the multiples of 32 in k are added
INLINE vf scaled(const void *table, vf k) { return (vf)((vi)look_up(table, k) + ((vi)k << (MANTISSA - 5))); }

// 2^(k / 32 + f) for |f| <= 1 / 64; k is the sum of an integer and ROUNDING, whose ulp counts as 1
template <int N>
INLINE void exp2_thirty_seconds(const vf *k, const vf *f, vf *x) {
  vf p[N];
  for (int i = 0; i < N; ++i) x[i] = scaled(exp2_table, k[i]);
  for (int i = 0; i < N; ++i) p[i] = f[i] * 0.240219f + 0.6931489f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * f[i] + 1.0f;
  for (int i = 0; i < N; ++i) x[i] = x[i] * p[i];
}

// Bits of SCALE * 2^((k - 46) / 32), less k << (MANTISSA - 5), for k = 0 .. 31; see exp2_products
alignas(64) const int32_t decay_table[32] = {
    0x3db481f3, 0x3db475d1, 0x3db47fd6, 0x3db4a081, 0x3db4d84e, 0x3db527c1, 0x3db58f5d, 0x3db60faa,
    0x3db6a933, 0x3db75c85, 0x3db82a30, 0x3db912c8, 0x3dba16e4, 0x3dbb371e, 0x3dbc7413, 0x3dbdce68,
    0x3dbf46bc, 0x3dbe6ede, 0x3dbd4a08, 0x3dbc3535, 0x3dbb30be, 0x3dba3cff, 0x3db95a56, 0x3db88923,
    0x3db7c9c8, 0x3db71ca8, 0x3db68229, 0x3db5fab5, 0x3db586b6, 0x3db52698, 0x3db4dacc, 0x3db4a3c4};
#endif

// 2^(a * b[i]) for |a * b[i]| < 125, or NaN; exactly 1 at 0 as above. Relative error 4.3e-7 with AVX-512 in float,
// besides the rounding of a * b[i].
template <int N>
INLINE void exp2_products(vf a, const vf *b, vf *x) {
#if VW_LANES == 16 && !defined(VW_DOUBLE)
  // On Zen 4 multiplications have two pipes of four. With its square completed, a polynomial of degree 2 takes a single
  // multiply-add: 2^f = ((f + SHIFT)^2 + REST) * SCALE, where the table contains SCALE = 1 / (SHIFT^2 + REST) = 0.2387. f
  // lies between -0.0297 and 0.0016, since a * b + SHIFT is rounded to a multiple of 1 / 32, and SHIFT is near 46 / 32.
  constexpr float SHIFT = 1.4517749547958374f, REST = 2.081286668777466f;
  vf f[N], p[N], k[N];
  for (int i = 0; i < N; ++i) f[i] = multiply_add(a, b[i], splat(SHIFT));
  for (int i = 0; i < N; ++i) k[i] = f[i] + ROUNDING / 32;
  for (int i = 0; i < N; ++i) f[i] = f[i] - (k[i] - (ROUNDING / 32 + 46.0f / 32));
  for (int i = 0; i < N; ++i) x[i] = scaled(decay_table, k[i]);
  for (int i = 0; i < N; ++i) p[i] = multiply_add(f[i], f[i], splat(REST));
  for (int i = 0; i < N; ++i) x[i] = x[i] * p[i];
#else
  for (int i = 0; i < N; ++i) x[i] = a * b[i];
  exp2_bounded<N>(x);
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
  return x < LEAST + 1 ? zero : exp2_lanes(x);
}

}  // namespace
