// Selective scan on the CPU, forward and backward; compiled once per instruction-set level.
//
// Each SIMD lane holds one channel. The states of a channel are a loop over registers, B and C are broadcast scalars,
// and only the gradients of B and C are summed across lanes, once per chunk and group. Time is split into chunks of
// CHUNK steps; the state at the start of a chunk is its checkpoint, from which the backward pass recomputes the chunk.
// The interface is plain C on raw pointers (struct Scan below, mirrored in kernels/scan/cpu.py), without torch or Python.
// All numbers are floats here; selective_scan_double.cpp compiles the same code for doubles.
//
// Compile with -DVW_LEVEL=<suffix> and the flags of that level, using GCC or Clang (vector extensions).

#include <cstdint>
#include <cstring>
#include <utility>

#include "export.h"
#include "lanes.h"
#include "threads.h"

#if defined(VW_DOUBLE)
#define VW_SCAN(name) VW_NAME(vw_scan_double_##name)
#else
#define VW_SCAN(name) VW_NAME(vw_scan_##name)
#endif

extern "C" {
// Arguments of one call. Strides count elements; absent arguments are null. `groups` is the number of groups, or of
// directions if `permutation` is given; channel c of group g is always channel g * (channels / groups) + c.
// u, delta, z and grad_out are (batch, channels, length) with step stride 1, or, with `permutation`, (batch, position,
// [group,] channel of the group) with channel stride 1; their strides are {batch, group, step or position, channel}.
struct Scan {
  int64_t batch, channels, groups, states, length;
  int64_t type;  // 0 real, 1 float16, 2 bfloat16 (not with doubles): u, delta, z, varying B and C, out and the gradients of u, delta, z
  int64_t softplus, threads, splits, b_varies, c_varies;
  const void *u, *delta, *z, *B, *C, *grad_out;
  int64_t u_stride[4], delta_stride[4], z_stride[4], grad_out_stride[4];
  int64_t B_stride[4], C_stride[4];  // {batch, group, step or position, state}
  const real *A, *D, *delta_bias, *initial_state, *grad_last_state;
  const int32_t *permutation;  // (groups, length)
  void *out;
  real *last_state, *checkpoints;
  void *du, *ddelta, *dz;
  int64_t out_stride[4];  // of out, ddelta, dz, and du without permutation
  real *dB, *dC;         // (splits, ...), summed into the first part; if constant, (batch, channels, states)
  int64_t dB_stride[4];   // of one part: {batch, group, step or position, state}
  int64_t dB_part;        // elements of one part
  real *dA, *dD, *ddelta_bias, *dinitial_state;  // dA (batch, channels, states), dD and ddelta_bias (batch, channels)
  real *du_directions;  // (batch, length, groups, channels / groups): du before its sum over directions
  char *scratch;         // 64-byte aligned; its size is vw_scan_forward_scratch or vw_scan_backward_scratch
  // Forward only. If `rank` is not 0, delta has `rank` columns in place of the channels of a group, and the step size of a
  // channel is their product with its row of delta_weight (channels, rank).
  int64_t rank;
  const real *delta_weight;
  real *out_sums;  // (batch, channels): sums of out over the length, or null
};
}

namespace {

constexpr int CHUNK = 128;

// e^x for x <= 0, corrected for the rounding of x / ln 2, of N vectors in place
template <int N>
INLINE void exp_negative(vf *x) {
#if VW_LANES == 16 && !defined(VW_DOUBLE)
  constexpr float high = 1.44269502f, low = 1.92596303e-08f, least = -87.0f;  // of 1 / ln 2
  vf f[N], p[N];
  __m512 r[N];
  for (int i = 0; i < N; ++i) x[i] = at_least(splat(least), x[i]);
  for (int i = 0; i < N; ++i) r[i] = nearest(x[i] * high);
  for (int i = 0; i < N; ++i) f[i] = x[i] * high - (vf)r[i];
  for (int i = 0; i < N; ++i) f[i] = x[i] * low + f[i];
  exp2_fractions<N>(f, p);
  for (int i = 0; i < N; ++i) x[i] = (vf)_mm512_scalef_ps((__m512)p[i], r[i]);
#else
#if defined(VW_DOUBLE)
  constexpr real high = 6.93147180369123816490e-01, low = 1.90821492927058770002e-10, least = -708.0;  // of ln 2
#else
  constexpr real high = 0.693145752f, low = 1.42860677e-06f, least = -87.0f;
#endif
  vf f[N], p[N], shifted[N];
  for (int i = 0; i < N; ++i) x[i] = at_least(splat(least), x[i]);
  for (int i = 0; i < N; ++i) shifted[i] = x[i] * LOG2_E + ROUNDING;
  for (int i = 0; i < N; ++i) p[i] = shifted[i] - ROUNDING;
  for (int i = 0; i < N; ++i) f[i] = x[i] - p[i] * high;
  for (int i = 0; i < N; ++i) f[i] = f[i] - p[i] * low;
  for (int i = 0; i < N; ++i) f[i] = f[i] * LOG2_E;
  exp2_fractions<N>(f, p);
  for (int i = 0; i < N; ++i) x[i] = (vf)((vi)p[i] + ((vi)shifted[i] << MANTISSA));
#endif
}

// Clamps A and dl, so that dl * A stays finite and the inner loop needs no special case for exp(-inf)
INLINE vf finite(vf x) {
  constexpr real most = sizeof(real) == 8 ? 1e150 : 1e19;
  return at_most(splat(most), at_least(splat(-most), x));
}

INLINE vf absolute(vf x) { return (vf)((vi)x & (integer)((uint64_t)-1 >> (65 - 8 * sizeof(real)))); }

// log(1 + e^x) of N vectors, in place, relative error 1e-6, or 1e-15 for doubles, even for tiny results; `slope` receives
// its derivative, the sigmoid.
template <bool SLOPE, int N>
INLINE void softplus(vf *x, vf *slope) {
#if defined(VW_DOUBLE)
  constexpr real first = 2.4437973948580947e-05;
  constexpr real factors[] = {-0.0002827421139374107, 0.0015535244034334333, -0.0054217339910016095,
                              0.013598778090617254, -0.026398779480743217, 0.041925709853904154,
                              -0.05718978534193906, 0.07015296236526472, -0.08070954578430206, 0.09009095815198633,
                              -0.09979768096586568, 0.11107211585299538, -0.12499427063514382, 0.14285651975275926,
                              -0.16666661848248537, 0.19999999749856523, -0.24999999992009522, 0.33333333333197523,
                              -0.4999999999999908, 1.0};
#else
  constexpr real first = 2.072946771e-03f;
  constexpr real factors[] = {-1.363147636e-02f, 4.198135278e-02f,  -8.307405842e-02f, 1.246712155e-01f, -1.612933530e-01f,
                               1.989793191e-01f,  -2.498857901e-01f, 3.333268978e-01f,  -4.999998729e-01f, 1.0f};
#endif
  vf y[N], q[N];
  for (int i = 0; i < N; ++i) y[i] = -absolute(x[i]);
  exp_negative<N>(y);
  for (int i = 0; i < N; ++i) q[i] = splat(first);
  for (const real factor : factors)
    for (int i = 0; i < N; ++i) q[i] = q[i] * y[i] + factor;
  for (int i = 0; i < N; ++i) {
    if (SLOPE) {
      slope[i] = ((x[i] >= 0.0f) ? splat(1.0f) : y[i]) / (y[i] + 1.0f);
      slope[i] = (x[i] > 20.0f) ? splat(1.0f) : slope[i];
    }
#if VW_LANES == 16 && !defined(VW_DOUBLE)
    x[i] = y[i] * q[i] + at_least(vf{}, x[i]);  // y is NaN if x is, and below the rounding of large x
#else
    const vf positive = (vf)((vi)x[i] & ~(x[i] < 0.0f)), result = y[i] * q[i] + positive;
    x[i] = (x[i] > 20.0f) ? x[i] : (x[i] == x[i]) ? result : x[i];
#endif
  }
}

INLINE vf sigmoid(vf x) {
  vf y = -absolute(x);
  exp_negative<1>(&y);
  vf s = ((x >= 0.0f) ? splat(1.0f) : y) / (y + 1.0f);
  return (x == x) ? s : x;
}

// ---- float16 and bfloat16: rows are widened when loaded and rounded to nearest even when stored

INLINE float from_bits(uint32_t bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }
INLINE uint32_t to_bits(float x) { uint32_t bits; __builtin_memcpy(&bits, &x, 4); return bits; }

struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };

