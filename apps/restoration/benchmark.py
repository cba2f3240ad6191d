"""`voxelwave restoration benchmark`: speed, memory and PSNR of restoration beside simpler methods, in one run."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...restoration.evaluation import Evaluation, evaluation_images
from ...restoration.footprint import restoration_footprint
from ...restoration.inference import restore
from ...restoration.mair import MaIR
from ...restoration.scan_block import use_plain_scan
from ...restoration.timing import time_by_part
from ...restoration.weights import load_weights, weights_file
from ...runs.record import write_record
from ...runs.tables import print_rows


def benchmark(
    *,
    output: Path,
    data: Path | None = None,
    part: Literal["all", "speed", "slice", "memory", "set12", "ct", "mr"] = "all",
    weights: Path = Path("denoise-grey"),
    seed: int = 0,
) -> None:
    """Measure time, memory and quality of restoration on the CPU.

    Parts: "speed", MaIR-S x2 on a 64 x 64 input with one thread, beside the same network with its scan step by step in
    plain PyTorch, and the share of each part of the network; "slice", a 512 x 512 slice denoised; "memory", the peak
    for a small and a large image in the same tiles. With --data also: "set12", Gaussian noise of sigma 25; "ct", a
    sharp, noisy CT reconstruction against a smooth one of the same scan; "mr", Rician noise on T1, T2 and FLAIR slices;
    each beside non-local means, wavelets, total variation, and BM3D where it is installed. OUTPUT receives
    benchmark-PART.json.

    Args:
        output: the folder to write to.
        data: the folder of real images, with restoration/ and mri_ms_multimodal/ as the tests use it.
        part: which figures.
        weights: of the denoiser, a file or the name of weights that come with the package.
        seed: of the networks' random weights and of the noise.
    """
    pass

    measure(output, data, part=part, weights=weights, seed=seed)


Row = dict[str, Any]
Tables = list[tuple[str, list[Row]]]


@dataclass(frozen=True)
class _Setting:
    """What the parts need to know."""

    data: Path | None
    weights: Path
    seed: int


@dataclass
class _Measured:
    """What a part found, the files it read, and words on how to read its tables."""

    tables: Tables
    inputs: dict[str, Path | None]
    notes: str = ""


def measure(output: Path, data: Path | None, *, part: str, weights: Path, seed: int) -> None:
    """Run the parts, print their tables and write benchmark-PART.json for each."""
    if part in _ON_DATA and data is None:
        raise ValueError(f"--part {part} needs --data, the folder of real images")
    names = [part] if part != "all" else [name for name in _PARTS if data is not None or name not in _ON_DATA]
    setting = _Setting(data, weights_file(weights), seed)
    threads = torch.get_num_threads()
    for name in names:
        started = time.perf_counter()
        try:
            measured = _PARTS[name](setting)
        finally:
            torch.set_num_threads(threads)
        for title, rows in measured.tables:
            print_rows(title, rows)
        if measured.notes:
            print(measured.notes)
        write_record(
            output / f"benchmark-{name}.json",
            inputs=measured.inputs,
            tables=[{"title": title, "rows": rows} for title, rows in measured.tables],
            notes=measured.notes,
            seed=seed,
            seconds=time.perf_counter() - started,
            machine=f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        )


def _speed(setting: _Setting) -> _Measured:
    torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    model = MaIR.from_variant("mair-s-x2").eval()
    image = torch.rand(1, 3, 64, 64)
    compiled, plain, difference = compare_scans(model, image, repeats=7)
    ratio = statistics.median(plain) / statistics.median(compiled)
    rows = [
        {"scan": "compiled", **_spread(compiled), "times faster": ratio, "largest difference": difference},
        {"scan": "step by step in PyTorch", **_spread(plain), "times faster": 1.0, "largest difference": 0.0},
    ]
    shares = [time_by_part(model, image, repeats=5)]
    use_plain_scan(model)
    shares.append(time_by_part(model, image, repeats=2))
    parts = [
        {"part": name}
        | {
            f"{scan}, {unit}": value
            for scan, share in zip(("compiled", "step by step"), shares, strict=True)
            for unit, value in (("s", share[name]), ("%", 100 * share[name] / share["total"]))
        }
        for name in shares[0]
    ]
    tables: Tables = [("MaIR-S x2 on a 64 x 64 input, one thread", rows), ("The time by part", parts)]
    return _Measured(tables, {}, "Random weights; the time does not depend on them.")


@torch.inference_mode()
def compare_scans(
    model: nn.Module, image: Tensor, *, repeats: int, plain_repeats: int = 3
) -> tuple[list[float], list[float], float]:
    """Seconds of a network with the compiled scan and with the step-by-step one, in turn, after a warm-up of each.

    Args:
        model: a `MaIR` or `MaIRUNet` on the CPU.
        image: (B, in_channels, H, W).
        repeats: timed passes with the compiled scan.
        plain_repeats: with the other; at most `repeats`.

    Returns:
        The times of both, and the largest absolute difference of their results.
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


