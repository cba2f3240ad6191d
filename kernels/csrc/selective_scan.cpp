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
#include <tuple>
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

constexpr int NEAR = VW_LANES == 16 ? 3 : 2;  // the cache for prefetches; rows a power of two apart share a set of L1
constexpr int CHUNK = 128;  // steps between two stored states
constexpr int TILE = 2 * CHUNK;  // steps of a tile: fewer touch more pages of memory, more do not fit into the caches

// e^x for x <= 0, corrected for the rounding of x / ln 2, of N vectors in place
template <int N>
INLINE void exp_negative(vf *x) {
#if VW_LANES == 16 && !defined(VW_DOUBLE)
  constexpr float high = 1.44269502f, low = 1.92596303e-08f, least = -87.0f;  // of 1 / ln 2
  vf f[N], shifted[N];
  for (int i = 0; i < N; ++i) x[i] = at_least(splat(least), x[i]);
  for (int i = 0; i < N; ++i) shifted[i] = x[i] * high + ROUNDING / 32;
  for (int i = 0; i < N; ++i) f[i] = shifted[i] - ROUNDING / 32;
  for (int i = 0; i < N; ++i) f[i] = x[i] * high - f[i];
  for (int i = 0; i < N; ++i) f[i] = x[i] * low + f[i];
  exp2_thirty_seconds<N>(shifted, f, x);
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

INLINE vf minus_absolute(vf x) { return (vf)((vi)x | (vi)splat(-0.0f)); }

#if VW_LANES == 16 && !defined(VW_DOUBLE)
// Coefficients of y^0, y^1 and y^2 for log(1 + y) / y near y = k / 31, relative error 2.7e-7
alignas(64) const float log1p_table[3][32] = {
    {0.99999994f, 0.999993682f, 0.999944925f, 0.999822378f, 0.999603748f, 0.999274075f, 0.998823524f, 0.99824667f,
     0.99754101f, 0.996706426f, 0.995744765f, 0.994658887f, 0.993452728f, 0.992131054f, 0.990698695f, 0.989161134f,
     0.987523794f, 0.98579216f, 0.983971655f, 0.982067823f, 0.98008579f, 0.978030801f, 0.975907624f, 0.973721147f,
     0.97147578f, 0.969175935f, 0.966825664f, 0.964428961f, 0.961989522f, 0.959510803f, 0.956996202f, 0.955083072f},
    {-0.499964088f, -0.499316961f, -0.49731195f, -0.494274199f, -0.490401596f, -0.485857487f, -0.480777025f,
     -0.475272298f, -0.469436437f, -0.463346988f, -0.457068413f, -0.450654536f, -0.44415015f, -0.437592596f,
     -0.431012928f, -0.424436957f, -0.417886078f, -0.411377937f, -0.404927105f, -0.398545444f, -0.39224264f,
     -0.386026412f, -0.379902929f, -0.373877019f, -0.367952317f, -0.362131536f, -0.356416523f, -0.350808471f,
     -0.345307976f, -0.339915156f, -0.334629685f, -0.330728531f},
    {0.327371567f, 0.310368955f, 0.289557934f, 0.270674974f, 0.253493935f, 0.23782061f, 0.223487362f, 0.210348949f,
     0.198279083f, 0.187167525f, 0.176917732f, 0.167444885f, 0.158674181f, 0.150539532f, 0.142982334f, 0.135950506f,
     0.129397616f, 0.123282209f, 0.117567122f, 0.112219043f, 0.107207991f, 0.102506928f, 0.0980914682f, 0.0939395204f,
     0.090031065f, 0.0863479301f, 0.0828735679f, 0.0795929134f, 0.0764922127f, 0.0735588893f, 0.0707814321f,
     0.0687926337f}};
#endif

// log(1 + y) / y of N vectors for 0 <= y <= 1
template <int N>
INLINE void log1p_ratio(const vf *y, vf *q) {
#if VW_LANES == 16 && !defined(VW_DOUBLE)
  vf k[N];
  for (int i = 0; i < N; ++i) k[i] = y[i] * (31.0f / 32) + ROUNDING / 32;
  for (int i = 0; i < N; ++i) q[i] = look_up(log1p_table[2], k[i]) * y[i] + look_up(log1p_table[1], k[i]);
  for (int i = 0; i < N; ++i) q[i] = q[i] * y[i] + look_up(log1p_table[0], k[i]);
#else
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
  for (int i = 0; i < N; ++i) q[i] = splat(first);
  for (const real factor : factors)
    for (int i = 0; i < N; ++i) q[i] = q[i] * y[i] + factor;
#endif
}

INLINE vf reciprocal(vf x) {
#if VW_LANES == 16 && !defined(VW_DOUBLE)
  const vf guess = (vf)_mm512_rcp14_ps((__m512)x);
  return guess + guess * (1.0f - guess * x);
#else
  return 1.0f / x;
#endif
}

// log(1 + e^x) of N vectors, in place, relative error 1e-6, or 1e-15 for doubles, even for tiny results; `slope` receives
// its derivative, the sigmoid.
template <bool SLOPE, int N>
INLINE void softplus(vf *x, vf *slope) {
  vf y[N], q[N];
  for (int i = 0; i < N; ++i) y[i] = minus_absolute(x[i]);
  exp_negative<N>(y);
  log1p_ratio<N>(y, q);
  for (int i = 0; i < N; ++i) {
    if (SLOPE) slope[i] = ((x[i] >= 0.0f) ? splat(1.0f) : y[i]) * reciprocal(y[i] + 1.0f);
#if VW_LANES == 16 && !defined(VW_DOUBLE)
    x[i] = y[i] * q[i] + at_least(vf{}, x[i]);  // y is NaN if x is, and below the rounding of large x
#else
    if (SLOPE) slope[i] = (x[i] > 20.0f) ? splat(1.0f) : slope[i];
    const vf positive = (vf)((vi)x[i] & ~(x[i] < 0.0f)), result = y[i] * q[i] + positive;
    x[i] = (x[i] > 20.0f) ? x[i] : (x[i] == x[i]) ? result : x[i];
#endif
  }
}

INLINE vf sigmoid(vf x) {
  vf y = minus_absolute(x);
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

// Lane i of the result is the sum of v[i % COUNT] over the COUNT lanes from i / COUNT * COUNT.
template <int COUNT, int S = 1>
INLINE vf lane_sums(vf *v) {
  if constexpr (S < COUNT) {
    for (int i = 0; i < COUNT; i += 2 * S) {
      exchange<S>(v[i], v[i + S], std::make_index_sequence<W>());
      v[i] += v[i + S];
    }
    return lane_sums<COUNT, 2 * S>(v);
  }
  return v[0];
}

// The sums of the halves of a, then of b. In one term no lane moves, which takes a blend in place of a shuffle.
template <size_t... I>
INLINE vf add_halves(vf a, vf b, std::index_sequence<I...>) {
  constexpr size_t half = W / 2;
  return __builtin_shufflevector(a, b, (I < half ? I : W + I)...) +
         __builtin_shufflevector(a, b, (I < half ? I + half : W + I - half)...);
}

// The sums of the first two quarters of a, then of b, then of the last two of a, then of b
template <size_t... I>
INLINE vf add_quarters(vf a, vf b, std::index_sequence<I...>) {
  constexpr size_t part = W < 4 ? 1 : W / 4;
  return __builtin_shufflevector(a, b, (I / part % 2 ? W + I : I)...) +
         __builtin_shufflevector(a, b, (I / part % 2 ? W + I - part : I + part)...);
}

// Adds up the lanes of N vectors as far as N lanes become W: lanes i * W / N and following belong to v[i].
template <int N>
INLINE vf fold(const vf *v) {
  constexpr auto lanes = std::make_index_sequence<W>();
  static_assert(N <= 4 && N <= W);
  if constexpr (N == 4) return add_quarters(add_halves(v[0], v[2], lanes), add_halves(v[1], v[3], lanes), lanes);
  if constexpr (N == 2) return add_halves(v[0], v[1], lanes);
  return v[0];
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- tiles: TILE steps of W channels as [step][lane]

// Memory of W channels of these steps, in either layout. Strides count bytes.
struct Tile {
  char *base;                // first channel; the first step (channel first) or position 0 (channel last)
  int64_t step, row;         // of a step or position, of a channel
  const int32_t *positions;  // of the steps, or null for channel first
  int rows, steps, type;     // rows <= W real channels
  INLINE char *at(int t, int lane) const { return base + (positions ? positions[t] : t) * step + lane * row; }
};

INLINE int64_t type_size(int64_t type) { return type == 0 ? sizeof(real) : 2; }

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

// The next of some rows. GCC would compute the addresses of all rows before the loop, and keep those for which it lacks
// registers in vectors.
template <class T>
INLINE T *next_row(T *row, int64_t stride) {
  row += stride;
  asm("" : "+r"(row));
  return row;
}

// to[t * stride + i] = from[i * row + t] for W rows
void to_columns(const real *from, int64_t row, int steps, real *to, int64_t stride) {
  int t = 0;
  for (; t + W <= steps; t += W) {
    vf block[W];
    const real *next = from + t;
    for (int i = 0; i < W; ++i, next = next_row(next, row)) block[i] = load(next);
    transpose(block);
    for (int i = 0; i < W; ++i) store(to + (t + i) * stride, block[i]);
  }
  for (; t < steps; ++t)
    for (int i = 0; i < W; ++i) to[t * stride + i] = from[i * row + t];
}

// to[i * row + t] = lane i of from(t), for W rows
template <class From>
INLINE void to_rows(const From &from, int steps, real *to, int64_t row) {
  int t = 0;
  for (; t + W <= steps; t += W) {
    vf block[W];
    for (int i = 0; i < W; ++i) block[i] = from(t + i);
    transpose(block);
    real *next = to + t;
    for (int i = 0; i < W; ++i, next = next_row(next, row)) store(next, block[i]);
  }
  for (; t < steps; ++t) {
    const vf lanes = from(t);
    for (int i = 0; i < W; ++i) to[i * row + t] = lanes[i];
  }
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
  if (tile.type == 0 && tile.rows >= W)
    return to_columns((const real *)tile.base, tile.row / (int64_t)sizeof(real), tile.steps, (real *)to, W);
  for (int i = 0; i < W; ++i)
    if (i < tile.rows) widen_any(tile.type, tile.at(0, i), tile.step, tile.steps, staging + i * TILE);
    else std::memset(staging + i * TILE, 0, tile.steps * sizeof(real));
  to_columns(staging, TILE, tile.steps, (real *)to, W);
}

// Stores from(t), which is called once for each step, in order
template <class From>
void store_tile(const Tile &tile, real *staging, const From &from) {
  if (tile.positions) {
    for (int t = 0; t < tile.steps; ++t) {
      const vf lanes = from(t);
      if (tile.type != 0) narrow_any(tile.type, (const real *)&lanes, tile.at(t, 0), tile.rows);
      else if (tile.rows >= W) store((real *)tile.at(t, 0), lanes);
      else store_first((real *)tile.at(t, 0), lanes, tile.rows);
    }
    return;
  }
  if (tile.type == 0 && tile.rows >= W)
    return to_rows(from, tile.steps, (real *)tile.base, tile.row / (int64_t)sizeof(real));
  to_rows(from, tile.steps, staging, TILE);
  for (int i = 0; i < tile.rows; ++i) narrow_any(tile.type, staging + i * TILE, tile.at(0, i), tile.steps);
}

// A cache line of a tile for each step, in bytes from its base. All tiles of a tensor have the same lines; with positions,
// all tiles of the same steps.
struct Lines {
  bool known;
  const int32_t *positions;  // for which they are known
  int64_t offset[TILE];
  void find(const Tile &tile) {
    if (known && tile.positions == positions) return;
    known = true;
    positions = tile.positions;
    if (positions) {
      // the last channel: the first one is often in a line of the block before
      for (int t = 0; t < TILE; ++t) offset[t] = tile.at(t < tile.steps ? t : 0, tile.rows - 1) - tile.base;
      return;
    }
    // only full tiles are prefetched; with 2-byte numbers or few lanes the rows end early and start again
    int t = 0;
    for (int row = 0; t < TILE; row = row + 1 < tile.rows ? row + 1 : 0)
      for (int64_t byte = 0; byte < TILE * type_size(tile.type) && t < TILE; byte += 64) offset[t++] = row * tile.row + byte;
  }
};

// Tiles to prefetch while a time loop runs, one cache line of each per step
template <int TILES>
struct Ahead {
  const char *base[TILES];
  const Lines *lines[TILES];
  void aim(int i, const Tile &tile, Lines &of_tensor) {
    of_tensor.find(tile);
    base[i] = tile.base;
    lines[i] = &of_tensor;
  }
  INLINE const char *line(int tile, int t) const { return base[tile] + lines[tile]->offset[t]; }
};

// Copies B or C of the steps of a tile to [step][state]: its rows are often a power of two apart and would share a cache set.
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
  int64_t n = 0;
  for (; type == 0 && stride[2] == 1 && n + W <= states; n += W)
    to_columns((const real *)from + t0 + n * stride[3], stride[3], (int)steps, to + n, states);
  for (; n < states; ++n) {
    widen_any(type, from + (t0 * stride[2] + n * stride[3]) * size, stride[2] * size, (int)steps, row);
    for (int64_t t = 0; t < steps; ++t) to[t * states + n] = row[t];
  }
}

// Prefetches part k of `parts` of B or C of the tile at t0, whose rows are far apart.
void prefetch_matrix(const Scan &s, const void *matrix, const int64_t *stride, int64_t b, int64_t g, int64_t t0, int64_t k,
                     int64_t parts) {
  const int64_t size = type_size(s.type);
  const char *from = (const char *)matrix + (b * stride[0] + g * stride[1] + t0 * stride[2]) * size;
  for (int64_t n = k; n < s.states; n += parts)
    for (int64_t byte = 0; byte < TILE * size; byte += 64) __builtin_prefetch(from + n * stride[3] * size + byte, 0, NEAR);
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
// Of the decays; with the table these take so few steps that more of them only push states out of the registers.
constexpr int DECAYS = VW_LANES == 16 && sizeof(real) == 4 ? 1 : TOGETHER;
// Steps whose decays are computed before the states that need them. With 16 registers (AVX2, Zen 3), a state that waits for
// its decay would keep others from entering the scheduler: 16.7 ms became 14.5 ms for 720 x 4096, 16 states.
constexpr int PIECE = VW_LANES == 16 ? 1 : 16;

// Decays of N states in one step; BOUNDED: exp2_products serves
template <int N, bool BOUNDED>
INLINE void decays(vf dl, const vf *A2, vf *a) {
  if (BOUNDED) return exp2_products<N>(dl, A2, a);
  for (int i = 0; i < N; ++i) a[i] = dl * A2[i];
  exp2_all<N>(a);
}

template <int NT, bool BV, bool CV, bool BOUNDED>
void forward_states(int steps, int states, const vf *dl, const vf *x, vf *y, const vf *A2, vf *state, const real *Bs,
                    const real *Cs, const vf *Bl, const vf *Cl, const Ahead<3> *ahead, int first_line) {
  constexpr int N = NT < DECAYS ? NT : DECAYS;
  vf h[NT], b[NT], c[NT], ready[PIECE * NT];
  for (int i = 0; i < NT; ++i) {
    h[i] = state[i];
    if (!BV) b[i] = Bl[i];
    if (!CV) c[i] = Cl[i];
  }
  for (int t0 = 0; t0 < steps; t0 += PIECE) {
    const int count = PIECE == 1 || steps - t0 > PIECE ? PIECE : steps - t0;
    for (int t = 0; t < count; ++t) {
      if (ahead) {
        __builtin_prefetch(ahead->line(0, first_line + t0 + t), 0, NEAR);
        __builtin_prefetch(ahead->line(1, first_line + t0 + t), 0, NEAR);
        __builtin_prefetch(ahead->line(2, first_line + t0 + t), 1, NEAR);
      }
#pragma GCC unroll 16
      for (int n = 0; n < NT && PIECE > 1; n += N) decays<N, BOUNDED>(dl[t0 + t], A2 + n, ready + t * NT + n);
    }
    for (int t = t0; t < t0 + count; ++t) {
      const vf xt = x[t];
      const real *bt = Bs + t * states, *ct = Cs + t * states;
      vf yt = y[t], dlt = dl[t];
#if VW_LANES == 16
      // GCC 12 would compute the decays of the first states in the step before, whose registers it then saves to memory
      asm("" : "+v"(dlt));
#endif
#pragma GCC unroll 16
      for (int n = 0; n < NT; n += N) {
        vf a[N];
        if constexpr (PIECE == 1)
          decays<N, BOUNDED>(dlt, A2 + n, a);
        else
          for (int i = 0; i < N; ++i) a[i] = ready[(t - t0) * NT + n + i];
        for (int i = n; i < n + N; ++i) {
          h[i] = multiply_add(a[i - n], h[i], xt * (BV ? splat(bt[i]) : b[i]));
          yt = multiply_add(h[i], CV ? splat(ct[i]) : c[i], yt);
        }
      }
      y[t] = yt;
    }
  }
  for (int i = 0; i < NT; ++i) state[i] = h[i];
}

template <bool BV, bool CV, bool BOUNDED>
void forward_block(int steps, int states, const vf *dl, const vf *x, vf *y, const vf *A2, vf *state, const real *Bs,
                   const real *Cs, const vf *Bl, const vf *Cl, const Ahead<3> *ahead, int first_line) {
  int n = 0;
#define VW_PASS(NT)                                                                                                    \
  {                                                                                                                    \
    forward_states<NT, BV, CV, BOUNDED>(steps, states, dl, x, y, A2 + n, state + n, Bs + n, Cs + n, Bl + n, Cl + n, ahead, first_line); \
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
                       const vf *, const Ahead<3> *, int);

template <bool... CHOSEN>
Block choose_block() {
  return forward_block<CHOSEN...>;
}

template <bool... CHOSEN, class... Rest>
Block choose_block(bool next, Rest... rest) {
  return next ? choose_block<CHOSEN..., true>(rest...) : choose_block<CHOSEN..., false>(rest...);
}

// Whether |dl * A2| is below 120, for which exp2_products serves; the arguments are the largest magnitudes of each lane
INLINE bool bounded(vf most_dl, vf most_A2) {
  bool all = true;
  const vf product = most_dl * most_A2;
  for (int i = 0; i < W; ++i) all = all && product[i] < 120.0f;
  return all;
}

vf largest_magnitude(const vf *x, int64_t count) {
  vf most = {};
  for (int64_t i = 0; i < count; ++i) most = at_least(most, absolute(x[i]));
  return most;
}

// The checkpoint at step t of the block of channels from d, (states, channels of the block)
INLINE real *checkpoint(const Scan &s, int64_t b, int64_t t, int64_t d) {
  return s.checkpoints + ((b * ceil_div(s.length, CHUNK) + t / CHUNK) * s.channels + d) * s.states;
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
  const size_t bytes = sizeof(vf) * (4 * TILE + blocks * (s.states * 4 + s.rank + 2)) +
                       sizeof(real) * (TILE * (2 * s.states + s.rank) + W * TILE) + 3 * sizeof(Lines);
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
          (int)(steps < TILE ? steps : TILE), (int)type};
}

void forward_task(const Scan &s, int64_t b, int64_t g, int64_t first, int64_t last, char *memory) {
  const int64_t width = s.channels / s.groups, states = s.states, blocks = last - first;
  Arena arena{memory};
  vf *tx = arena.take<vf>(TILE), *tdl = arena.take<vf>(TILE), *ty = arena.take<vf>(TILE), *tz = arena.take<vf>(TILE);
  vf *A2 = arena.take<vf>(blocks * states), *state = arena.take<vf>(blocks * states);
  vf *Bl = arena.take<vf>(blocks * states), *Cl = arena.take<vf>(blocks * states);
  real *Bs = arena.take<real>(TILE * states), *Cs = arena.take<real>(TILE * states);
  real *staging = arena.take<real>(W * TILE);
  Lines *lines = arena.take<Lines>(3);
  vf *sums = arena.take<vf>(blocks), *most_A2 = arena.take<vf>(blocks), *steps_weight = arena.take<vf>(blocks * s.rank);
  real *low = arena.take<real>(TILE * s.rank);

  for (int64_t k = 0; k < blocks; ++k) {
    int64_t c = (first + k) * W, d = g * width + c, rows = width - c;
    sums[k] = vf{};
    if (s.rank) load_lanes(s.delta_weight + d * s.rank, s.rank, rows, steps_weight + k * s.rank);
    load_lanes(s.A + d * states, states, rows, A2 + k * states);
    for (int64_t n = 0; n < states; ++n) A2[k * states + n] = finite(A2[k * states + n]) * LOG2_E;
    most_A2[k] = largest_magnitude(A2 + k * states, states);
    if (s.initial_state)
      load_lanes(s.initial_state + (b * s.channels + d) * states, states, rows, state + k * states);
    else
      for (int64_t n = 0; n < states; ++n) state[k * states + n] = vf{};
    if (!s.b_varies) load_lanes((const real *)s.B + d * states, states, rows, Bl + k * states);
    if (!s.c_varies) load_lanes((const real *)s.C + d * states, states, rows, Cl + k * states);
  }
  for (int i = 0; i < 3; ++i) lines[i].known = false;
  for (int64_t t0 = 0; t0 < s.length; t0 += TILE) {
    const int steps = (int)(s.length - t0 < TILE ? s.length - t0 : TILE);
    const int32_t *positions = s.permutation ? s.permutation + g * s.length + t0 : nullptr;
    if (s.b_varies)
      stage_matrix(s.type, s.B, s.B_stride, b, g, positions, t0, steps, states, Bs, staging);
    if (s.c_varies)
      stage_matrix(s.type, s.C, s.C_stride, b, g, positions, t0, steps, states, Cs, staging);
    if (s.rank) stage_matrix(s.type, s.delta, s.delta_stride, b, g, positions, t0, steps, s.rank, low, staging);
    for (int64_t k = 0; k < blocks; ++k) {
      int64_t c = (first + k) * W, d = g * width + c, rows = width - c;
      load_tile(tile_of(s, s.type, s.u, s.u_stride, b, g, c, t0), tx, staging);
      if (s.rank)
        multiply_steps(low, steps_weight + k * s.rank, steps, s.rank, tdl);
      else
        load_tile(tile_of(s, s.type, s.delta, s.delta_stride, b, g, c, t0), tdl, staging);
      vf bias = s.delta_bias ? load_first(s.delta_bias + d, rows) : vf{};
      vf D = s.D ? load_first(s.D + d, rows) : vf{};
      vf most_dl = {};
      for (int t = 0; t < steps; t += TOGETHER) {
        const int some = steps - t < TOGETHER ? steps - t : TOGETHER;
        vf *dl = tdl + t;
        step_sizes<false>(dl, some, bias, s.softplus, nullptr);
        for (int i = 0; i < some; ++i) {
          const vf u = tx[t + i];
          tx[t + i] = dl[i] * u;
          ty[t + i] = s.D ? D * u : vf{};
          most_dl = at_least(most_dl, absolute(dl[i]));
        }
      }
      // prefetch the next block of these steps, or the first block of the next
      bool same = k + 1 < blocks;
      int64_t next_c = same ? c + W : first * W, next_t = same ? t0 : t0 + TILE;
      Ahead<3> ahead;
      const bool more = next_t + TILE <= s.length;
      if (more) {
        const Tile out = tile_of(s, s.type, s.out, s.out_stride, b, g, c, t0);
        const Tile u = tile_of(s, s.type, s.u, s.u_stride, b, g, next_c, next_t);
        ahead.aim(2, out, lines[2]);
        if (s.rank) {  // the next channels of the same positions are mostly in the cache lines that were read
          for (int i = 0; i < 2; ++i) same ? ahead.aim(i, out, lines[2]) : ahead.aim(i, u, lines[0]);
        } else {
          ahead.aim(0, u, lines[0]);
          ahead.aim(1, tile_of(s, s.type, s.delta, s.delta_stride, b, g, next_c, next_t), lines[1]);
        }
        for (auto [varies, matrix, stride] : {std::make_tuple(s.b_varies, s.B, s.B_stride), {s.c_varies, s.C, s.C_stride}})
          if (varies && !positions && t0 + 2 * TILE <= s.length)
            prefetch_matrix(s, matrix, stride, b, g, t0 + TILE, k, blocks);
      }
      const bool within = bounded(most_dl, most_A2[k]);
      for (int t = 0; t < steps && !within; ++t) tdl[t] = finite(tdl[t]);
      auto block = choose_block(s.b_varies, s.c_varies, within);
      vf *A2_k = A2 + k * states, *state_k = state + k * states;
      const int piece = s.checkpoints ? CHUNK : TILE;
      for (int t = 0; t < steps; t += piece) {
        for (int64_t n = 0; s.checkpoints && n < states; ++n)
          store_first(checkpoint(s, b, t0 + t, d) + n * (rows < W ? rows : W), state_k[n], rows);
        block(steps - t < piece ? steps - t : piece, (int)states, tdl + t, tx + t, ty + t, A2_k, state_k, Bs + t * states,
              Cs + t * states, Bl + k * states, Cl + k * states, more ? &ahead : nullptr, t);
      }
      if (s.z) {
        load_tile(tile_of(s, s.type, s.z, s.z_stride, b, g, c, t0), tz, staging);
        for (int t = 0; t < steps; ++t) ty[t] *= tz[t] * sigmoid(tz[t]);
      }
      store_tile(tile_of(s, s.type, s.out, s.out_stride, b, g, c, t0), staging, [&](int t) { return ty[t]; });
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

// States per pass, so that their gradients stay in registers
constexpr int NTB = VW_LANES == 16 ? 4 : 2;

struct BlockTiles {
  vf u[TILE], dl[TILE], x[TILE], gy[TILE], slope[TILE], sum_gB[TILE], sum_gAp[TILE], y[TILE], gz[TILE];
};

// The passes over all states of one step, each with a vector of folded lanes for the gradients of B and C
int64_t passes(int64_t states) { return states / NTB + states % NTB / 2 + states % 2; }

constexpr int AHEAD = 5;  // tiles of the next block to prefetch: of u, delta, grad_out, du, ddelta

// One chunk of one block of channels
struct ChannelBlock {
  int from, steps;           // of the tile
  int states, passes, rows;
  bool first;                // of its task: dB and dC are empty
  bool by_position;          // the tiles of `ahead` have channels last
  BlockTiles *tile;
  const real *start;         // the checkpoint
  const real *B, *C;         // (steps of the tile, states), if they vary
  vf *dB, *dC;               // (steps of the tile, passes), folded lanes
  vf *decays, *kept;         // a, and h before and after each step: (steps of the chunk, states of a pass), and one step more
  const Ahead<AHEAD> *ahead;  // or null
};

template <int NT, bool BV, bool CV, bool GATED, bool BOUNDED>
void backward_states(const ChannelBlock &block, int first, int pass, const vf *A, vf *carry, vf *dA, const vf *Bl,
                     const vf *Cl, vf *dBl, vf *dCl) {
  const int from = block.from, steps = block.steps, states = block.states;
  BlockTiles &tile = *block.tile;
  vf *as = block.decays, *hs = block.kept;
  const real *Bs = block.B + first, *Cs = block.C + first;
  vf h[NT], A2[NT], b[NT], c[NT];
  for (int i = 0; i < NT; ++i) {
    h[i] = hs[i] = load_first(block.start + (first + i) * block.rows, block.rows);
    A2[i] = A[i] * LOG2_E;
    if (!BV) b[i] = Bl[i];
    if (!CV) c[i] = Cl[i];
  }
  for (int t = from; t < from + steps; ++t) {
    const vf xt = tile.x[t];
    if (block.ahead) {
      for (int i = pass; i < AHEAD; i += block.passes) {
        if (block.by_position)
          __builtin_prefetch(block.ahead->line(i, t), 0, NEAR);
        else
          __builtin_prefetch(block.ahead->line(i, t), 0, 2);  // L1 cost a tenth of the time
      }
    }
    vf yt = {}, a[NT];
    if (GATED) yt = tile.y[t];
    decays<NT, BOUNDED>(tile.dl[t], A2, a);
#pragma GCC unroll 4
    for (int i = 0; i < NT; ++i) {
      h[i] = multiply_add(a[i], h[i], xt * (BV ? splat(Bs[t * states + i]) : b[i]));
      as[(t - from) * NT + i] = a[i];
      hs[(t - from + 1) * NT + i] = h[i];
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
  for (int t = from + steps - 1; t >= from; --t) {
    const vf gy = tile.gy[t], xt = tile.x[t], dlt = tile.dl[t];
    vf sb = {}, sa = {}, gx[NT], hy[NT];
    if (pass) sb = tile.sum_gB[t], sa = tile.sum_gAp[t];
#pragma GCC unroll 4
    for (int i = 0; i < NT; ++i) {
      const vf g = gy * (CV ? splat(Cs[t * states + i]) : c[i]) + ag[i];
      hy[i] = h[i] * gy;
      gx[i] = g * xt;
      h[i] = hs[(t - from) * NT + i];
      ag[i] = as[(t - from) * NT + i] * g;
      const vf gp = ag[i] * h[i];
      sb += g * (BV ? splat(Bs[t * states + i]) : b[i]);
      sa += gp * Ar[i];
      da[i] += gp * dlt;
      if (!BV) db[i] += gx[i];
      if (!CV) dc[i] += hy[i];
    }
    vf sum_gx = fold<NT>(gx), sum_hy = fold<NT>(hy);
    const int at = t * block.passes + pass;
    if (BV) block.dB[at] = block.first ? sum_gx : block.dB[at] + sum_gx;
    if (CV) block.dC[at] = block.first ? sum_hy : block.dC[at] + sum_hy;
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

using BackwardPass = void (*)(const ChannelBlock &, int, int, const vf *, vf *, vf *, const vf *, const vf *, vf *, vf *);

template <int NT, bool... CHOSEN>
BackwardPass choose() {
  return backward_states<NT, CHOSEN...>;
}

template <int NT, bool... CHOSEN, class... Rest>
BackwardPass choose(bool next, Rest... rest) {
  return next ? choose<NT, CHOSEN..., true>(rest...) : choose<NT, CHOSEN..., false>(rest...);
}

// Calls work(number of states, first state, pass) for the passes over all states; the first is a constant.
template <class Work>
INLINE void for_each_pass(int64_t states, const Work &work) {
  int64_t n = 0, pass = 0;
  for (; n + NTB <= states; n += NTB) work(std::integral_constant<int, NTB>(), n, pass++);
  if constexpr (NTB > 2)
    for (; n + 2 <= states; n += 2) work(std::integral_constant<int, 2>(), n, pass++);
  for (; n < states; ++n) work(std::integral_constant<int, 1>(), n, pass++);
}

template <int NT, size_t... I>
INLINE vf by_step(vf sums, std::index_sequence<I...>) {
  return __builtin_shufflevector(sums, sums, (I % NT * (W / NT) + I / NT)...);
}

// Writes the sums of folded lanes, every `passes`th vector from `from`, to NT columns of [step][states].
template <int NT>
void unfold(const vf *from, int64_t passes, int steps, int states, real *to) {
  constexpr int COUNT = W / NT;
  for (int t = 0; t < steps; t += COUNT) {
    vf v[COUNT] = {};
    for (int i = 0; i < COUNT && t + i < steps; ++i) v[i] = from[(t + i) * passes];
    const vf sums = by_step<NT>(lane_sums<COUNT>(v), std::make_index_sequence<W>());
    for (int i = 0; i < COUNT && t + i < steps; ++i)
      __builtin_memcpy(to + (t + i) * states, (const real *)&sums + i * NT, NT * sizeof(real));
  }
}

// Channel blocks per backward task; the caller chooses s.splits as the number of tasks per group.
int64_t backward_blocks(const Scan &s) { return ceil_div(blocks_per_group(s), s.splits); }

// Scratch bytes per thread, with a page to spare for the rounding of the arena.
int64_t backward_scratch(const Scan &s) {
  const int64_t blocks = backward_blocks(s);
  const size_t bytes = sizeof(BlockTiles) +
                       sizeof(vf) * (7 * blocks * s.states + 3 * blocks + NTB * (2 * CHUNK + 1) + 2 * TILE * passes(s.states)) +
                       sizeof(real) * (4 * TILE * s.states + W * TILE) + AHEAD * sizeof(Lines);
  return (ceil_div(bytes, PAGE) + 1) * PAGE;
}

void backward_task(const Scan &s, int64_t b, int64_t g, int64_t split, int64_t first, int64_t last, char *memory) {
  const int64_t width = s.channels / s.groups, states = s.states, blocks = last - first;
  const int64_t columns = passes(states);
  Arena arena{memory};
  BlockTiles &q = *arena.take<BlockTiles>(1);
  vf *A = arena.take<vf>(blocks * states), *carry = arena.take<vf>(blocks * states);
  vf *dA = arena.take<vf>(blocks * states), *dBl = arena.take<vf>(blocks * states);
  vf *dCl = arena.take<vf>(blocks * states), *Bl = arena.take<vf>(blocks * states);
  vf *Cl = arena.take<vf>(blocks * states), *most_A2 = arena.take<vf>(blocks);
  vf *dD = arena.take<vf>(blocks), *dbias = arena.take<vf>(blocks);
  vf *decays = arena.take<vf>(NTB * CHUNK), *kept = arena.take<vf>(NTB * (CHUNK + 1));
  vf *dBt = arena.take<vf>(columns * TILE), *dCt = arena.take<vf>(columns * TILE);
  real *Bs = arena.take<real>(TILE * states), *Cs = arena.take<real>(TILE * states);
  real *dBs = arena.take<real>(TILE * states), *dCs = arena.take<real>(TILE * states);
  real *staging = arena.take<real>(W * TILE);
  Lines *lines = arena.take<Lines>(AHEAD);

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
    most_A2[k] = largest_magnitude(A + k * states, states) * LOG2_E;
    if (!s.b_varies) load_lanes((const real *)s.B + d * states, states, rows, Bl + k * states);
    if (!s.c_varies) load_lanes((const real *)s.C + d * states, states, rows, Cl + k * states);
  }
  for (int i = 0; i < AHEAD; ++i) lines[i].known = false;
  for (int64_t t0 = (s.length - 1) / TILE * TILE; t0 >= 0; t0 -= TILE) {
    const int steps = (int)(s.length - t0 < TILE ? s.length - t0 : TILE);
    const int32_t *positions = s.permutation ? s.permutation + g * s.length + t0 : nullptr;
    if (s.b_varies)
      stage_matrix(s.type, s.B, s.B_stride, b, g, positions, t0, steps, states, Bs, staging);
    if (s.c_varies)
      stage_matrix(s.type, s.C, s.C_stride, b, g, positions, t0, steps, states, Cs, staging);
    auto tile = [&](const void *tensor, const int64_t *stride, int64_t c) {
      return tile_of(s, s.type, tensor, stride, b, g, c, t0);
    };
    for (int64_t k = 0; k < blocks; ++k) {
      int64_t c = (first + k) * W, d = g * width + c, rows = width - c < W ? width - c : W;
      load_tile(tile(s.u, s.u_stride, c), q.u, staging);
      load_tile(tile(s.delta, s.delta_stride, c), q.dl, staging);
      load_tile(tile(s.grad_out, s.grad_out_stride, c), q.gy, staging);
      vf bias = s.delta_bias ? load_first(s.delta_bias + d, rows) : vf{};
      vf D = s.D ? load_first(s.D + d, rows) : vf{};
      vf most_dl = {};
      for (int t = 0; t < steps; t += TOGETHER) {
        const int some = steps - t < TOGETHER ? steps - t : TOGETHER;
        step_sizes<true>(q.dl + t, some, bias, s.softplus, q.slope + t);
        for (int i = t; i < t + some; ++i) {
          q.x[i] = q.dl[i] * q.u[i];
          most_dl = at_least(most_dl, absolute(q.dl[i]));
        }
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
      const bool same = k + 1 < blocks, more = same ? steps == TILE : t0 > 0;
      Ahead<AHEAD> ahead;
      if (more) {
        const int64_t next_c = same ? c + W : first * W, next_t = same ? t0 : t0 - TILE;
        auto aim = [&](int i, int64_t type, const void *tensor, const int64_t *stride) {
          ahead.aim(i, tile_of(s, type, tensor, stride, b, g, next_c, next_t), lines[i]);
        };
        aim(0, s.type, s.u, s.u_stride);
        aim(1, s.type, s.delta, s.delta_stride);
        aim(2, s.type, s.grad_out, s.grad_out_stride);
        aim(3, s.permutation ? 0 : s.type, s.permutation ? s.du_directions : s.du, s.out_stride);
        aim(4, s.type, s.ddelta, s.out_stride);
      }
      for (auto [varies, matrix, stride] : {std::make_tuple(s.b_varies, s.B, s.B_stride), {s.c_varies, s.C, s.C_stride}})
        if (varies && !positions && t0 > 0) prefetch_matrix(s, matrix, stride, b, g, t0 - TILE, k, blocks);
      const bool within = bounded(most_dl, most_A2[k]);
      for (int t = 0; t < steps && !within; ++t) q.dl[t] = finite(q.dl[t]);
      for (int from = (steps - 1) / CHUNK * CHUNK; from >= 0; from -= CHUNK) {
        const int some = steps - from < CHUNK ? steps - from : CHUNK;
        const ChannelBlock block{from, some, (int)states, (int)columns, (int)rows, k == 0, positions != nullptr, &q,
                                 checkpoint(s, b, t0 + from, d), Bs, Cs, dBt, dCt, decays, kept, more ? &ahead : nullptr};
        for_each_pass(states, [&](auto count, int64_t n, int64_t pass) {
          const int64_t at = k * states + n;
          choose<decltype(count)::value>(s.b_varies, s.c_varies, s.z != nullptr, within)(
              block, (int)n, (int)pass, A + at, carry + at, dA + at, Bl + at, Cl + at, dBl + at, dCl + at);
        });
      }
      vf sum_D = dD[k], sum_bias = dbias[k];
      const bool direct = s.D;
      const Tile du = s.permutation ? tile_of(s, 0, s.du_directions, s.out_stride, b, g, c, t0) : tile(s.du, s.out_stride, c);
      store_tile(du, staging, [&](int t) {
        sum_D += q.gy[t] * q.u[t];
        const vf through_states = q.dl[t] * q.sum_gB[t];
        return direct ? through_states + D * q.gy[t] : through_states;
      });
      store_tile(tile(s.ddelta, s.out_stride, c), staging, [&](int t) {
        const vf ddelta = (q.u[t] * q.sum_gB[t] + q.sum_gAp[t]) * q.slope[t];
        sum_bias += ddelta;
        return ddelta;
      });
      if (s.z) store_tile(tile(s.dz, s.out_stride, c), staging, [&](int t) { return q.y[t] * q.gz[t]; });
      dD[k] = sum_D;
      dbias[k] = sum_bias;
    }
    auto unstage = [&](const vf *folded, real *sums, real *to) {
      for_each_pass(states, [&](auto count, int64_t n, int64_t pass) {
        unfold<decltype(count)::value>(folded + pass, columns, steps, (int)states, sums + n);
      });
      to += split * s.dB_part + b * s.dB_stride[0] + g * s.dB_stride[1];
      int64_t n = 0;
      for (; !positions && s.dB_stride[2] == 1 && n + W <= states; n += W)
        to_rows([&](int t) { return load(sums + t * states + n); }, steps, to + t0 + n * s.dB_stride[3], s.dB_stride[3]);
      for (int64_t t = 0; t < steps; ++t)
        for (int64_t i = n; i < states; ++i)
          to[(positions ? positions[t] : t0 + t) * s.dB_stride[2] + i * s.dB_stride[3]] = sums[t * states + i];
    };
    if (s.b_varies) unstage(dBt, dBs, s.dB);
    if (s.c_varies) unstage(dCt, dCs, s.dC);
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
    vf v[vectors], sum[4] = {};
    for (int i = 0; i < vectors; ++i) v[i] = splat((float)(i + task));
    for (int64_t r = 0; r < repeats; ++r) {
      for (int i = 0; i < vectors; i += 4) {
        vf x[4];
        exp2_products<4>(splat(-0.01f), v + i, x);
        for (int j = 0; j < 4; ++j) sum[j] += x[j];
      }
      asm volatile("" : : "r"(v) : "memory");
    }
    for (int j = 1; j < 4; ++j) sum[0] += sum[j];
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