INLINE real widen(real x) { return x; }
INLINE float widen(Brain x) { return from_bits((uint32_t)x.bits << 16); }
INLINE float widen(Half x) {
  uint32_t magnitude = (uint32_t)(x.bits & 0x7fff) << 13;
  float value = from_bits(magnitude) * 0x1p112f;  // shifts the exponent bias and normalises subnormals
  uint32_t bits = to_bits(value) | (magnitude >= 0x0f800000u ? 0x7f800000u : 0u);
  return from_bits(bits | (uint32_t)(x.bits & 0x8000) << 16);
}

INLINE void narrow(real x, real &to) { to = x; }
INLINE void narrow(float x, Brain &to) {
  uint32_t bits = to_bits(x);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}
INLINE void narrow(float x, Half &to) {
  uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t normal = (magnitude - 0x37fff001u + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  to.bits = (uint16_t)(result | sign);
}

// ---- transposition of W x W numbers, and sums over lanes, in registers; all shuffles have constant patterns

template <int S, size_t... I>
INLINE void exchange(vf &a, vf &b, std::index_sequence<I...>) {
  vf low = __builtin_shufflevector(a, b, ((I & S) ? W + I - S : I)...);
  vf high = __builtin_shufflevector(a, b, ((I & S) ? W + I : I + S)...);
  a = low;
  b = high;
}

template <int S>
INLINE void transpose_stage(vf *rows) {
  for (int i = 0; i < W; ++i)
    if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_index_sequence<W>());
}

INLINE void transpose(vf *rows) {
  transpose_stage<1>(rows);
  if constexpr (W >= 4) transpose_stage<2>(rows);
  if constexpr (W >= 8) transpose_stage<4>(rows);
  if constexpr (W >= 16) transpose_stage<8>(rows);
}

// Lane i of the result is the sum over the lanes of v[i].
template <int S>
INLINE void sum_stage(vf *v) {
  for (int i = 0; i < W; i += 2 * S) {
    exchange<S>(v[i], v[i + S], std::make_index_sequence<W>());
    v[i] += v[i + S];
  }
}

INLINE vf lane_sums(vf *v) {
  sum_stage<1>(v);
  if constexpr (W >= 4) sum_stage<2>(v);
  if constexpr (W >= 8) sum_stage<4>(v);
  if constexpr (W >= 16) sum_stage<8>(v);
  return v[0];
}

// ---- tiles: CHUNK steps of W channels as [step][lane]

// Memory of W channels of one chunk, in either layout. Strides count bytes.
struct Tile {
  char *base;                // first channel; step 0 of the chunk (channel first) or position 0 (channel last)
  int64_t step, row;         // of a step or position, of a channel
  const int32_t *positions;  // of the steps of the chunk, or null for channel first
  int rows, steps, type;     // rows <= W real channels
  INLINE char *at(int t, int lane) const { return base + (positions ? positions[t] : t) * step + lane * row; }
};

INLINE int64_t type_size(int64_t type) { return type == 0 ? sizeof(real) : 2; }

alignas(64) const real zeros[CHUNK] = {};

template <class E>
void widen_row(const char *from, int64_t step, int count, real *to) {
  if (step == (int64_t)sizeof(E))
    for (int t = 0; t < count; ++t) to[t] = widen(((const E *)from)[t]);
  else
    for (int t = 0; t < count; ++t) to[t] = widen(*(const E *)(from + t * step));
}

template <class E>
void narrow_row(const real *from, char *to, int count) {
  for (int t = 0; t < count; ++t) narrow(from[t], ((E *)to)[t]);
}

void widen_any(int64_t type, const char *from, int64_t step, int count, real *to) {
  if (type == 0) widen_row<real>(from, step, count, to);
  if (type == 1) widen_row<Half>(from, step, count, to);
  if (type == 2) widen_row<Brain>(from, step, count, to);
}

void narrow_any(int64_t type, const real *from, char *to, int count) {
  if (type == 0) narrow_row<real>(from, to, count);
  if (type == 1) narrow_row<Half>(from, to, count);
  if (type == 2) narrow_row<Brain>(from, to, count);
}

