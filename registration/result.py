"""The result of a registration: maps, warped image, measurements, and the stages that were kept."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..volumes import DisplacementField, Volume
from .stages import StageResult

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """Which stages of a registration were kept.

    Args:
        transform: "rigid", "affine" or "deformable", with "auto" filled in.
        similarity: similarity of the deformation, with "auto" filled in; "" without a deformation.
        stages: the stages that were tried, in order.
    """

    transform: str = ""
    similarity: str = ""
    stages: tuple[StageResult, ...] = ()

    def __str__(self) -> str:
        """One line."""
        if not self.stages:
            return f"kept: {self.transform} alignment"
        kept = [stage.name for stage in self.stages if stage.kept]
        dropped = [str(stage) for stage in self.stages if not stage.kept]
        line = f"kept: {', then '.join(kept) or 'the geometry of the scanner'}"
        return line + (f"; {'; '.join(dropped)}" if dropped else "")

    def as_json(self) -> dict[str, Any]:
        """The choice as JSON values, for a record."""
        return asdict(self) | {"line": str(self)}


@dataclass(frozen=True, eq=False)
class Registration:
    """The result of `register`.

    Args:
        warped: the moving image on the fixed grid, in its own intensities, interpolated once from the original.
        forward: on the fixed grid, from fixed space into moving space, including the affine part; it warps the moving
            image.
        inverse: on the moving grid, from moving space into fixed space; it warps the fixed image.
        affine: (4, 4), the affine part of `forward`, fixed world -> moving world, RAS mm.
        metrics: normalised mutual information before and after, and Jacobian measures of the deformable part.
        seconds: wall time of each step.
        choice: the stages that were tried and kept, with the reasons.
        doubt: the reason why the alignment is not credible; "" if there is none.
    """

    warped: Volume
    forward: DisplacementField
    inverse: DisplacementField
    affine: np.ndarray
    metrics: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)
    choice: Choice = field(default_factory=lambda: Choice())
    doubt: str = ""


@dataclass(frozen=True)
class Steps:
    """Times the steps of a registration and reports each."""

    report: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.report(f"{name:<24}{self.seconds[name]:6.1f} s")
