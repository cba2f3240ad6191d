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
    if CONST_B:
        B = _load_states(B_p + channel.to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)
    if CONST_C:
        C = _load_states(C_p + channel.to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)
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
            if not CONST_B:
                B = _load_matrix(B_start, rows[s], G * NP, NQ, NV, NL, BD)
            if not CONST_C:
                C = _load_matrix(C_start, rows[s], G * NP, NQ, NV, NL, BD)
            h = tl.exp2(dls[s][None] * A) * h + (dls[s] * us[s])[None] * B
            y = tl.reshape(tl.sum(tl.sum(h * C, 0), 0), (1, BD))
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
    NR: tl.constexpr = NQ * NV
    NP: tl.constexpr = NR * NL
    A_start = A_p + channel.to(tl.int64) * N
    bias = _load_vector(bias_p, channel, lane, left, HAS_BIAS, BD)
    skip = _load_vector(D_p, channel, lane, left, HAS_D, BD)
    if CONST_B:
        B = _load_states(B_p + channel.to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)
        dB = tl.zeros((NR, NL, BD), tl.float32)
    if CONST_C:
        C = _load_states(C_p + channel.to(tl.int64) * N, N, lane, left, NQ, NV, NL, BD)
        dC = tl.zeros((NR, NL, BD), tl.float32)
    B_start = _matrix_start(B_p, batch, group, L, G, NP)
    C_start = _matrix_start(C_p, batch, group, L, G, NP)
    u = _start(u_p, batch, group, first, L, G, width, True, DIRECTIONAL)
    delta = _start(delta_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    gout = _start(gout_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    z = _start(z_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    du = _start(du_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    ddelta = _start(ddelta_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    dz = _start(dz_p, batch, group, first, L, G, width, False, DIRECTIONAL)
    stride = G * width
    dBC = dBC_p + ((batch.to(tl.int64) * L * G + group) * n_blocks + block) * (2 * NP)
    # position of value v of the joined tile (NR, NL, 2) of dB and dC in a row [dB: NP, dC: NP]
    v = tl.arange(0, 2 * NP)
    r = v // 2 // NL
    place_BC = (v % 2) * NP + ((r // NV) * NL + v // 2 % NL) * NV + r % NV

    dA = tl.zeros((NR, NL, BD), tl.float32)
    dD = tl.zeros((1, BD), tl.float32)
    dbias = tl.zeros((1, BD), tl.float32)
    carry = tl.zeros((NR, NL, BD), tl.float32)
    if HAS_CARRY:
        place = (batch * n_segments + seg).to(tl.int64) * stride + channel
        carry = _load_states(carry_p + place * N, N, lane, left, NQ, NV, NL, BD)
    begin = seg * segment
    n_seg_chunks = tl.cdiv(tl.minimum(begin + segment, L) - begin, CHUNK)
    for i in range(n_seg_chunks):
        t_chunk = begin + (n_seg_chunks - 1 - i) * CHUNK
        place = (batch * n_chunks + t_chunk // CHUNK).to(tl.int64) * stride + channel
        # the states before the four groups of steps of this chunk; the first is read again when it is needed
        h3 = _load_states(check_p + place * N, N, lane, left, NQ, NV, NL, BD)
        h2 = h3
        h1 = h3
        A = _load_states(A_start, N, lane, left, NQ, NV, NL, BD)
        for j in range(CHUNK // STEPS - 1):
            t = t_chunk + j * STEPS
            rows, exist = _rows(perm_p, group, t, L, DIRECTIONAL, RAGGED)
            us = _load_steps(u, t, rows, exist, lane, left, L, width, DIRECTIONAL, VECTOR, RAGGED)
            raw = _load_steps(delta, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
            dls = _step_sizes(raw, bias, exist, SOFTPLUS, RAGGED)
            h1, h2 = h2, h3
            for s in tl.static_range(STEPS):
                if not CONST_B:
                    B = _load_matrix(B_start, rows[s], G * NP, NQ, NV, NL, BD)
                h3 = tl.exp2(dls[s][None] * A) * h3 + (dls[s] * us[s])[None] * B
        for j in range(CHUNK // STEPS):
            t = t_chunk + CHUNK - STEPS - j * STEPS
            rows, exist = _rows(perm_p, group, t, L, DIRECTIONAL, RAGGED)
            us = _load_steps(u, t, rows, exist, lane, left, L, width, DIRECTIONAL, VECTOR, RAGGED)
            raw = _load_steps(delta, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
            gs = _load_steps(gout, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
            if HAS_Z:
                zs = _load_steps(z, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
            dls = _step_sizes(raw, bias, exist, SOFTPLUS, RAGGED)
            A = _load_states(A_start, N, lane, left, NQ, NV, NL, BD)
            h = h3
            befores = ()
            for s in tl.static_range(STEPS):
                befores = befores + (h,)
                if not CONST_B:
                    B = _load_matrix(B_start, rows[s], G * NP, NQ, NV, NL, BD)
                h = tl.exp2(dls[s][None] * A) * h + (dls[s] * us[s])[None] * B
            # A is read again, or the compiler would keep the decays from above and run out of registers; the barrier
            # keeps it from merging the two reads
            tl.debug_barrier()
            A = _load_states(A_start, N, lane, left, NQ, NV, NL, BD)
            h3, h2 = h2, h1
            h1 = _load_states(check_p + place * N, N, lane, left, NQ, NV, NL, BD)
            dus = ()
            ddls = ()
            dzs = ()
            for s in tl.static_range(STEPS - 1, -1, -1):
                if not CONST_B:
                    B = _load_matrix(B_start, rows[s], G * NP, NQ, NV, NL, BD)
                if not CONST_C:
                    C = _load_matrix(C_start, rows[s], G * NP, NQ, NV, NL, BD)
                x = dls[s] * us[s]
                before = tl.exp2(dls[s][None] * A)
                p = before * befores[s]
                h = p + x[None] * B
                gy = gs[s]
                if HAS_Z:
                    y = tl.reshape(tl.sum(tl.sum(h * C, 0), 0), (1, BD))
                    if HAS_D:
                        y += skip * us[s]
                    gate = _sigmoid(zs[s])
                    dzs = (gy * y * gate * (1.0 + zs[s] * (1.0 - gate)),) + dzs
                    gy = gy * zs[s] * gate
                g = carry + C * gy[None]
                carry = before * g
                gp = g * p
                dA += gp * dls[s][None]
                sum_gB = tl.reshape(tl.sum(tl.sum(g * B, 0), 0), (1, BD))
                sum_gAp = tl.reshape(tl.sum(tl.sum(gp * A, 0), 0), (1, BD)) * LN_2
                dx = dls[s] * sum_gB
                if HAS_D:
                    dx += skip * gy
                    dD += gy * us[s]
                ddl = us[s] * sum_gB + sum_gAp
                if SOFTPLUS:
                    ddl *= _sigmoid(raw[s] + bias)
                if RAGGED:
                    ddl = tl.where(exist[s], ddl, 0.0)
                dbias += ddl
                dus = (dx,) + dus
                ddls = (ddl,) + ddls
                if CONST_B:
                    dB += g * x[None]
                if CONST_C:
                    dC += h * gy[None]
                if not (CONST_B and CONST_C):
                    # a constant matrix is summed above; its half of the row is written but not read
                    both = tl.join(g * x[None], h * gy[None])
                    both = tl.reshape(tl.permute(both, (0, 1, 3, 2)), (2 * NP, BD))
                    sums = _sum_lanes(both, 2 * NP, BD)
                    to = dBC + rows[s].to(tl.int64) * (G * n_blocks * 2 * NP)
                    if RAGGED:
                        tl.store(to + place_BC, sums, mask=place_BC < tl.where(exist[s], 2 * NP, 0))
                    else:
                        tl.store(to + place_BC, sums)
            _store_steps(du, dus, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
            _store_steps(ddelta, ddls, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
            if HAS_Z:
                _store_steps(dz, dzs, t, rows, exist, lane, left, L, stride, DIRECTIONAL, VECTOR, RAGGED)
    place = (batch * n_segments + seg).to(tl.int64) * stride + channel
    _store_states(dA_p + place * N, dA, N, lane, left, NQ, NV, NL, BD)
    if CONST_B:
        _store_states(dB_p + place * N, dB, N, lane, left, NQ, NV, NL, BD)
    if CONST_C:
        _store_states(dC_p + place * N, dC, N, lane, left, NQ, NV, NL, BD)
    tl.store(dD_p + place + lane, dD, mask=lane < left)
    tl.store(dbias_p + place + lane, dbias, mask=lane < left)
    if seg == 0:
        _store_states(dfirst_p + (batch * G * width + channel).to(tl.int64) * N, carry, N, lane, left, NQ, NV, NL, BD)