void load_tile(const Tile &tile, vf *to, real *staging) {
  if (tile.positions) {
    if (tile.type == 0 && tile.rows >= W)
      for (int t = 0; t < tile.steps; ++t) to[t] = load((const real *)tile.at(t, 0));
    else if (tile.type == 0)
      for (int t = 0; t < tile.steps; ++t) to[t] = load_first((const real *)tile.at(t, 0), tile.rows);
    else
      for (int t = 0; t < tile.steps; ++t) {
        widen_any(tile.type, tile.at(t, 0), 2, tile.rows, staging);
        to[t] = load_first(staging, tile.rows);
      }
    return;
  }
  const real *rows[W];
  for (int i = 0; i < W; ++i) {
    rows[i] = i < tile.rows ? (const real *)tile.at(0, i) : zeros;
    if (tile.type != 0 && i < tile.rows) {
      widen_any(tile.type, tile.at(0, i), tile.step, tile.steps, staging + i * CHUNK);
      rows[i] = staging + i * CHUNK;
    }
  }
  int t = 0;
  for (; t + W <= tile.steps; t += W) {
    vf block[W];
    for (int i = 0; i < W; ++i) block[i] = load(rows[i] + t);
    transpose(block);
    for (int i = 0; i < W; ++i) to[t + i] = block[i];
  }
  for (; t < tile.steps; ++t) {
    vf v = {};
    for (int i = 0; i < W; ++i) v[i] = rows[i][t];
    to[t] = v;
  }
}

void store_tile(const Tile &tile, const vf *from, real *staging) {
  if (tile.positions) {
    if (tile.type == 0 && tile.rows >= W)
      for (int t = 0; t < tile.steps; ++t) store((real *)tile.at(t, 0), from[t]);
    else if (tile.type == 0)
      for (int t = 0; t < tile.steps; ++t) store_first((real *)tile.at(t, 0), from[t], tile.rows);
    else
      for (int t = 0; t < tile.steps; ++t) narrow_any(tile.type, (const real *)&from[t], tile.at(t, 0), tile.rows);
    return;
  }
  real *rows[W];
  for (int i = 0; i < W; ++i)
    rows[i] = tile.type == 0 && i < tile.rows ? (real *)tile.at(0, i) : staging + i * CHUNK;
  int t = 0;
  for (; t + W <= tile.steps; t += W) {
    vf block[W];
    for (int i = 0; i < W; ++i) block[i] = from[t + i];
    transpose(block);
    for (int i = 0; i < W; ++i) store(rows[i] + t, block[i]);
  }
  for (; t < tile.steps; ++t)
    for (int i = 0; i < tile.rows; ++i) rows[i][t] = from[t][i];
  if (tile.type != 0)
    for (int i = 0; i < tile.rows; ++i) narrow_any(tile.type, rows[i], tile.at(0, i), tile.steps);
}

// Addresses to prefetch while a time loop runs: one cache line per step and tensor.
struct Prefetch {
  const char *address[CHUNK];
  void aim(const Tile &tile) {
    if (tile.positions) {
      for (int t = 0; t < CHUNK; ++t) address[t] = tile.at(t < tile.steps ? t : 0, 0);
      return;
    }
    // only full chunks are prefetched; with 2-byte numbers or few lanes the rows end early and start again
    int t = 0;
    for (int row = 0; t < CHUNK; row = row + 1 < tile.rows ? row + 1 : 0) {
      const char *p = tile.at(0, row), *stop = p + CHUNK * type_size(tile.type);
      for (; p < stop && t < CHUNK; p += 64) address[t++] = p;
    }
  }
};

// Copies B or C of one chunk to [step][state]: its rows are often a power of two apart and would share a cache set.
void stage_matrix(int64_t type, const void *matrix, const int64_t *stride, int64_t b, int64_t g,
                  const int32_t *positions, int64_t t0, int64_t steps, int64_t states, real *to, real *row) {
  const int64_t size = type_size(type);
  const char *from = (const char *)matrix + (b * stride[0] + g * stride[1]) * size;
  if (positions && type == 0 && stride[3] == 1) {
    for (int64_t t = 0; t < steps; ++t) {
      const real *row = (const real *)from + positions[t] * stride[2];
      real *copy = to + t * states;
      int64_t n = 0;
      for (; n + 4 <= states; n += 4) __builtin_memcpy(copy + n, row + n, 4 * sizeof(real));
      for (; n < states; ++n) copy[n] = row[n];
    }
    return;
  }
  if (positions) {
    for (int64_t t = 0; t < steps; ++t)
      widen_any(type, from + positions[t] * stride[2] * size, stride[3] * size, (int)states, to + t * states);
    return;
  }
  for (int64_t n = 0; n < states; ++n) {
    widen_any(type, from + (t0 * stride[2] + n * stride[3]) * size, stride[2] * size, (int)steps, row);
    for (int64_t t = 0; t < steps; ++t) to[t * states + n] = row[t];
  }
}

// Loads (channels, states) rows of W channels as lanes
void load_lanes(const real *from, int64_t states, int64_t rows, vf *to) {
  for (int64_t n = 0; n < states; ++n) {
    vf v = {};
    for (int i = 0; i < W && i < rows; ++i) v[i] = from[i * states + n];
    to[n] = v;
  }
}

void store_lanes(real *to, int64_t states, int64_t rows, const vf *from) {
  for (int64_t n = 0; n < states; ++n)
    for (int i = 0; i < W && i < rows; ++i) to[i * states + n] = from[n][i];
}

// ---- forward

constexpr int TOGETHER = 4;  // vectors whose exponentials are computed step by step
// Steps whose decays are computed before the states that need them. With 16 registers (AVX2, Zen 3), a state that waits for
// its decay would keep others from entering the scheduler: 16.7 ms became 14.5 ms for 720 x 4096, 16 states.
constexpr int PIECE = VW_LANES == 16 ? 1 : 16;
constexpr int NEAR = VW_LANES == 16 ? 3 : 2;  // the cache for prefetches; rows a power of two apart share a set of L1

