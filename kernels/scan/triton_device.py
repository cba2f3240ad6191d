"""Triton kernels of the selective scan; `triton` prepares their arguments and launches them.

A program has one warp per 16 states. It processes one segment of the sequence, step by step, for 32 channels of one
group, with one channel per lane and the states in registers. Tiles of states are (NR, NL, BD): NR states in the
registers of a lane, NL warps, BD = 32 lanes. Register r = q * NV + v holds state n = (q * NL + nl) * NV + v, so a lane
reads NV = 4 neighbouring states of B and C with one 16-byte load, which is the same for all lanes, and no layout is
ever converted.

Tensors with channels are read in one of two layouts:
- scan order, (B, D, L): a lane reads four steps of its channel at once if L is a multiple of 16 (VECTOR);
- DIRECTIONAL, (B, L, K, C) in image order: 32 lanes read 32 neighbouring channels at the position that `perm` lists.

B and C (and the partial sums of their gradients) have the states last: (B, L, G, NP), where N is padded with zeros to a
power of two NP. A is given as A' = A log2(e), so that exp(dl A) = exp2(dl A'), and must be finite: a step beyond the
end has dl = 0 and u = 0 and leaves every state unchanged.
"""

# Device code is written in Triton's language: it has no starred tuples, and Python's types cannot describe its tuples.
# ruff: noqa: RUF005
# mypy: ignore-errors

import triton
import triton.language as tl

# Number of steps that are loaded together; the backward pass keeps their states in registers.
STEPS = tl.constexpr(4)
# Number of steps between two stored states, a multiple of STEPS; must equal `triton.CHECKPOINT_STEPS`.
CHUNK = tl.constexpr(16)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _softplus(x):
    # log1p(y) = y p(y) with p fitted on [0, 1]; relative error 2e-7 in float32, also for small step sizes
    y = tl.exp(-tl.abs(x))
    p = 0.00523268804
    p = p * y - 0.0295052137
    p = p * y + 0.0782259107
    p = p * y - 0.136632428
    p = p * y + 0.191060051
    p = p * y - 0.24842982
    p = p * y + 0.333190978
    p = p * y - 0.499994934
    p = p * y + 0.99999994
    return tl.maximum(x, 0.0) + y * p


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _state_index(NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr):
    """(NQ, NV, NL, BD): index of the state in each register, warp and lane."""
    q = tl.arange(0, NQ)[:, None, None, None]
    v = tl.arange(0, NV)[None, :, None, None]
    w = tl.arange(0, NL)[None, None, :, None]
    return (q * NL + w) * NV + v + tl.zeros((1, 1, 1, BD), tl.int32)


@triton.jit
def _load_states(p, N, lane, width, NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr):
    """Load rows of N states, one per lane -> (NR, NL, BD); 0 beyond N states and beyond `width` lanes."""
    n = _state_index(NQ, NV, NL, BD)
    c = tl.reshape(lane, (1, 1, 1, BD))
    tile = tl.load(p + c * N + n, mask=(c < width) & (n < N), other=0.0)
    return tl.reshape(tile, (NQ * NV, NL, BD)).to(tl.float32)


@triton.jit
def _store_states(p, tile, N, lane, width, NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr):
    n = _state_index(NQ, NV, NL, BD)
    c = tl.reshape(lane, (1, 1, 1, BD))
    tl.store(p + c * N + n, tl.reshape(tile, (NQ, NV, NL, BD)), mask=(c < width) & (n < N))


@triton.jit
def _load_vector(p, channel, lane, left, PRESENT: tl.constexpr, BD: tl.constexpr):
    """Load one value per channel -> (1, BD); 0 if the vector is absent."""
    values = tl.zeros((1, BD), tl.float32)
    if PRESENT:
        values = tl.load(p + channel + lane, mask=lane < left, other=0.0)
    return values


@triton.jit
def _matrix_start(p, batch, group, L, G, NP: tl.constexpr):
    """Pointer to B or C (B, L, G, NP) of this batch item and group."""
    return p + (batch.to(tl.int64) * L * G + group) * NP


