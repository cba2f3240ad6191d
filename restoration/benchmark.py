"""Benchmarks of time, memory and quality of restoration on the CPU; each part gives tables with a row per case."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..runs.catalogue import entry_of
from .evaluation import Evaluation, evaluation_images
from .footprint import restoration_footprint
from .inference import restore
from .known_noise import NoiseHandling
from .mair import MaIR
from .scan_block import use_plain_scan
from .settings import TILE, EvaluationSettings
from .timing import time_by_part
from .weights import load_weights

Row = dict[str, str | int | float]
Tables = list[tuple[str, list[Row]]]
"""(title, rows) of each table."""

ON_DATA = ("set12", "ct", "mr")
"""The parts that need a folder of real images."""

# in HU: brain to bone, and soft tissue alone, where noise is a larger share of the window
_CT_WINDOWS = ("-1000,2000", "-200,400")


@dataclass(frozen=True)
class Setting:
    """The inputs of all parts of the benchmark.

    Args:
        weights: the weight file of a denoiser.
        data: the folder of real images, with restoration/ and mri_ms_multimodal/; None leaves out the parts `ON_DATA`.
        seed: seed of random weights and of the noise.
    """

    weights: Path
    data: Path | None = None
    seed: int = 0

    @property
    def images(self) -> Path:
        """The folder of real images.

        Raises:
            ValueError: `data` is not given.
        """
        if self.data is None:
            raise ValueError(f"the parts {', '.join(ON_DATA)} need data, the folder of real images")
        return self.data


@dataclass
class Measured:
    """The result of a part.

    Args:
        tables: its tables.
        inputs: the files that it read.
        notes: text on how to read the tables.
    """

    tables: Tables
    inputs: dict[str, Path | None]
    notes: str = ""


def measure_part(name: str, setting: Setting) -> Measured:
    """Run a part, one of `PARTS`; afterwards the number of torch's threads is restored."""
    threads = torch.get_num_threads()
    try:
        return PARTS[name](setting)
    finally:
        torch.set_num_threads(threads)


def measure_speed(setting: Setting) -> Measured:
    """Time MaIR-S x2 on a 64 x 64 input with one thread: with both scans, and for each part of the network."""
    torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    model = MaIR.from_variant("mair-s-x2").eval()
    image = torch.rand(1, 3, 64, 64)
    compiled, plain, difference = compare_scans(model, image, repeats=7)
    ratio = statistics.median(plain) / statistics.median(compiled)
    rows: list[Row] = [
        {"scan": "compiled", **_spread(compiled), "times faster": ratio, "largest difference": difference},
        {"scan": "step by step in PyTorch", **_spread(plain), "times faster": 1.0, "largest difference": 0.0},
    ]
    shares = {"compiled": time_by_part(model, image, repeats=5)}
    use_plain_scan(model)
    shares["step by step"] = time_by_part(model, image, repeats=2)
    parts: list[Row] = []
    for part in shares["compiled"]:
        row: Row = {"part": part}
        for scan, share in shares.items():
            row |= {f"{scan}, s": share[part], f"{scan}, %": 100 * share[part] / share["total"]}
        parts.append(row)
    tables: Tables = [("MaIR-S x2 on a 64 x 64 input, one thread", rows), ("The time by part", parts)]
    return Measured(tables, {}, "Random weights; the time does not depend on them.")


@torch.inference_mode()
def compare_scans(
    model: nn.Module, image: Tensor, *, repeats: int, plain_repeats: int = 3
) -> tuple[list[float], list[float], float]:
    """Time a network alternately with the compiled scan and the step-by-step one, after a warm-up of each.

    Args:
        model: a `MaIR` or `MaIRUNet` on the CPU.
        image: (B, in_channels, H, W).
        repeats: number of timed passes with the compiled scan.
        plain_repeats: number of timed passes with the step-by-step scan; at most `repeats`.

    Returns:
        The times of both in seconds, and the largest absolute difference between their results.
    """
    compiled, plain = [], []
    use_plain_scan(model)
    expected = model(image)
    use_plain_scan(model, False)
    difference = float((model(image) - expected).abs().max())
    for number in range(repeats):
        compiled.append(_seconds(lambda: model(image)))
        if number < plain_repeats:
            use_plain_scan(model)
            plain.append(_seconds(lambda: model(image)))
            use_plain_scan(model, False)
    return compiled, plain, difference


def measure_slice(setting: Setting) -> Measured:
    """Time the denoising of a 512 x 512 slice."""
    model, info = load_weights(setting.weights)
    image = np.random.default_rng(setting.seed).random((info.arguments["in_channels"], 512, 512), dtype=np.float32)
    rows: list[Row] = []
    for threads in sorted({1, min(os.cpu_count() or 1, 4)}):
        torch.set_num_threads(threads)
        restore(model, image[:, :64, :64])
        times = [_seconds(lambda: restore(model, image)) for _ in range(3)]
        rows.append({"threads": threads, **_spread(times)})
    parameters = sum(p.numel() for p in model.parameters())
    title = f"A 512 x 512 slice by {setting.weights.name} ({parameters:,} parameters), tiles of at most {TILE}"
    return Measured([(title, rows)], {"weights": setting.weights})


