"""Rows of EEG: training of ADHDeepNet beside other networks."""

import torch

from ....eeg.benchmark import compare, networks
from ....eeg.fast_layers import keep_freed_memory
from .row import Row

_BATCH = 64


def rows(*, quick: bool) -> list[Row]:
    """The rows, with one thread."""
    keep_freed_memory()  # for all networks
    torch.manual_seed(0)
    speeds = {
        row["network"]: row["windows per CPU s"]
        for row in compare(networks({}, others=True), "defaults", _BATCH, 3 if quick else 7)
    }
    own = speeds.pop("ADHDeepNet")
    return [
        Row(
            what=f"a training step of ADHDeepNet, batch {_BATCH}, 19 x 512",
            unit="windows/CPU s",
            ours=own,
            peer=name,
            theirs=speed,
            least=350,
        )
        for name, speed in speeds.items()
    ]