template <int NT, bool BV, bool CV, bool FALLS>
void forward_states(int steps, int states, const vf *dl, const vf *x, vf *y, const vf *A2, vf *state, const real *Bs,
                    const real *Cs, const vf *Bl, const vf *Cl, const Prefetch *ahead) {
  vf h[NT], b[NT], c[NT], decays[PIECE * NT];
  for (int i = 0; i < NT; ++i) {
    h[i] = state[i];
    if (!BV) b[i] = Bl[i];
    if (!CV) c[i] = Cl[i];
  }
  for (int t0 = 0; t0 < steps; t0 += PIECE) {
    const int count = PIECE == 1 || steps - t0 > PIECE ? PIECE : steps - t0;
    for (int t = 0; t < count; ++t) {
      if (ahead) {
        __builtin_prefetch(ahead[0].address[t0 + t], 0, NEAR);
        __builtin_prefetch(ahead[1].address[t0 + t], 0, NEAR);
        __builtin_prefetch(ahead[2].address[t0 + t], 1, NEAR);
      }
      const vf dlt = dl[t0 + t];
#pragma GCC unroll 16
      for (int first = 0; first < NT; first += TOGETHER) {
        constexpr int N = NT < TOGETHER ? NT : TOGETHER;
        vf a[N];
        for (int i = 0; i < N; ++i) a[i] = dlt * A2[first + i];
        exp2_all<N, FALLS>(a);
        for (int i = 0; i < N; ++i) decays[t * NT + first + i] = a[i];
      }
    }
    for (int t = 0; t < count; ++t) {
      const vf *a = decays + t * NT;
      const vf xt = x[t0 + t];
      const real *bt = Bs + (t0 + t) * states, *ct = Cs + (t0 + t) * states;
      vf yt = y[t0 + t];
#pragma GCC unroll 16
      for (int n = 0; n < NT; ++n) h[n] = a[n] * h[n] + xt * (BV ? splat(bt[n]) : b[n]);
#pragma GCC unroll 16
      for (int n = 0; n < NT; ++n) yt += h[n] * (CV ? splat(ct[n]) : c[n]);
      y[t0 + t] = yt;
    }
  }
  for (int i = 0; i < NT; ++i) state[i] = h[i];
}

template <bool BV, bool CV, bool FALLS>
void forward_block(int steps, int states, const vf *dl, const vf *x, vf *y, const vf *A2, vf *state, const real *Bs,
                   const real *Cs, const vf *Bl, const vf *Cl, const Prefetch *ahead) {
  int n = 0;
#define VW_PASS(NT)                                                                                                    \
  {                                                                                                                    \
    forward_states<NT, BV, CV, FALLS>(steps, states, dl, x, y, A2 + n, state + n, Bs + n, Cs + n, Bl + n, Cl + n, ahead);     \
    ahead = nullptr;                                                                                                   \
    n += NT;                                                                                                           \
  }
#if VW_LANES == 16
  while (states - n >= 16) VW_PASS(16)
#endif
  while (states - n >= 8) VW_PASS(8)
  while (states - n >= 4) VW_PASS(4)
  while (states - n >= 2) VW_PASS(2)
  while (states - n >= 1) VW_PASS(1)
#undef VW_PASS
}

using Block = void (*)(int, int, const vf *, const vf *, vf *, const vf *, vf *, const real *, const real *, const vf *,
                       const vf *, const Prefetch *);

template <bool... CHOSEN>
Block choose_block() {
  return forward_block<CHOSEN...>;
}

template <bool... CHOSEN, class... Rest>
Block choose_block(bool next, Rest... rest) {
  return next ? choose_block<CHOSEN..., true>(rest...) : choose_block<CHOSEN..., false>(rest...);
}

// Step sizes of a tile, in place: delta -> dl; with SLOPE, `slope` receives the derivative of dl by delta.
template <bool SLOPE>
void step_sizes(vf *delta, int steps, vf bias, bool soft, vf *slope) {
  int t = 0;
  for (t = 0; t < steps; ++t) delta[t] += bias;
  if (!soft) {
    for (t = 0; SLOPE && t < steps; ++t) slope[t] = splat(1.0f);
    return;
  }
  for (t = 0; t + 4 <= steps; t += 4) softplus<SLOPE, 4>(delta + t, slope + t);
  for (; t < steps; ++t) softplus<SLOPE, 1>(delta + t, slope + t);
}

// delta[t] = sum of low[t][r] * weight[r]
void multiply_steps(const real *low, const vf *weight, int steps, int64_t rank, vf *delta) {
  int t = 0;
  for (; t + 4 <= steps; t += 4) {
    vf sums[4] = {};
    for (int64_t r = 0; r < rank; ++r)
      for (int i = 0; i < 4; ++i) sums[i] += low[(t + i) * rank + r] * weight[r];
    for (int i = 0; i < 4; ++i) delta[t + i] = sums[i];
  }
  for (; t < steps; ++t) {
    vf sum = {};
    for (int64_t r = 0; r < rank; ++r) sum += low[t * rank + r] * weight[r];
    delta[t] = sum;
  }
}

