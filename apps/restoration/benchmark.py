"""`voxelwave restoration benchmark`: speed, memory and PSNR of restoration against simpler methods."""

import time
from pathlib import Path

from ...restoration.benchmark import ON_DATA, PARTS, Setting, measure_part
from ...runs.catalogue import find_weights
from ...runs.record import write_measurement
from ...runs.tables import print_rows
from .options import Benchmark


def benchmark(options: Benchmark) -> None:
    """Run the parts, print their tables and write benchmark-PART.json for each."""
    setting = Setting(find_weights(options.weights, "restoration"), options.data, options.seed)
    names: list[str] = [options.part]
    if options.part == "all":
        names = [name for name in PARTS if options.data is not None or name not in ON_DATA]
    for name in names:
        _measure(name, setting, options.output)


def _measure(name: str, setting: Setting, output: Path) -> None:
    started = time.perf_counter()
    measured = measure_part(name, setting)
    for title, rows in measured.tables:
        print_rows(title, rows)
    if measured.notes:
        print(measured.notes)
    write_measurement(
        output / f"benchmark-{name}.json",
        inputs=measured.inputs,
        tables=[{"title": title, "rows": rows} for title, rows in measured.tables],
        notes=measured.notes,
        seed=setting.seed,
        seconds=time.perf_counter() - started,
    )