def measure_memory(setting: Setting) -> Measured:
    """Measure the peak memory of a small and a large image in tiles of one size, and of one large tile."""
    # images of these sides are divided into tiles of one size, 120 pixels with the overlap; the last is a single tile
    cases = [(299, 100), (799, 100), (299, 300)]
    rows: list[Row] = [asdict(restoration_footprint(setting.weights, side, tile)) for side, tile in cases]
    notes = "Each in a fresh process with one thread; without the process itself, torch, the network and the image."
    return Measured([("Peak memory by image and tile", rows)], {"weights": setting.weights}, notes)


def measure_set12(setting: Setting) -> Measured:
    """Compare the denoiser with classical methods on Set12 with Gaussian noise of sigma 25."""
    clean = setting.images / "restoration" / "natural" / "Set12"
    rows, conditions = compare_methods(setting, clean, EvaluationSettings(sigma=25.0, seed=setting.seed))
    inputs: dict[str, Path | None] = {"weights": setting.weights, "clean": clean}
    return Measured([("Set12, Gaussian noise of sigma 25 (of 255)", rows)], inputs, conditions)


def measure_ct(setting: Setting) -> Measured:
    """Compare the methods on a sharp, noisy CT reconstruction with a smooth one of the same scan as reference."""
    folder = setting.images / "restoration" / "ct_phantom"
    clean = folder / "slabA_kernel-UB_thick-1mm_idose.nii.gz"
    degraded = folder / "slabA_kernel-YA_thick-1mm.nii.gz"
    tables: Tables = []
    for window in _CT_WINDOWS:
        settings = EvaluationSettings(degraded=degraded, range=window, slices_per_volume=3, seed=setting.seed)
        rows, conditions = compare_methods(setting, clean, settings)
        tables.append((f"Head phantom, CT, kernel YA against UB (1 mm, iterative), window {window}", rows))
    return Measured(tables, {"weights": setting.weights, "clean": clean, "degraded": degraded}, conditions)


def measure_mr(setting: Setting) -> Measured:
    """Compare the methods on T1, T2 and FLAIR slices with Rician noise."""
    folder = setting.images / "mri_ms_multimodal"
    scans = {
        "T1": folder / "mni" / "patient07" / "patient07_T1.nii.gz",
        "T2": folder / "mni" / "patient07" / "patient07_T2.nii.gz",
        "FLAIR": folder / "raw" / "patient01" / "study1_FLAIR.nii.gz",
    }
    tables: Tables = []
    for name, clean in scans.items():
        for sigma in (0.05, 0.1):
            noise = {"kind": "rician", "sigma": sigma}
            settings = EvaluationSettings(degradation=noise, slices_per_volume=4, seed=setting.seed)
            rows, conditions = compare_methods(setting, clean, settings)
            tables.append((f"{name} with Rician noise, sigma {100 * sigma:g} % of the range", rows))
    return Measured(tables, {"weights": setting.weights, **scans}, conditions)


PARTS: dict[str, Callable[[Setting], Measured]] = {
    "speed": measure_speed,
    "slice": measure_slice,
    "memory": measure_memory,
    "set12": measure_set12,
    "ct": measure_ct,
    "mr": measure_mr,
}
"""Name -> the function that measures it."""


def compare_methods(
    setting: Setting, clean: Path, settings: EvaluationSettings, *, report: Callable[[str], None] = print
) -> tuple[list[Row], str]:
    """Score the network and the classical methods on the images of a folder.

    Returns:
        A row per method with the mean over the images, and how the scores were computed.
    """
    network, info = load_weights(setting.weights)
    evaluation = Evaluation(network=network, handling=NoiseHandling.of(entry_of(setting.weights), info))
    for image in evaluation_images(clean, settings, info=info):
        evaluation.measure(image)
        report(f"  {evaluation.line()}")
    means = evaluation.means()
    # methods that are told the level of Rician noise are compared with the network that is told it
    ours = "network-sigma" if "network-sigma" in means else "network"
    rows: list[Row] = []
    for method, (psnr, ssim) in means.items():
        every = [row[method][0] for row in evaluation.rows.values()]
        against = [row[ours][0] - row[method][0] for row in evaluation.rows.values()]
        rows.append(
            {
                "method": method,
                "images": len(every),
                "psnr": psnr,
                "sd": statistics.stdev(every) if len(every) > 1 else 0.0,
                "ssim": ssim,
                "ours is better by": means[ours][0] - psnr,
                "on": f"{sum(x > 0 for x in against)} of {len(against)}",
            }
        )
    return rows, evaluation.conditions()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _spread(times: list[float]) -> Row:
    return {"median s": statistics.median(times), "fastest": min(times), "slowest": max(times), "repeats": len(times)}