@triton.jit
def _load_matrix(p, row, stride, NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr):
    """Load B or C of one step, NP neighbouring values -> (NR, NL, BD), the same in every lane."""
    tile = tl.load(p + row.to(tl.int64) * stride + _state_index(NQ, NV, NL, BD))
    return tl.reshape(tile, (NQ * NV, NL, BD)).to(tl.float32)


@triton.jit
def _constant(p, channel, N, lane, left, CONST: tl.constexpr, NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr,
              BD: tl.constexpr):  # fmt: skip
    """B or C (D, N) of these channels -> (NR, NL, BD); not read if the matrix varies."""
    tile = tl.zeros((NQ * NV, NL, BD), tl.float32)
    if CONST:
        tile = _load_states(p + channel.to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)
    return tile


@triton.jit
def _matrix_at(constant, p, row, stride, CONST: tl.constexpr, NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr,
               BD: tl.constexpr):  # fmt: skip
    """B or C of one step -> (NR, NL, BD)."""
    if CONST:
        return constant
    else:
        return _load_matrix(p, row, stride, NQ, NV, NL, BD)


@triton.jit
def _advance(h, dl, u, A, B):
    """The states after a step."""
    return tl.exp2(dl[None] * A) * h + (dl * u)[None] * B


@triton.jit
def _sum_states(tile, BD: tl.constexpr):
    """(NR, NL, BD) -> (1, BD)."""
    return tl.reshape(tl.sum(tl.sum(tile, 0), 0), (1, BD))


@triton.jit
def _rows(perm_p, group, t, L, DIRECTIONAL: tl.constexpr, RAGGED: tl.constexpr):
    """Positions of the steps t .. t + 3, and whether each step exists.

    Masks compare a block with `tl.where(exists, limit, 0)`: the interpreter of Triton 3.9 keeps a scalar condition as
    int32 and rejects a mask that was broadcast from it or combined with it.
    """
    rows = ()
    exist = ()
    for s in tl.static_range(STEPS):
        exists = t + s < L
        row = t + s
        if RAGGED:
            row = tl.where(exists, row, 0)
        if DIRECTIONAL:
            row = tl.load(perm_p + group.to(tl.int64) * L + row)
        rows = rows + (row,)
        exist = exist + (exists,)
    return rows, exist


@triton.jit
def _start(p, batch, group, first, L, G, width, shared: tl.constexpr, DIRECTIONAL: tl.constexpr):
    """Pointer to this program's channels in (B, D, L), or (B, L, G, C), or (B, L, C) if the groups share it."""
    if not DIRECTIONAL:
        return p + ((batch * G + group) * width + first).to(tl.int64) * L
    if shared:
        return p + batch.to(tl.int64) * L * width + first
    return p + batch.to(tl.int64) * L * G * width + group * width + first


@triton.jit
def _starts(tensors, batch, group, first, L, G, width, DIRECTIONAL: tl.constexpr):
    """`_start` for six tensors that the groups do not share."""
    starts = ()
    for k in tl.static_range(6):
        starts = starts + (_start(tensors[k], batch, group, first, L, G, width, False, DIRECTIONAL),)
    return starts


@triton.jit
def _load_steps(p, t, rows, exist, lane, left, L, stride, DIRECTIONAL: tl.constexpr, VECTOR: tl.constexpr,
                RAGGED: tl.constexpr):  # fmt: skip
    """Load four steps of 32 channels -> four (1, BD) tiles, float32; 0 beyond the last step or channel."""
    BD: tl.constexpr = lane.shape[1]
    steps = ()
    if VECTOR:
        c = tl.reshape(lane, (BD, 1))
        tile = tl.load(p + c.to(tl.int64) * L + t + tl.arange(0, STEPS)[None, :], mask=c < left, other=0.0)
        even, odd = tl.split(tl.reshape(tile.to(tl.float32), (BD, 2, 2)))
        s0, s2 = tl.split(even)
        s1, s3 = tl.split(odd)
        steps = (
            tl.reshape(s0, (1, BD)),
            tl.reshape(s1, (1, BD)),
            tl.reshape(s2, (1, BD)),
            tl.reshape(s3, (1, BD)),
        )
    else:
        for s in tl.static_range(STEPS):
            mask = lane < (tl.where(exist[s], left, 0) if RAGGED else left)
            if DIRECTIONAL:
                tile = tl.load(p + rows[s].to(tl.int64) * stride + lane, mask=mask, other=0.0)
            else:
                tile = tl.load(p + lane.to(tl.int64) * L + rows[s], mask=mask, other=0.0)
            steps = steps + (tile.to(tl.float32),)
    return steps