struct Arena {  // bump allocation of vectors in one block of memory
  char *next;
  template <class T>
  T *take(int64_t count) {
    T *p = (T *)next;
    next += (count * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t blocks_per_group(const Scan &s) { return ceil_div(s.channels / s.groups, W); }

constexpr int64_t PAGE = 4096;

// Channel blocks per forward task: small enough to balance the threads, large enough to share the staged B and C.
int64_t forward_blocks(const Scan &s) {
  const int64_t blocks = blocks_per_group(s), parts = ceil_div(4 * s.threads, s.batch * s.groups);
  return ceil_div(blocks, parts < blocks ? parts : blocks);
}

// Scratch bytes per thread, with a page to spare for the rounding of the arena.
int64_t forward_scratch(const Scan &s) {
  const int64_t blocks = forward_blocks(s);
  const size_t bytes = sizeof(vf) * (5 * CHUNK + blocks * (s.states * 4 + s.rank + 1)) +
                       sizeof(real) * (CHUNK * (2 * s.states + s.rank) + W * CHUNK) + 3 * sizeof(Prefetch);
  return (ceil_div(bytes, PAGE) + 1) * PAGE;
}

// Steps t0, t0 + 1, ... of channels c .. c + W - 1 of group g.
Tile tile_of(const Scan &s, int64_t type, const void *tensor, const int64_t *stride, int64_t b, int64_t g, int64_t c,
             int64_t t0) {
  const int64_t size = type_size(type), rows = s.channels / s.groups - c, steps = s.length - t0;
  char *base = (char *)tensor + (b * stride[0] + g * stride[1] + c * stride[3]) * size;
  const int32_t *positions = s.permutation ? s.permutation + g * s.length + t0 : nullptr;
  if (!positions) base += t0 * stride[2] * size;
  return {base,      stride[2] * size, stride[3] * size,           positions, (int)(rows < W ? rows : W),
          (int)(steps < CHUNK ? steps : CHUNK), (int)type};
}

void forward_task(const Scan &s, int64_t b, int64_t g, int64_t first, int64_t last, char *memory) {
  const int64_t width = s.channels / s.groups, states = s.states, blocks = last - first;
  const int64_t chunks = ceil_div(s.length, CHUNK);
  Arena arena{memory};
  vf *tu = arena.take<vf>(CHUNK), *tdl = arena.take<vf>(CHUNK), *tx = arena.take<vf>(CHUNK);
  vf *ty = arena.take<vf>(CHUNK), *tz = arena.take<vf>(CHUNK);
  vf *A2 = arena.take<vf>(blocks * states), *state = arena.take<vf>(blocks * states);
  vf *Bl = arena.take<vf>(blocks * states), *Cl = arena.take<vf>(blocks * states);
  real *Bs = arena.take<real>(CHUNK * states), *Cs = arena.take<real>(CHUNK * states);
  real *staging = arena.take<real>(W * CHUNK);
  Prefetch *ahead = arena.take<Prefetch>(3);
  vf *sums = arena.take<vf>(blocks), *steps_weight = arena.take<vf>(blocks * s.rank);
  real *low = arena.take<real>(CHUNK * s.rank);

  bool falls = true;  // no state grows, if no step size is negative
  for (int64_t k = 0; k < blocks; ++k) {
    int64_t c = (first + k) * W, d = g * width + c, rows = width - c;
    sums[k] = vf{};
    if (s.rank) load_lanes(s.delta_weight + d * s.rank, s.rank, rows, steps_weight + k * s.rank);
    load_lanes(s.A + d * states, states, rows, A2 + k * states);
    for (int64_t n = 0; n < states; ++n) {
      A2[k * states + n] = finite(A2[k * states + n]) * LOG2_E;
      for (int i = 0; i < W; ++i) falls = falls && !(A2[k * states + n][i] > 0.0f);
    }
    if (s.initial_state)
      load_lanes(s.initial_state + (b * s.channels + d) * states, states, rows, state + k * states);
    else
      for (int64_t n = 0; n < states; ++n) state[k * states + n] = vf{};
    if (!s.b_varies) load_lanes((const real *)s.B + d * states, states, rows, Bl + k * states);
    if (!s.c_varies) load_lanes((const real *)s.C + d * states, states, rows, Cl + k * states);
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t t0 = chunk * CHUNK;
    const int steps = (int)(s.length - t0 < CHUNK ? s.length - t0 : CHUNK);
    const int32_t *positions = s.permutation ? s.permutation + g * s.length + t0 : nullptr;
    if (s.b_varies)
      stage_matrix(s.type, s.B, s.B_stride, b, g, positions, t0, steps, states, Bs, staging);
    if (s.c_varies)
      stage_matrix(s.type, s.C, s.C_stride, b, g, positions, t0, steps, states, Cs, staging);
    if (s.rank) stage_matrix(s.type, s.delta, s.delta_stride, b, g, positions, t0, steps, s.rank, low, staging);
    for (int64_t k = 0; k < blocks; ++k) {
      int64_t c = (first + k) * W, d = g * width + c, rows = width - c;
      load_tile(tile_of(s, s.type, s.u, s.u_stride, b, g, c, t0), tu, staging);
      if (s.rank)
        multiply_steps(low, steps_weight + k * s.rank, steps, s.rank, tdl);
      else
        load_tile(tile_of(s, s.type, s.delta, s.delta_stride, b, g, c, t0), tdl, staging);
      vf bias = s.delta_bias ? load_first(s.delta_bias + d, rows) : vf{};
      vf D = s.D ? load_first(s.D + d, rows) : vf{};
      for (int t = 0; t < steps; t += TOGETHER) {
        const int some = steps - t < TOGETHER ? steps - t : TOGETHER;
        vf *dl = tdl + t;
        step_sizes<false>(dl, some, bias, s.softplus, nullptr);
        for (int i = 0; i < some; ++i) {
          tx[t + i] = dl[i] * tu[t + i];
          ty[t + i] = s.D ? D * tu[t + i] : vf{};
          dl[i] = finite(dl[i]);
        }
      }
      if (s.checkpoints)
        for (int64_t n = 0; n < states; ++n)
          store_first(s.checkpoints + ((b * chunks + chunk) * states + n) * s.channels + d, state[k * states + n], rows);
      // prefetch the next block of this chunk, or the first block of the next chunk
      bool same = k + 1 < blocks;
      int64_t next_c = same ? c + W : first * W, next_t = same ? t0 : t0 + CHUNK;
      const Prefetch *p = nullptr;
      if (next_t + CHUNK <= s.length) {
        ahead[2].aim(tile_of(s, s.type, s.out, s.out_stride, b, g, c, t0));
        // the next channels of the same positions are mostly in the cache lines that were read
        if (s.rank && same) {
          ahead[0] = ahead[1] = ahead[2];
        } else {
          ahead[0].aim(tile_of(s, s.type, s.u, s.u_stride, b, g, next_c, next_t));
          if (s.rank) ahead[1] = ahead[0];
          else ahead[1].aim(tile_of(s, s.type, s.delta, s.delta_stride, b, g, next_c, next_t));
        }
        p = ahead;
      }
      auto block = choose_block(s.b_varies, s.c_varies, s.softplus && falls);
      block(steps, (int)states, tdl, tx, ty, A2 + k * states, state + k * states, Bs, Cs, Bl + k * states,
            Cl + k * states, p);
      if (s.z) {
        load_tile(tile_of(s, s.type, s.z, s.z_stride, b, g, c, t0), tz, staging);
        for (int t = 0; t < steps; ++t) ty[t] *= tz[t] * sigmoid(tz[t]);
      }
      store_tile(tile_of(s, s.type, s.out, s.out_stride, b, g, c, t0), ty, staging);
      if (s.out_sums) {
        vf sum = {};
        for (int t = 0; t < steps; ++t) sum += ty[t];
        sums[k] += sum;
      }
    }
  }
  for (int64_t k = 0; k < blocks; ++k) {
    int64_t c = (first + k) * W, d = g * width + c;
    if (s.out_sums) store_first(s.out_sums + b * s.channels + d, sums[k], width - c);
    if (s.last_state)
      store_lanes(s.last_state + (b * s.channels + d) * states, states, width - c, state + k * states);
  }
}

void forward(const Scan &s) {
  const int64_t blocks = blocks_per_group(s), per_part = forward_blocks(s), parts = ceil_div(blocks, per_part);
  const int64_t bytes = forward_scratch(s);
  parallel_for(s.threads, s.batch * s.groups * parts, [&](int64_t task, int64_t thread) {
    int64_t part = task % parts, g = task / parts % s.groups, b = task / parts / s.groups;
    int64_t first = part * per_part, last = first + per_part < blocks ? first + per_part : blocks;
    forward_task(s, b, g, first, last, s.scratch + thread * bytes);
  });
}

// ---- backward

constexpr int NTB = VW_LANES == 16 ? 4 : 2;  // states per pass, so that their gradients stay in registers
constexpr int RANGE = 8;                     // channel blocks whose tiles are kept at a time, in L2

struct BlockTiles {
  vf u[CHUNK], dl[CHUNK], x[CHUNK], gy[CHUNK], slope[CHUNK], sum_gB[CHUNK], sum_gAp[CHUNK], y[CHUNK], gz[CHUNK];
};

template <int NT, bool BV, bool CV, bool GATED, bool FIRST>
void backward_states(int steps, int states, BlockTiles &tile, const vf *A, const vf *start, vf *carry, vf *dA,
                     const real *Bs, const real *Cs, const vf *Bl, const vf *Cl, vf *dBl, vf *dCl, vf *dBt, vf *dCt,
                     vf *hs, vf *as) {
  vf h[NT], A2[NT], b[NT], c[NT];
  for (int i = 0; i < NT; ++i) {
    h[i] = hs[i] = start[i];
    A2[i] = A[i] * LOG2_E;
    if (!BV) b[i] = Bl[i];
    if (!CV) c[i] = Cl[i];
  }
  for (int t = 0; t < steps; ++t) {
    vf dlt = tile.dl[t], xt = tile.x[t], yt = {};
    if (GATED) yt = tile.y[t];
    vf a[NT];
    for (int i = 0; i < NT; ++i) a[i] = dlt * A2[i];
    exp2_all<NT>(a);
#pragma GCC unroll 4
    for (int i = 0; i < NT; ++i) {
      h[i] = a[i] * h[i] + xt * (BV ? splat(Bs[t * states + i]) : b[i]);
      as[t * NT + i] = a[i];
      hs[(t + 1) * NT + i] = h[i];
      if (GATED) yt += h[i] * (CV ? splat(Cs[t * states + i]) : c[i]);
    }
    if (GATED) tile.y[t] = yt;
  }
  vf ag[NT], da[NT], db[NT], dc[NT], Ar[NT];
  for (int i = 0; i < NT; ++i) {
    ag[i] = carry[i];
    da[i] = dA[i];
    Ar[i] = A[i];
    if (!BV) db[i] = dBl[i];
    if (!CV) dc[i] = dCl[i];
  }
  for (int t = steps - 1; t >= 0; --t) {
    vf gy = tile.gy[t], xt = tile.x[t], dlt = tile.dl[t], sb = tile.sum_gB[t], sa = tile.sum_gAp[t];
#pragma GCC unroll 4
    for (int i = 0; i < NT; ++i) {
      vf a = as[t * NT + i];
      vf g = gy * (CV ? splat(Cs[t * states + i]) : c[i]) + ag[i];
      vf gp = g * (a * hs[t * NT + i]);
      sb += g * (BV ? splat(Bs[t * states + i]) : b[i]);
      sa += gp * Ar[i];
      da[i] += gp * dlt;
      ag[i] = a * g;
      vf gx = g * xt, hy = hs[(t + 1) * NT + i] * gy;
      if (BV)
        dBt[t * NT + i] = FIRST ? gx : dBt[t * NT + i] + gx;
      else
        db[i] += gx;
      if (CV)
        dCt[t * NT + i] = FIRST ? hy : dCt[t * NT + i] + hy;
      else
        dc[i] += hy;
    }
    tile.sum_gB[t] = sb;
    tile.sum_gAp[t] = sa;
  }
  for (int i = 0; i < NT; ++i) {
    carry[i] = ag[i];
    dA[i] = da[i];
    if (!BV) dBl[i] = db[i];
    if (!CV) dCl[i] = dc[i];
  }
}

using BackwardPass = void (*)(int, int, BlockTiles &, const vf *, const vf *, vf *, vf *, const real *, const real *,
                              const vf *, const vf *, vf *, vf *, vf *, vf *, vf *, vf *);

template <int NT, bool... CHOSEN>
BackwardPass choose() {
  return backward_states<NT, CHOSEN...>;
}

template <int NT, bool... CHOSEN, class... Rest>
BackwardPass choose(bool next, Rest... rest) {
  return next ? choose<NT, CHOSEN..., true>(rest...) : choose<NT, CHOSEN..., false>(rest...);
}

template <int NT>
BackwardPass backward_pass(const Scan &s, bool first) {
  return choose<NT>(s.b_varies, s.c_varies, s.z != nullptr, first);
}

// Adds the sums over lanes of [step][NT] vectors to the first NT columns of [step][states].
template <int NT>
void add_lane_sums(vf *from, int steps, int states, real *to) {
  int count = steps * NT, j = 0;
  for (; j + W <= count; j += W) {
    vf v[W];
    for (int i = 0; i < W; ++i) v[i] = from[j + i];
    vf sums = lane_sums(v);
    for (int i = 0; i < W; ++i) to[(j + i) / NT * states + (j + i) % NT] += sums[i];
  }
  for (; j < count; ++j) {
    real sum = 0;
    for (int i = 0; i < W; ++i) sum += from[j][i];
    to[j / NT * states + j % NT] += sum;
  }
}

// Channel blocks per backward task; the caller chooses s.splits as the number of tasks per group.
int64_t backward_blocks(const Scan &s) { return ceil_div(blocks_per_group(s), s.splits); }

// Scratch bytes per thread, with a page to spare for the rounding of the arena.
int64_t backward_scratch(const Scan &s) {
  const int64_t blocks = backward_blocks(s), range = blocks < RANGE ? blocks : RANGE;
  const size_t bytes = range * (sizeof(BlockTiles) + sizeof(vf) * s.states) +
                       sizeof(vf) * (7 * blocks * s.states + 2 * blocks + NTB * (4 * CHUNK + 1)) +
                       sizeof(real) * (4 * CHUNK * s.states + W * CHUNK);
  return (ceil_div(bytes, PAGE) + 1) * PAGE;
}

void backward_task(const Scan &s, int64_t b, int64_t g, int64_t split, int64_t first, int64_t last, char *memory) {
  const int64_t width = s.channels / s.groups, states = s.states, blocks = last - first;
  const int64_t chunks = ceil_div(s.length, CHUNK), range = blocks < RANGE ? blocks : RANGE;
  Arena arena{memory};
  BlockTiles *tiles = arena.take<BlockTiles>(range);
  vf *A = arena.take<vf>(blocks * states), *carry = arena.take<vf>(blocks * states);
  vf *dA = arena.take<vf>(blocks * states), *dBl = arena.take<vf>(blocks * states);
  vf *dCl = arena.take<vf>(blocks * states), *Bl = arena.take<vf>(blocks * states);
  vf *Cl = arena.take<vf>(blocks * states), *start = arena.take<vf>(range * states);
  vf *dD = arena.take<vf>(blocks), *dbias = arena.take<vf>(blocks);
  vf *hs = arena.take<vf>(NTB * (CHUNK + 1)), *as = arena.take<vf>(NTB * CHUNK);
  vf *dBt = arena.take<vf>(NTB * CHUNK), *dCt = arena.take<vf>(NTB * CHUNK);
  real *Bs = arena.take<real>(CHUNK * states), *Cs = arena.take<real>(CHUNK * states);
  real *dBs = arena.take<real>(CHUNK * states), *dCs = arena.take<real>(CHUNK * states);
  real *staging = arena.take<real>(W * CHUNK);

  for (int64_t k = 0; k < blocks; ++k) {
    int64_t c = (first + k) * W, d = g * width + c, rows = width - c;
    load_lanes(s.A + d * states, states, rows, A + k * states);
    if (s.grad_last_state)
      load_lanes(s.grad_last_state + (b * s.channels + d) * states, states, rows, carry + k * states);
    dD[k] = dbias[k] = vf{};
    for (int64_t n = 0; n < states; ++n) {
      A[k * states + n] = finite(A[k * states + n]);
      if (!s.grad_last_state) carry[k * states + n] = vf{};
      dA[k * states + n] = dBl[k * states + n] = dCl[k * states + n] = vf{};
    }
    if (!s.b_varies) load_lanes((const real *)s.B + d * states, states, rows, Bl + k * states);
    if (!s.c_varies) load_lanes((const real *)s.C + d * states, states, rows, Cl + k * states);
  }
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t t0 = chunk * CHUNK;
    const int steps = (int)(s.length - t0 < CHUNK ? s.length - t0 : CHUNK);
    const int32_t *positions = s.permutation ? s.permutation + g * s.length + t0 : nullptr;
    if (s.b_varies)
      stage_matrix(s.type, s.B, s.B_stride, b, g, positions, t0, steps, states, Bs, staging);
    if (s.c_varies)
      stage_matrix(s.type, s.C, s.C_stride, b, g, positions, t0, steps, states, Cs, staging);
    memset(dBs, 0, sizeof(real) * steps * states);
    memset(dCs, 0, sizeof(real) * steps * states);
    for (int64_t k0 = 0; k0 < blocks; k0 += RANGE) {
      const int64_t k1 = k0 + RANGE < blocks ? k0 + RANGE : blocks;
      auto tile = [&](const void *tensor, const int64_t *stride, int64_t c) {
        return tile_of(s, s.type, tensor, stride, b, g, c, t0);
      };
      for (int64_t k = k0; k < k1; ++k) {
        BlockTiles &q = tiles[k - k0];
        int64_t c = (first + k) * W, d = g * width + c, rows = width - c;
        load_tile(tile(s.u, s.u_stride, c), q.u, staging);
        load_tile(tile(s.delta, s.delta_stride, c), q.dl, staging);
        load_tile(tile(s.grad_out, s.grad_out_stride, c), q.gy, staging);
        vf bias = s.delta_bias ? load_first(s.delta_bias + d, rows) : vf{};
        vf D = s.D ? load_first(s.D + d, rows) : vf{};
        step_sizes<true>(q.dl, steps, bias, s.softplus, q.slope);
        for (int t = 0; t < steps; ++t) {
          q.x[t] = q.dl[t] * q.u[t];
          q.dl[t] = finite(q.dl[t]);
          q.sum_gB[t] = q.sum_gAp[t] = vf{};
        }
        if (s.z) {
          load_tile(tile(s.z, s.z_stride, c), q.gz, staging);
          for (int t = 0; t < steps; ++t) {
            vf z = q.gz[t], go = q.gy[t], gate = sigmoid(z);
            q.gy[t] = go * z * gate;
            q.gz[t] = go * gate * (z * (1.0f - gate) + 1.0f);
            q.y[t] = s.D ? D * q.u[t] : vf{};
          }
        }
        for (int64_t n = 0; n < states; ++n)
          start[(k - k0) * states + n] =
              load_first(s.checkpoints + ((b * chunks + chunk) * states + n) * s.channels + d, rows);
      }
      // the loop over blocks is inside that over states, so that the lane sums of dB and dC stay in L1
      for (int64_t n = 0; n < states;) {
        auto pass = [&](auto nt) {
          constexpr int NT = decltype(nt)::value;
          for (int64_t k = k0; k < k1; ++k) {
            int64_t at = k * states + n;
            backward_pass<NT>(s, k == k0)(steps, (int)states, tiles[k - k0], A + at, start + (k - k0) * states + n, carry + at, dA + at, Bs + n,
                Cs + n, Bl + at, Cl + at, dBl + at, dCl + at, dBt, dCt, hs, as);
          }
          if (s.b_varies) add_lane_sums<NT>(dBt, steps, (int)states, dBs + n);
          if (s.c_varies) add_lane_sums<NT>(dCt, steps, (int)states, dCs + n);
          n += NT;
        };
        if (states - n >= NTB)
          pass(std::integral_constant<int, NTB>());
        else if (states - n >= 2)
          pass(std::integral_constant<int, 2>());
        else
          pass(std::integral_constant<int, 1>());
      }
      for (int64_t k = k0; k < k1; ++k) {
        BlockTiles &q = tiles[k - k0];
        int64_t c = (first + k) * W, d = g * width + c, rows = width - c;
        vf D = s.D ? load_first(s.D + d, rows) : vf{};
        vf sum_D = dD[k], sum_bias = dbias[k];
        for (int t = 0; t < steps; ++t) {
          vf du = q.dl[t] * q.sum_gB[t], ddelta = (q.u[t] * q.sum_gB[t] + q.sum_gAp[t]) * q.slope[t];
          if (s.D) du += D * q.gy[t];
          sum_D += q.gy[t] * q.u[t];
          sum_bias += ddelta;
          q.sum_gB[t] = du;
          q.sum_gAp[t] = ddelta;
          if (s.z) q.y[t] *= q.gz[t];
        }
        dD[k] = sum_D;
        dbias[k] = sum_bias;
        if (s.permutation)
          store_tile(tile_of(s, 0, s.du_directions, s.out_stride, b, g, c, t0), q.sum_gB, staging);
        else
          store_tile(tile(s.du, s.out_stride, c), q.sum_gB, staging);
        store_tile(tile(s.ddelta, s.out_stride, c), q.sum_gAp, staging);
        if (s.z) store_tile(tile(s.dz, s.out_stride, c), q.y, staging);
      }
    }
    auto unstage = [&](const real *from, real *to) {
      to += split * s.dB_part + b * s.dB_stride[0] + g * s.dB_stride[1];
      for (int64_t n = 0; n < states; ++n)
        for (int64_t t = 0; t < steps; ++t)
          to[(positions ? positions[t] : t0 + t) * s.dB_stride[2] + n * s.dB_stride[3]] = from[t * states + n];
    };
    if (s.b_varies) unstage(dBs, s.dB);
    if (s.c_varies) unstage(dCs, s.dC);
  }
  for (int64_t k = 0; k < blocks; ++k) {
    int64_t c = (first + k) * W, d = b * s.channels + g * width + c, rows = width - c;
    store_lanes(s.dA + d * states, states, rows, dA + k * states);
    if (!s.b_varies) store_lanes(s.dB + d * states, states, rows, dBl + k * states);
    if (!s.c_varies) store_lanes(s.dC + d * states, states, rows, dCl + k * states);
    if (s.dinitial_state) store_lanes(s.dinitial_state + d * states, states, rows, carry + k * states);
    if (s.dD) store_first(s.dD + d, dD[k], rows);
    if (s.ddelta_bias) store_first(s.ddelta_bias + d, dbias[k], rows);
  }
}

// Sums `parts` arrays of `count` numbers into the first, in a fixed order.
void add_parts(real *values, int64_t parts, int64_t count, int64_t threads) {
  if (!values || parts < 2) return;
  const int64_t piece = 16384;
  parallel_for(threads, ceil_div(count, piece), [&](int64_t task, int64_t) {
    int64_t stop = (task + 1) * piece < count ? (task + 1) * piece : count;
    for (int64_t p = 1; p < parts; ++p)
      for (int64_t i = task * piece; i < stop; ++i) values[i] += values[p * count + i];
  });
}

void backward(const Scan &s) {
  const int64_t blocks = blocks_per_group(s), per_split = backward_blocks(s), splits = ceil_div(blocks, per_split);
  const int64_t bytes = backward_scratch(s);
  parallel_for(s.threads, s.batch * s.groups * splits, [&](int64_t task, int64_t thread) {
    int64_t split = task % splits, g = task / splits % s.groups, b = task / splits / s.groups;
    int64_t first = split * per_split, last = first + per_split < blocks ? first + per_split : blocks;
    backward_task(s, b, g, split, first, last, s.scratch + thread * bytes);
  });
  const int64_t square = s.channels * s.states;
  add_parts(s.dB, s.b_varies ? splits : s.batch, s.b_varies ? s.dB_part : square, s.threads);
  add_parts(s.dC, s.c_varies ? splits : s.batch, s.c_varies ? s.dB_part : square, s.threads);
  add_parts(s.dA, s.batch, square, s.threads);
  add_parts(s.dD, s.batch, s.channels, s.threads);
  add_parts(s.ddelta_bias, s.batch, s.channels, s.threads);
  if (s.permutation) {
    const int64_t width = s.channels / s.groups, positions = s.batch * s.length;
    const int64_t piece = 64;
    parallel_for(s.threads, ceil_div(positions, piece), [&](int64_t task, int64_t) {
      int64_t stop = (task + 1) * piece < positions ? (task + 1) * piece : positions;
      for (int64_t p = task * piece; p < stop; ++p) {
        real *from = s.du_directions + p * s.channels;
        for (int64_t g = 1; g < s.groups; ++g)
          for (int64_t c = 0; c < width; ++c) from[c] += from[g * width + c];
        narrow_any(s.type, from, (char *)s.du + p * width * type_size(s.type), (int)width);
      }
    });
  }
}

}  // namespace

VW_EXPORT int VW_SCAN(lanes)() { return W; }
VW_EXPORT int VW_SCAN(checkpoint_steps)() { return CHUNK; }

// Bytes of Scan::scratch. The caller allocates it, so that its allocator counts it and reports a lack of memory.
VW_EXPORT int64_t VW_SCAN(forward_scratch)(const Scan *s) { return s->threads * forward_scratch(*s); }
VW_EXPORT int64_t VW_SCAN(backward_scratch)(const Scan *s) { return s->threads * backward_scratch(*s); }

VW_EXPORT void VW_SCAN(forward)(const Scan *s) { forward(*s); }
VW_EXPORT void VW_SCAN(backward)(const Scan *s) { backward(*s); }

#if !defined(VW_DOUBLE)

// ---- the limits of this machine, for the benchmark; writing to `out` keeps the compiler from removing the work

// Computes exp2 of `vectors` vectors that stay in L1, `repeats` times per thread
VW_EXPORT int64_t VW_NAME(vw_bench_exp2)(int64_t repeats, int64_t threads, float *out) {
  constexpr int vectors = 128;
  parallel_for(threads, threads, [&](int64_t task, int64_t) {
    vf v[vectors], sum[8] = {};
    for (int i = 0; i < vectors; ++i) v[i] = splat(-0.01f * (float)(i + task));
    for (int64_t r = 0; r < repeats; ++r) {
      for (int i = 0; i < vectors; i += 8)
        for (int j = 0; j < 8; ++j) sum[j] += exp2_lanes(v[i + j]);
      asm volatile("" : : "r"(v) : "memory");
    }
    for (int j = 1; j < 8; ++j) sum[0] += sum[j];
    out[task] = sum[0][0];
  });
  return repeats * threads * vectors * W;
}

// Computes independent multiply-adds in registers
VW_EXPORT int64_t VW_NAME(vw_bench_fma)(int64_t repeats, int64_t threads, float *out) {
  constexpr int chains = VW_LANES == 16 ? 16 : 10;
  parallel_for(threads, threads, [&](int64_t task, int64_t) {
    vf v[chains];
    for (int i = 0; i < chains; ++i) v[i] = splat((float)i);
    vf a = splat(out[task]), b = splat(0.5f);
    for (int64_t r = 0; r < repeats; ++r)
#pragma GCC unroll 16
      for (int i = 0; i < chains; ++i) v[i] = v[i] * a + b;
    for (int i = 1; i < chains; ++i) v[0] += v[i];
    out[task] = v[0][0];
  });
  return repeats * threads * chains * W;
}

// a[i] = b[i] + c[i]
VW_EXPORT void VW_NAME(vw_bench_add)(float *a, const float *b, const float *c, int64_t count, int64_t threads) {
  const int64_t piece = ceil_div(ceil_div(count, threads), W) * W;
  parallel_for(threads, threads, [&](int64_t task, int64_t) {
    int64_t stop = (task + 1) * piece < count ? (task + 1) * piece : count;
    for (int64_t i = task * piece; i + W <= stop; i += W) store(a + i, load(b + i) + load(c + i));
  });
}

#endif
