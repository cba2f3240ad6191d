"""Encoding of the position of an object as a vector: OAT's distance table, and sinusoids for comparison."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["learned", "original", "linear", "exp1", "exp2", "original_update"]
KINDS: tuple[str, ...] = get_args(Kind)
_BEYOND = 4  # rows of zeros after the table, for the indices of special tokens
_ALPHA = 0.9


def distance_table(n: int, channels: int, *, sigma: float = 2.0, seed: int = 0) -> Tensor:
    """Vectors of equal norm whose cosines are exp(-(i - j)^2 / (2 sigma^2)), (n, channels).

    Fang et al. (ECCV 2024) fit such a table by gradient descent. The cosines define it up to a rotation and a factor,
    so here it is computed directly: a square root of the matrix of cosines, rotated at random, with norm
    sqrt(channels), the expected norm of normal draws. With fewer channels than rows, the closest table of that rank is
    returned.

    Args:
        n: number of rows, which are the places along the longer side of the grid.
        channels: length of each vector.
        sigma: width of the Gaussian in places; the published best is 2.
        seed: seed of the rotation.

    Example:
        >>> table = distance_table(5, 16)
        >>> round(float(F.cosine_similarity(table[0], table[2], dim=0)), 4)  # exp(-4 / 8)
        0.6065
    """
    if n < 1 or channels < 1 or not sigma > 0:
        raise ValueError(f"n and channels must be at least 1 and sigma above 0, got {n}, {channels}, {sigma}")
    place = torch.arange(n, dtype=torch.float64)
    cosine = torch.exp(-(place.unsqueeze(1) - place).square() / (2 * sigma**2))
    values, vectors = torch.linalg.eigh(cosine)
    vectors = vectors * torch.where(vectors[0] < 0, -1.0, 1.0)  # the sign of an eigenvector is arbitrary
    kept = min(n, channels)
    root = (vectors * values.clamp(min=0).sqrt())[:, -kept:]  # the largest last
    generator = torch.Generator().manual_seed(seed)
    turn, upper = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))
    turn = turn * upper.diagonal().sign()
    table = F.normalize(root @ turn[:kept], dim=1) * math.sqrt(channels)
    return table.float()


class PositionEncoding(nn.Module):
    """The vector of a row, a column and a flag: three vectors of ceil(channels / 3), joined and cut to `channels`.

    Nothing is trained. "learned" looks up rows, columns and flags in a table, with linear interpolation between whole
    numbers (so that objects without a grid have positions too). The other kinds are sinusoids of the three numbers with
    43 frequencies at 256 channels, k = 0, 2, ..: original 10000^(-k/86), linear 0.9 k/86, exp1 k^0.9/86, exp2
    (k/86)^0.9. original_update rotates each original vector away from the vector of the grid's centre until the cosine
    of the two is the original cosine to the power of 7.5 (the published code finds this point by gradient descent on
    the squares).

    Args:
        kind: one of `KINDS`.
        rows, columns: size of the grid; the table has max(rows, columns) rows, followed by four rows of zeros.
        channels: length of the whole vector; 256 as published.
        sigma: see `distance_table`.
        table: (max(rows, columns), ceil(channels / 3)), to be used instead of our own table.
    """

    table: Tensor
    frequencies: Tensor

    def __init__(
        self,
        kind: str = "learned",
        *,
        rows: int,
        columns: int,
        channels: int = 256,
        sigma: float = 2.0,
        table: Tensor | None = None,
    ):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"positions must be one of {', '.join(KINDS)}, got {kind!r}")
        if rows < 1 or columns < 1 or channels < 3:
            raise ValueError(f"rows and columns must be at least 1 and channels 3, got {rows}, {columns}, {channels}")
        self.kind, self.rows, self.columns, self.channels = kind, rows, columns, channels
        width = -(-channels // 3)
        n = max(rows, columns)
        if kind == "learned":
            own = distance_table(n, width, sigma=sigma) if table is None else table.float()
            if own.shape != (n, width):
                raise ValueError(f"table must have shape {(n, width)} for {rows} x {columns}, got {tuple(own.shape)}")
            self.register_buffer("table", F.pad(own, (0, 0, 0, _BEYOND)), persistent=False)
        else:
            if table is not None:
                raise ValueError(f'a table needs positions "learned", got {kind!r}')
            width += width % 2  # a sine and a cosine for each frequency
            k = torch.arange(0, width, 2, dtype=torch.float64)
            frequencies = {
                "linear": _ALPHA * k / width,
                "exp1": k**_ALPHA / width,
                "exp2": (k / width) ** _ALPHA,
            }.get(kind, 10000 ** (-k / width))
            self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, position: Tensor, flag: Tensor, known: Tensor | None = None) -> Tensor:
        """(..., channels) vectors of positions.

        Args:
            position: (..., 2) row and column, in places of the grid.
            flag: (...) 1 for the target, else 0.
            known: (...) bool; if it is False, the channels of row and column are 0.
        """
        if self.kind == "learned":
            self._check(position)
        encoded = self._encode(position, flag)
        if self.kind == "original_update":
            middle = position.new_tensor([(self.rows - 1) // 2, self.columns // 2])
            encoded = _turned_away(encoded, self._encode(middle.expand_as(position), flag))
        if known is not None:
            places = torch.arange(self.channels, device=encoded.device) < 2 * self._width
            encoded = encoded.masked_fill(places & ~known.unsqueeze(-1), 0)
        return encoded

    def _check(self, position: Tensor) -> None:
        largest = len(self.table) - 1
        if torch.compiler.is_compiling() or not position.numel():
            return
        if position.device.type != "cpu":  # without waiting for the device
            within = (position >= 0).all() & (position <= largest).all()
            torch._assert_async(within, f"position must be from 0 to {largest}")
            return
        if not 0 <= position.min() <= position.max():
            raise ValueError(f"position must be at least 0, got {float(position.min()):g}")
        if position.max() > largest:
            raise ValueError(
                f"position must be at most {largest} with a grid of {self.rows} x {self.columns}, got"
                f" {float(position.max()):g}"
            )

    @property
    def _width(self) -> int:
        return self.table.shape[1] if self.kind == "learned" else 2 * len(self.frequencies)

    def _encode(self, position: Tensor, flag: Tensor) -> Tensor:
        three = torch.cat([position, flag.unsqueeze(-1).to(position)], -1)  # (..., 3)
        if self.kind == "learned":
            below = three.floor()
            part = (three - below).unsqueeze(-1)
            below = below.long()
            above = (below + 1).clamp(max=len(self.table) - 1)
            encoded = torch.lerp(self.table[below], self.table[above], part)
        else:
            angle = three.unsqueeze(-1) * self.frequencies
            encoded = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
        return encoded.flatten(-2)[..., : self.channels]


def _turned_away(vector: Tensor, centre: Tensor) -> Tensor:
    """`vector`, rotated in the plane of both vectors until its cosine with `centre` is the old one to the power 7.5."""
    c = F.normalize(centre, dim=-1)
    norm = vector.norm(dim=-1, keepdim=True)
    along = (vector * c).sum(-1, keepdim=True)
    aside = F.normalize(vector - along * c, dim=-1)
    cosine = (along / norm).clamp(0, 1) ** 7.5
    result: Tensor = norm * (cosine * c + (1 - cosine.square()).clamp(min=0).sqrt() * aside)
    return result


def step_table(steps: int, channels: int) -> Tensor:
    """Sinusoids of the step in a sequence, (steps, 1, channels): sines on even channels, cosines on odd ones."""
    step = torch.arange(steps, dtype=torch.float64).unsqueeze(1)
    frequency = 10000 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    return torch.stack([(step * frequency).sin(), (step * frequency).cos()], -1).flatten(1).float().unsqueeze(1)
