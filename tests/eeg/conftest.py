"""A small cohort with a known difference, for tests of training and explanation."""

import numpy as np
import pytest

from voxelwave.eeg.channels import CED_ORDER
from voxelwave.eeg.synthetic import CLASSES, synthetic_signal
from voxelwave.eeg.windows import WindowOptions, Windows, standardize

PLANTED = ("O1", "O2", "Pz")


@pytest.fixture(scope="session")
def cohort() -> Windows:
    """40 people, 5 windows of 2 s at 64 Hz each; every other one carries 10 Hz on O1, O2 and Pz."""
    people, count, times, sfreq = 40, 5, 128, 64.0
    signals = [
        synthetic_signal(
            np.random.default_rng([0, i]), planted_uv=12.0 * (i % 2), seconds=10, sfreq=sfreq, planted=PLANTED
        )
        for i in range(people)
    ]
    raw = np.stack(signals).reshape(people, len(CED_ORDER), count, times).transpose(0, 2, 1, 3)
    raw = raw.reshape(-1, len(CED_ORDER), times)
    return Windows(
        x=standardize(raw),
        subject=np.repeat(np.arange(people), count),
        start=np.tile(np.arange(count) * times, people),
        log_variance=np.log(raw.var(axis=2)).astype(np.float32),
        subjects=tuple(f"s{i:02d}" for i in range(people)),
        labels=np.arange(people) % 2,
        classes=CLASSES,
        sfreq=sfreq,
        channels=CED_ORDER,
        seconds=np.full(people, 10.0),
        unit="uV",
        options=WindowOptions(seconds=2.0, sfreq=sfreq),
        excluded=(),
        notes=(),
        digests=tuple(f"d{i}" for i in range(people)),
    )