@triton.jit
def _store_steps(p, steps, t, rows, exist, lane, left, L, stride, DIRECTIONAL: tl.constexpr, VECTOR: tl.constexpr,
                 RAGGED: tl.constexpr):  # fmt: skip
    BD: tl.constexpr = lane.shape[1]
    if VECTOR:
        c = tl.reshape(lane, (BD, 1))
        even = tl.join(tl.reshape(steps[0], (BD,)), tl.reshape(steps[2], (BD,)))
        odd = tl.join(tl.reshape(steps[1], (BD,)), tl.reshape(steps[3], (BD,)))
        tile = tl.reshape(tl.join(even, odd), (BD, 4))
        tl.store(p + c.to(tl.int64) * L + t + tl.arange(0, STEPS)[None, :], tile, mask=c < left)
    else:
        for s in tl.static_range(STEPS):
            mask = lane < (tl.where(exist[s], left, 0) if RAGGED else left)
            if DIRECTIONAL:
                tl.store(p + rows[s].to(tl.int64) * stride + lane, steps[s], mask=mask)
            else:
                tl.store(p + lane.to(tl.int64) * L + rows[s], steps[s], mask=mask)


@triton.jit
def _step_sizes(raw, bias, exist, SOFTPLUS: tl.constexpr, RAGGED: tl.constexpr):
    sizes = ()
    for s in tl.static_range(STEPS):
        dl = raw[s] + bias
        if SOFTPLUS:
            dl = _softplus(dl)
        if RAGGED:
            dl = tl.where(exist[s], dl, 0.0)
        sizes = sizes + (dl,)
    return sizes


@triton.jit
def _pick(steps, k: tl.constexpr, REVERSE: tl.constexpr):
    return steps[STEPS - 1 - k] if REVERSE else steps[k]


@triton.jit
def _place(G, n_blocks, n_segments, width, BD: tl.constexpr):
    """Batch item, segment, group, block and first channel of this program; neighbouring programs share B and C."""
    index = tl.program_id(0)
    block = index % n_blocks
    index = index // n_blocks
    group = index % G
    index = index // G
    return index // n_segments, index % n_segments, group, block, block * BD


