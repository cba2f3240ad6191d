"""`voxelwave registration benchmark`: our registration beside ANTs SyN, in one run."""

import dataclasses
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...registration.benchmark import known_field_benchmark, label_benchmark
from ...registration.benchmark_model import model_cost_table
from ...registration.benchmark_training import overfit
from ...registration.register import register
from ...runs.record import write_record
from ...runs.tables import print_rows
from ...volumes import Volume, read_volume, resample
from .overlap import overlap
from .scans import network_options, reference_image, sidecar


def benchmark(
    data: Path,
    *,
    output: Path,
    part: Literal["all", "field", "labels", "diffusion", "training", "cost"] = "all",
    seeds: int = 3,
    threads: int = 2,
) -> None:
    """Measure accuracy, time and memory on real scans, ours and ANTs SyN in one run with the same threads.

    Parts: "field", a known smooth deformation (peak 8 mm) of a T1 scan found against the T2 scan; "labels", two people,
    overlap of their FreeSurfer labels, both directions; "diffusion", T1w to b0 end to end; "training", NestedMorph
    fitted to one pair, then used by register; "cost", time and memory of the network. OUTPUT receives
    benchmark-PART.json.

    Args:
        data: the folder of scans, with mri_ms_multimodal/, mri_t1_labels/ and mri_t1_dwi/ as the tests use it.
        output: the folder to write to.
        part: which figures.
        seeds: how many random deformations for "field".
        threads: of PyTorch and of ANTs.
    """
    import os

    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)  # read once, when ANTs is imported
    pass

    measure(data, output, part=part, seeds=seeds, threads=threads)


Row = dict[str, Any]


def measure(data: Path, output: Path, *, part: str, seeds: int, threads: int) -> None:
    """Run the parts, print a table for each and write benchmark-PART.json."""
    torch.set_num_threads(threads)
    for name in _PARTS if part == "all" else [part]:
        title, rows, inputs = _PARTS[name](data, output, seeds)
        shown = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows]
        print_rows(title, shown)
        write_record(
            output / f"benchmark-{name}.json",
            inputs=inputs,
            rows=rows,
            threads=threads,
            machine=f"{platform.machine()}, {_processor()}",
        )


def _field(data: Path, output: Path, seeds: int) -> tuple[str, list[Row], dict[str, Path | None]]:
    folder = data / "mri_ms_multimodal" / "mni" / "patient07"
    t1, t2 = folder / "patient07_T1.nii.gz", folder / "patient07_T2.nii.gz"
    rows = known_field_benchmark(read_volume(t1), read_volume(t2), seeds=range(seeds), progress=_say)
    return "A known deformation of T1, found against T2 (mm inside the brain)", rows, {"t1": t1, "t2": t2}


def _labels(data: Path, output: Path, seeds: int) -> tuple[str, list[Row], dict[str, Path | None]]:
    (first_image, first_labels), (second_image, second_labels), inputs = _two_people(data)
    rows = []
    for direction, arguments in (
        ("MRtrix -> VoxelMorph scan", (first_image, first_labels, second_image, second_labels)),
        ("VoxelMorph scan -> MRtrix", (second_image, second_labels, first_image, first_labels)),
    ):
        rows += [{"pair": direction} | row for row in label_benchmark(*arguments, progress=_say)]
    return "Two people: mean Dice over the common FreeSurfer labels", rows, inputs


def _diffusion(data: Path, output: Path, seeds: int) -> tuple[str, list[Row], dict[str, Path | None]]:
    folder = data / "mri_t1_dwi"
    rows: list[Row] = []
    inputs: dict[str, Path | None] = {}
    for subject in ("sub-xa30", "sub-uih1"):
        (t1,) = sorted((folder / subject).rglob("*_T1w.nii.gz"))
        series = next(
            path for path in sorted((folder / subject).rglob("*_dwi.nii.gz")) if sidecar(path, ".bval").is_file()
        )
        inputs |= {f"{subject} T1w": t1, f"{subject} dwi": series}
        fixed = reference_image(read_volume(series), series)
        for method in ("field", "syn"):
            result = register(read_volume(t1), fixed, method=method, progress=_say)
            rows.append(
                {"pair": f"{subject} T1w -> b0", "method": method}
                | result.metrics
                | {"seconds": sum(result.seconds.values())}
            )
    return "T1w to the mean b0 of the same person (NMI: no ground truth)", rows, inputs


def _training(data: Path, output: Path, seeds: int) -> tuple[str, list[Row], dict[str, Path | None]]:
    (fixed, fixed_labels), (moving, moving_labels), inputs = _two_people(data)
    row = overfit(
        moving, fixed, output / "overfit", moving_labels=moving_labels, fixed_labels=fixed_labels, spacing_mm=3.0
    )
    trained = network_options(output / "overfit" / "network.safetensors")
    result = register(moving, fixed, method="nestedmorph", **trained, progress=_say)
    moved = resample(moving_labels, fixed_labels, result.forward, order="nearest")
    row |= {"registered_" + k: v for k, v in overlap(moved, fixed_labels, "after").items()}
    return "NestedMorph fitted to one pair at 64^3, and register with its weights", [row], inputs


def _cost(data: Path, output: Path, seeds: int) -> tuple[str, list[Row], dict[str, Path | None]]:
    rows = [dataclasses.asdict(cost) | {"size": "x".join(map(str, cost.size))} for cost in model_cost_table()]
    return "NestedMorph: seconds and peak memory beyond the idle process", rows, {}


_PARTS: dict[str, Callable[[Path, Path, int], tuple[str, list[Row], dict[str, Path | None]]]] = {
    "field": _field,
    "labels": _labels,
    "diffusion": _diffusion,
    "training": _training,
    "cost": _cost,
}


def _two_people(data: Path) -> tuple[tuple[Volume, Volume], tuple[Volume, Volume], dict[str, Path | None]]:
    """Image and FreeSurfer labels of two people, skull-stripped, 1 mm."""
    folder = data / "mri_t1_labels"
    scan = folder / "voxelmorph_test_scan" / "test_scan.npz"
    with np.load(scan, allow_pickle=False) as file:
        # the array's axes run to the left, to the feet and to the front, 1 mm apart
        affine = np.array([[-1.0, 0, 0, 80], [0, 0, 1, -112], [0, -1, 0, 96], [0, 0, 0, 1]])
        first = Volume(file["vol"].astype(np.float32), affine), Volume(file["seg"].astype(np.int32), affine)
    image, labels = folder / "mrtrix_sub-01" / "norm.mgz", folder / "mrtrix_sub-01" / "aparc+aseg.mgz"
    second = read_volume(image), read_volume(labels)
    return first, second, {"first": scan, "second": image, "second_labels": labels}


def _processor() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        yield from path.read_text().splitlines()


def _say(text: str) -> None:
    print(f"  {text}", flush=True)