def _slice(setting: _Setting) -> _Measured:
    model, info = load_weights(setting.weights)
    image = np.random.default_rng(setting.seed).random((info.arguments["in_channels"], 512, 512), dtype=np.float32)
    rows = []
    for threads in sorted({1, min(os.cpu_count() or 1, 4)}):
        torch.set_num_threads(threads)
        restore(model, image[:, :64, :64])
        times = [_seconds(lambda: restore(model, image)) for _ in range(3)]
        rows.append({"threads": threads, **_spread(times)})
    parameters = sum(p.numel() for p in model.parameters())
    title = f"A 512 x 512 slice by {setting.weights.name} ({parameters:,} parameters), tiles of 200"
    return _Measured([(title, rows)], {"weights": setting.weights})


def _memory(setting: _Setting) -> _Measured:
    # sides that are cut into tiles of one size, 120 pixels with their overlap; the last one is a single tile
    cases = [(299, 100), (799, 100), (299, 300)]
    rows = [asdict(restoration_footprint(setting.weights, side, tile)) for side, tile in cases]
    notes = "In a fresh process each, one thread; beyond the idle process with torch, the network and the image."
    return _Measured([("Peak memory by image and tile", rows)], {"weights": setting.weights}, notes)


def _set12(setting: _Setting) -> _Measured:
    assert setting.data is not None
    clean = setting.data / "restoration" / "natural" / "Set12"
    rows, conditions = _evaluate(setting, clean, sigma=25.0)
    return _Measured([("Set12, Gaussian noise of sigma 25 (of 255)", rows)], _inputs(setting, clean), conditions)


def _ct(setting: _Setting) -> _Measured:
    assert setting.data is not None
    folder = setting.data / "restoration" / "ct_phantom"
    clean = folder / "slabA_kernel-UB_thick-1mm_idose.nii.gz"
    degraded = folder / "slabA_kernel-YA_thick-1mm.nii.gz"
    tables: Tables = []
    for how in _CT_WINDOWS:
        rows, conditions = _evaluate(setting, clean, degraded=degraded, how=how, slices=3)
        tables.append((f"Head phantom, CT, kernel YA against UB (1 mm, iterative), window {how}", rows))
    return _Measured(tables, _inputs(setting, clean) | {"degraded": degraded}, conditions)


# in CT numbers: brain to bone, and soft tissue alone, where noise is a larger share of the window
_CT_WINDOWS = ("-1000,2000", "-200,400")


def _mr(setting: _Setting) -> _Measured:
    assert setting.data is not None
    folder = setting.data / "mri_ms_multimodal"
    scans = {
        "T1": folder / "mni" / "patient07" / "patient07_T1.nii.gz",
        "T2": folder / "mni" / "patient07" / "patient07_T2.nii.gz",
        "FLAIR": folder / "raw" / "patient01" / "study1_FLAIR.nii.gz",
    }
    tables: Tables = []
    for name, clean in scans.items():
        for sigma in (0.05, 0.1):
            rows, conditions = _evaluate(setting, clean, degradation={"kind": "rician", "sigma": sigma}, slices=4)
            tables.append((f"{name} with Rician noise, sigma {100 * sigma:g} % of the range", rows))
    return _Measured(tables, {"weights": setting.weights, **scans}, conditions)


def _evaluate(
    setting: _Setting, clean: Path, *, sigma: float | None = None, slices: int = 10, **options: Any
) -> tuple[list[Row], str]:
    """A row per method with the mean over the images, and what the figures mean."""
    network, info = load_weights(setting.weights)
    evaluation = Evaluation(network=network)
    for image in evaluation_images(clean, sigma=sigma, info=info, per_volume=slices, seed=setting.seed, **options):
        evaluation.measure(image)
        print(f"  {evaluation.line()}", flush=True)
    means = evaluation.means()
    # where all others lost their Rician bias, they are compared with the network that lost it too
    ours = "network-unbiased" if "network-unbiased" in means else "network"
    rows = []
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


def _inputs(setting: _Setting, clean: Path) -> dict[str, Path | None]:
    return {"weights": setting.weights, "clean": clean}


_PARTS: dict[str, Callable[[_Setting], _Measured]] = {
    "speed": _speed,
    "slice": _slice,
    "memory": _memory,
    "set12": _set12,
    "ct": _ct,
    "mr": _mr,
}
_ON_DATA = ("set12", "ct", "mr")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _spread(times: list[float]) -> Row:
    return {"median s": statistics.median(times), "fastest": min(times), "slowest": max(times), "repeats": len(times)}


def _processor() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        yield from path.read_text().splitlines()