@triton.jit
def segment_ends(
    delta_p, w_p, M_p, z_p, A_p, bias_p, perm_p, end_p, sum_p,
    L, G, width, N, n_blocks, n_segments, segment,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, CONST_M: tl.constexpr, W_SHARED: tl.constexpr,
    REVERSE: tl.constexpr, DIRECTIONAL: tl.constexpr, VECTOR: tl.constexpr, RAGGED: tl.constexpr,
    NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """First pass: the state at the end of each segment for an initial state of 0, and the sum of the step sizes.

    Forward, with w = u and M = B: h <- a h + (dl w) M. With REVERSE, w = gradient of out and M = C:
    r <- a (r + w silu(z) M), from the last step to the first. The results are (B, segments, D, N) and (B, segments, D),
    float32.
    """
    batch, seg, group, _block, first = _place(G, n_blocks, n_segments, width, BD)
    lane = tl.arange(0, BD)[None, :]
    left = width - first
    channel = group * width + first
    NP: tl.constexpr = NQ * NV * NL
    A = _load_states(A_p + channel.to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)
    bias = _load_vector(bias_p, channel, lane, left, HAS_BIAS, BD)
    delta = _start(delta_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    w_start = _start(w_p, batch, group, first, L, G, width, W_SHARED, DIRECTIONAL)
    z_start = _start(z_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    w_stride = width if W_SHARED else G * width
    matrix = _matrix_start(M_p, batch, group, L, G, NP)
    if CONST_M:
        M = _load_states(M_p + channel.to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)

    h = tl.zeros((NQ * NV, NL, BD), tl.float32)
    total = tl.zeros((1, BD), tl.float32)
    begin = seg * segment
    stop = tl.minimum(begin + segment, tl.cdiv(L, STEPS) * STEPS)
    for i in range(0, stop - begin, STEPS):
        t = stop - STEPS - i if REVERSE else begin + i
        rows, exist = _rows(perm_p, group, t, L, DIRECTIONAL, RAGGED)
        raw = _load_steps(delta, t, rows, exist, lane, left, L, G * width, DIRECTIONAL, VECTOR, RAGGED)
        ws = _load_steps(w_start, t, rows, exist, lane, left, L, w_stride, DIRECTIONAL, VECTOR, RAGGED)
        if HAS_Z:
            zs = _load_steps(z_start, t, rows, exist, lane, left, L, G * width, DIRECTIONAL, VECTOR, RAGGED)
        dls = _step_sizes(raw, bias, exist, SOFTPLUS, RAGGED)
        for k in tl.static_range(STEPS):
            dl = _pick(dls, k, REVERSE)
            w = _pick(ws, k, REVERSE)
            if not CONST_M:
                M = _load_matrix(matrix, _pick(rows, k, REVERSE), G * NP, NQ, NV, NL, BD)
            a = tl.exp2(dl[None] * A)
            if REVERSE:
                if HAS_Z:
                    gate = _pick(zs, k, REVERSE)
                    w = w * gate * _sigmoid(gate)
                h = a * (h + w[None] * M)
            else:
                h = a * h + (dl * w)[None] * M
            total += dl
    place = (batch * n_segments + seg).to(tl.int64) * (G * width) + channel
    _store_states(end_p + place * N, h, N, lane, left, NQ, NV, NL, BD)
    tl.store(sum_p + place + lane, total, mask=lane < left)


@triton.jit
def carry_states(
    end_p, sum_p, A_p, first_p, start_p,
    G, width, N, n_blocks, n_segments,
    HAS_FIRST: tl.constexpr, REVERSE: tl.constexpr,
    NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Between the passes: the state that enters each segment, (B, segments, D, N), from the results of the first pass.

    The decay over a segment is exp(A times the sum of its step sizes). `first` (B, D, N) is the state that enters the
    first segment, or with REVERSE the last segment.
    """
    batch, _seg, group, _block, first = _place(G, n_blocks, 1, width, BD)
    lane = tl.arange(0, BD)[None, :]
    left = width - first
    channel = group * width + first
    A = _load_states(A_p + channel.to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)
    h = tl.zeros((NQ * NV, NL, BD), tl.float32)
    if HAS_FIRST:
        h = _load_states(first_p + (batch * G * width + channel).to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)
    for i in range(n_segments):
        seg = n_segments - 1 - i if REVERSE else i
        place = (batch * n_segments + seg).to(tl.int64) * (G * width) + channel
        total = tl.load(sum_p + place + lane, mask=lane < left, other=0.0)
        end = _load_states(end_p + place * N, N, lane, left, NQ, NV, NL, BD)
        _store_states(start_p + place * N, h, N, lane, left, NQ, NV, NL, BD)
        h = tl.exp2(total[None] * A) * h + end


@triton.jit
def scan_segments(
    u_p, delta_p, A_p, B_p, C_p, D_p, z_p, bias_p, perm_p, start_p, out_p, last_p, check_p,
    L, G, width, N, n_blocks, n_segments, segment, n_chunks,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_START: tl.constexpr,
    CONST_B: tl.constexpr, CONST_C: tl.constexpr, SAVE: tl.constexpr,
    DIRECTIONAL: tl.constexpr, VECTOR: tl.constexpr, RAGGED: tl.constexpr,
    NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Second pass, forward: the outputs from the state that enters each segment; stores a state every CHUNK steps."""
    batch, seg, group, _block, first = _place(G, n_blocks, n_segments, width, BD)
    lane = tl.arange(0, BD)[None, :]
    left = width - first
    channel = group * width + first
    NP: tl.constexpr = NQ * NV * NL
    A = _load_states(A_p + channel.to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)
    bias = _load_vector(bias_p, channel, lane, left, HAS_BIAS, BD)
    skip = _load_vector(D_p, channel, lane, left, HAS_D, BD)
    constant_B = _constant(B_p, channel, N, lane, left, CONST_B, NQ, NV, NL, BD)
    constant_C = _constant(C_p, channel, N, lane, left, CONST_C, NQ, NV, NL, BD)
    B_start = _matrix_start(B_p, batch, group, L, G, NP)
    C_start = _matrix_start(C_p, batch, group, L, G, NP)
    u = _start(u_p, batch, group, first, L, G, width, True, DIRECTIONAL)
    delta = _start(delta_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    z = _start(z_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    out = _start(out_p, batch, group, first, L, G, width, False, DIRECTIONAL)

    h = tl.zeros((NQ * NV, NL, BD), tl.float32)
    if HAS_START:
        place = (batch * n_segments + seg).to(tl.int64) * (G * width) + channel
        h = _load_states(start_p + place * N, N, lane, left, NQ, NV, NL, BD)
    begin = seg * segment
    stop = tl.minimum(begin + segment, tl.cdiv(L, STEPS) * STEPS)
    for i in range(0, stop - begin, STEPS):
        t = begin + i
        if SAVE:  # noqa: SIM102  (known at compile time)
            if t % CHUNK == 0:
                place = (batch * n_chunks + t // CHUNK).to(tl.int64) * (G * width) + channel
                _store_states(check_p + place * N, h, N, lane, left, NQ, NV, NL, BD)
        rows, exist = _rows(perm_p, group, t, L, DIRECTIONAL, RAGGED)
        us = _load_steps(u, t, rows, exist, lane, left, L, width, DIRECTIONAL, VECTOR, RAGGED)
        raw = _load_steps(delta, t, rows, exist, lane, left, L, G * width, DIRECTIONAL, VECTOR, RAGGED)
        if HAS_Z:
            zs = _load_steps(z, t, rows, exist, lane, left, L, G * width, DIRECTIONAL, VECTOR, RAGGED)
        dls = _step_sizes(raw, bias, exist, SOFTPLUS, RAGGED)
        ys = ()
        for s in tl.static_range(STEPS):
            B = _matrix_at(constant_B, B_start, rows[s], G * NP, CONST_B, NQ, NV, NL, BD)
            C = _matrix_at(constant_C, C_start, rows[s], G * NP, CONST_C, NQ, NV, NL, BD)
            h = _advance(h, dls[s], us[s], A, B)
            y = _sum_states(h * C, BD)
            if HAS_D:
                y += skip * us[s]
            if HAS_Z:
                y *= zs[s] * _sigmoid(zs[s])
            ys = ys + (y,)
        _store_steps(out, ys, t, rows, exist, lane, left, L, G * width, DIRECTIONAL, VECTOR, RAGGED)
    if seg == n_segments - 1:
        _store_states(last_p + (batch * G * width + channel).to(tl.int64) * N, h, N, lane, left, NQ, NV, NL, BD)


@triton.jit
def _sum_lanes(x, V: tl.constexpr, W: tl.constexpr):
    """(V, W) -> (V,): sums over lanes.

    Halving with `split` makes the compiler transpose the tile once through shared memory, at 1.5 instructions per
    value; `tl.sum` over lanes is a butterfly of 5 shuffles and 5 additions per value.
    """
    if W == 1:
        return tl.reshape(x, (V,))
    else:
        even, odd = tl.split(tl.reshape(x, (V, W // 2, 2)))
        return _sum_lanes(even + odd, V, W // 2)


@triton.jit
def _store_matrix_gradients(p, dB, dC, exists, RAGGED: tl.constexpr, NQ: tl.constexpr, NV: tl.constexpr,
                            NL: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """Sum dB and dC (NR, NL, BD) of one step over the lanes, and write them as a row [dB: NP, dC: NP]."""
    NP: tl.constexpr = NQ * NV * NL
    # position of value v of the joined tile (NR, NL, 2)
    v = tl.arange(0, 2 * NP)
    r = v // 2 // NL
    place = (v % 2) * NP + ((r // NV) * NL + v // 2 % NL) * NV + r % NV
    both = tl.reshape(tl.permute(tl.join(dB, dC), (0, 1, 3, 2)), (2 * NP, BD))
    sums = _sum_lanes(both, 2 * NP, BD)
    if RAGGED:
        tl.store(p + place, sums, mask=place < tl.where(exists, 2 * NP, 0))
    else:
        tl.store(p + place, sums)


@triton.jit
def _states_in_chunk(
    h3, t_chunk, u, delta, perm_p, constant_B, B_start, A, bias, group, lane, left, L, G, width,
    SOFTPLUS: tl.constexpr, CONST_B: tl.constexpr, DIRECTIONAL: tl.constexpr, VECTOR: tl.constexpr,
    RAGGED: tl.constexpr, NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The states before the second, third and fourth group of steps of a chunk, from those before the first."""
    h2 = h3
    h1 = h3
    for j in range(CHUNK // STEPS - 1):
        t = t_chunk + j * STEPS
        rows, exist = _rows(perm_p, group, t, L, DIRECTIONAL, RAGGED)
        us = _load_steps(u, t, rows, exist, lane, left, L, width, DIRECTIONAL, VECTOR, RAGGED)
        raw = _load_steps(delta, t, rows, exist, lane, left, L, G * width, DIRECTIONAL, VECTOR, RAGGED)
        dls = _step_sizes(raw, bias, exist, SOFTPLUS, RAGGED)
        h1, h2 = h2, h3
        for s in tl.static_range(STEPS):
            B = _matrix_at(constant_B, B_start, rows[s], G * NQ * NV * NL, CONST_B, NQ, NV, NL, BD)
            h3 = _advance(h3, dls[s], us[s], A, B)
    return h1, h2, h3


@triton.jit
def _step_back(
    before_step, carry, dl, raw, u, gy, z, exists, A, B, C, skip, bias,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, RAGGED: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One step backwards, from the states before it and the gradient that the next step passes on.

    Returns:
        carry, and the terms of the gradients: of u, delta and z at this step, of D, of A, and of B and C.
    """
    x = dl * u
    decay = tl.exp2(dl[None] * A)
    p = decay * before_step
    h = p + x[None] * B
    dz = gy
    if HAS_Z:
        y = _sum_states(h * C, BD)
        if HAS_D:
            y += skip * u
        gate = _sigmoid(z)
        dz = gy * y * gate * (1.0 + z * (1.0 - gate))
        gy = gy * z * gate
    g = carry + C * gy[None]
    gp = g * p
    sum_gB = _sum_states(g * B, BD)
    du = dl * sum_gB
    if HAS_D:
        du += skip * gy
    ddl = u * sum_gB + _sum_states(gp * A, BD) * LN_2
    if SOFTPLUS:
        ddl *= _sigmoid(raw + bias)
    if RAGGED:
        ddl = tl.where(exists, ddl, 0.0)
    return decay * g, du, ddl, dz, gy * u, gp * dl[None], g * x[None], h * gy[None]


@triton.jit
def _group_back(
    before, sums, inputs, outputs, t, perm_p, A_start, check, constant_B, constant_C,
    B_start, C_start, skip, bias, group, lane, left, L, G, width, N, n_blocks,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, CONST_B: tl.constexpr, CONST_C: tl.constexpr,
    DIRECTIONAL: tl.constexpr, VECTOR: tl.constexpr, RAGGED: tl.constexpr,
    NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """STEPS steps backwards: the steps run forward from the states before them, which are kept, and then back.

    `before` are the states before this group of steps, and the two groups of the chunk before it; `sums` are the carry
    and the gradients of A, B, C, D and the bias so far; `inputs` point to u, delta, the gradient of out and z,
    `outputs` to the gradients of u, delta, z, and of B and C. Returns the new `before` and `sums`.
    """
    h1, h2, h3 = before
    carry, dA, dB, dC, dD, dbias = sums
    u, delta, gout, z = inputs
    du, ddelta, dz, dBC = outputs
    stride = G * width
    NP: tl.constexpr = NQ * NV * NL
    rows, exist = _rows(perm_p, group, t, L, DIRECTIONAL, RAGGED)
    us = _load_steps(u, t, rows, exist, lane, left, L, width, DIRECTIONAL, VECTOR, RAGGED)
    raw = _load_steps(delta, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
    gs = _load_steps(gout, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
    zs = gs
    if HAS_Z:
        zs = _load_steps(z, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
    dls = _step_sizes(raw, bias, exist, SOFTPLUS, RAGGED)
    A = _load_states(A_start, N, lane, left, NQ, NV, NL, BD)
    h = h3
    befores = ()
    for s in tl.static_range(STEPS):
        befores = befores + (h,)
        B = _matrix_at(constant_B, B_start, rows[s], G * NP, CONST_B, NQ, NV, NL, BD)
        h = _advance(h, dls[s], us[s], A, B)
    # A is read again, or the compiler would keep the decays from above and run out of registers; the barrier keeps it
    # from merging the two reads
    tl.debug_barrier()
    A = _load_states(A_start, N, lane, left, NQ, NV, NL, BD)
    h3, h2 = h2, h1
    h1 = _load_states(check, N, lane, left, NQ, NV, NL, BD)
    dus, ddls, dzs = (), (), ()
    for s in tl.static_range(STEPS - 1, -1, -1):
        B = _matrix_at(constant_B, B_start, rows[s], G * NP, CONST_B, NQ, NV, NL, BD)
        C = _matrix_at(constant_C, C_start, rows[s], G * NP, CONST_C, NQ, NV, NL, BD)
        carry, du_s, ddl_s, dz_s, dD_s, dA_s, dB_s, dC_s = _step_back(
            befores[s], carry, dls[s], raw[s], us[s], gs[s], zs[s], exist[s], A, B, C, skip, bias,
            SOFTPLUS, HAS_D, HAS_Z, RAGGED, BD,
        )  # fmt: skip
        dA, dbias = dA + dA_s, dbias + ddl_s
        dus, ddls, dzs = (du_s,) + dus, (ddl_s,) + ddls, (dz_s,) + dzs
        if HAS_D:
            dD += dD_s
        if CONST_B:
            dB += dB_s
        if CONST_C:
            dC += dC_s
        if not (CONST_B and CONST_C):  # the half of a constant matrix is written but not read
            to = dBC + rows[s].to(tl.int64) * (G * n_blocks * 2 * NP)
            _store_matrix_gradients(to, dB_s, dC_s, exist[s], RAGGED, NQ, NV, NL, BD)
    _store_steps(du, dus, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
    _store_steps(ddelta, ddls, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
    if HAS_Z:
        _store_steps(dz, dzs, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
    return (h1, h2, h3), (carry, dA, dB, dC, dD, dbias)


@triton.jit
def _store_sums(
    sums, place, outputs, N, lane, left, CONST_B: tl.constexpr, CONST_C: tl.constexpr,
    NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write the gradients of A, D and the bias over a segment, and those of B and C if these are constant."""
    _carry, dA, dB, dC, dD, dbias = sums
    dA_p, dB_p, dC_p, dD_p, dbias_p = outputs
    _store_states(dA_p + place * N, dA, N, lane, left, NQ, NV, NL, BD)
    if CONST_B:
        _store_states(dB_p + place * N, dB, N, lane, left, NQ, NV, NL, BD)
    if CONST_C:
        _store_states(dC_p + place * N, dC, N, lane, left, NQ, NV, NL, BD)
    tl.store(dD_p + place + lane, dD, mask=lane < left)
    tl.store(dbias_p + place + lane, dbias, mask=lane < left)


@triton.jit
def backward_segments(
    gout_p, u_p, delta_p, A_p, B_p, C_p, D_p, z_p, bias_p, perm_p, carry_p, check_p,
    du_p, ddelta_p, dz_p, dBC_p, dA_p, dB_p, dC_p, dD_p, dbias_p, dfirst_p,
    L, G, width, N, n_blocks, n_segments, segment, n_chunks,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CARRY: tl.constexpr,
    CONST_B: tl.constexpr, CONST_C: tl.constexpr,
    DIRECTIONAL: tl.constexpr, VECTOR: tl.constexpr, RAGGED: tl.constexpr,
    NQ: tl.constexpr, NV: tl.constexpr, NL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Second pass, backward: chunk by chunk from the last step of the segment to the first.

    Each chunk is recomputed forward from its checkpoint, keeping every STEPS-th state; each group of STEPS steps is
    computed again, keeping all its states, and then processed backwards. `carry` is a_t g_t, which each step passes to
    the previous step. Each program writes its own sums over channels (dB, dC) and over steps (dA, dD, ...); they are
    added afterwards in a fixed order, without atomic additions.
    """
    batch, seg, group, block, first = _place(G, n_blocks, n_segments, width, BD)
    lane = tl.arange(0, BD)[None, :]
    left = width - first
    channel = group * width + first
    NP: tl.constexpr = NQ * NV * NL
    A_start = A_p + channel.to(tl.int64) * N
    bias = _load_vector(bias_p, channel, lane, left, HAS_BIAS, BD)
    skip = _load_vector(D_p, channel, lane, left, HAS_D, BD)
    constant_B = _constant(B_p, channel, N, lane, left, CONST_B, NQ, NV, NL, BD)
    constant_C = _constant(C_p, channel, N, lane, left, CONST_C, NQ, NV, NL, BD)
    B_start = _matrix_start(B_p, batch, group, L, G, NP)
    C_start = _matrix_start(C_p, batch, group, L, G, NP)
    u = _start(u_p, batch, group, first, L, G, width, True, DIRECTIONAL)
    own = (delta_p, gout_p, z_p, du_p, ddelta_p, dz_p)
    delta, gout, z, du, ddelta, dz = _starts(own, batch, group, first, L, G, width, DIRECTIONAL)
    dBC = dBC_p + ((batch.to(tl.int64) * L * G + group) * n_blocks + block) * (2 * NP)

    states = tl.zeros((NQ * NV, NL, BD), tl.float32)
    carry = states
    if HAS_CARRY:
        place = (batch * n_segments + seg).to(tl.int64) * (G * width) + channel
        carry = _load_states(carry_p + place * N, N, lane, left, NQ, NV, NL, BD)
    sums = (carry, states, states, states, tl.zeros((1, BD), tl.float32), tl.zeros((1, BD), tl.float32))
    begin = seg * segment
    n_seg_chunks = tl.cdiv(tl.minimum(begin + segment, L) - begin, CHUNK)
    for i in range(n_seg_chunks):
        t_chunk = begin + (n_seg_chunks - 1 - i) * CHUNK
        place = (batch * n_chunks + t_chunk // CHUNK).to(tl.int64) * (G * width) + channel
        # the states before the first group of steps of this chunk, which are read again when they are needed
        h = _load_states(check_p + place * N, N, lane, left, NQ, NV, NL, BD)
        A = _load_states(A_start, N, lane, left, NQ, NV, NL, BD)
        before = _states_in_chunk(
            h, t_chunk, u, delta, perm_p, constant_B, B_start, A, bias, group, lane, left, L, G, width,
            SOFTPLUS, CONST_B, DIRECTIONAL, VECTOR, RAGGED, NQ, NV, NL, BD,
        )  # fmt: skip
        for j in range(CHUNK // STEPS):
            before, sums = _group_back(
                before, sums, (u, delta, gout, z), (du, ddelta, dz, dBC), t_chunk + CHUNK - STEPS - j * STEPS,
                perm_p, A_start, check_p + place * N, constant_B, constant_C, B_start, C_start, skip, bias, group,
                lane, left, L, G, width, N, n_blocks,
                SOFTPLUS, HAS_D, HAS_Z, CONST_B, CONST_C, DIRECTIONAL, VECTOR, RAGGED, NQ, NV, NL, BD,
            )  # fmt: skip
    place = (batch * n_segments + seg).to(tl.int64) * (G * width) + channel
    _store_sums(
        sums, place, (dA_p, dB_p, dC_p, dD_p, dbias_p), N, lane, left, CONST_B, CONST_C, NQ, NV, NL, BD
    )  # fmt: skip
    if seg == 0:
        place = (batch * G * width + channel).to(tl.int64)
        _store_states(dfirst_p + place * N, sums[0], N, lane, left, NQ, NV, NL, BD)
