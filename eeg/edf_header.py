"""Headers of EDF and BDF: what MNE would take for granted."""

from pathlib import Path

import numpy as np

from .channels import is_scalp_name, standard_name
from .note import first_names


def check_edf_header(path: Path) -> None:
    """Refuse a header of EDF or BDF for which MNE would make up a rate or a scale."""
    with path.open("rb") as stream:
        head = stream.read(256)
        try:
            duration, count = float(head[244:252]), int(head[252:256])
            names = [stream.read(16).decode("latin-1").strip() for _ in range(count)]
            stream.seek(256 + count * 104)
            low, high = ([float(stream.read(8)) for _ in range(count)] for _ in range(2))
        except ValueError:  # numbers as only MNE understands them, or nonsense
            return
    if not 0 < duration < np.inf:
        raise ValueError(f"{path}: a record must last more than 0 s, its header gives {duration:g} s")
    without = [n for n, a, b in zip(names, low, high, strict=True) if a == b and is_scalp_name(standard_name(n))]
    if without:
        raise ValueError(f"{path}: the physical range must be above 0, the header gives 0 for {first_names(without)}")
