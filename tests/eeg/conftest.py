"""A small cohort with a known difference between the classes, for tests of training and explanation."""

from collections.abc import Callable

import numpy as np
import pytest

from voxelwave.eeg.windows import Windows

_MARK_BYTES = 120  # length of the annotation channel in a record of EDF+ or BDF+
PLANTED = ("O1", "O2", "Pz")


@pytest.fixture(scope="session")
def cohort(synthetic_windows: Callable[..., Windows]) -> Windows:
    """40 people with 5 windows of 2 s at 64 Hz each; every other person has 10 Hz on O1, O2 and Pz."""
    return synthetic_windows(people=40, count=5, planted_uv=12.0, planted=PLANTED)


def write_edf(path, signals, *, sfreq=128, unit="uV", bdf=False, kind=None, marks=()):
    """Write channels as EDF (16 bits) or BDF (24 bits) in records of a second.

    `signals` is name -> samples in the channel's unit; `sfreq` and `unit` hold for all or are name -> value. `kind` is
    the reserved field, such as "EDF+D"; `marks` has the bytes of the annotation channel for each record.
    """

    def of(option, name):
        return option[name] if isinstance(option, dict) else option

    names, largest, width = list(signals), 2**23 - 1 if bdf else 2**15 - 1, 3 if bdf else 2
    seconds = min(len(x) // of(sfreq, n) for n, x in signals.items())
    tops = {n: float(f"{1.1 * max(np.abs(x).max(), 1e-6):.6f}"[:8]) for n, x in signals.items()}
    version, usual_kind = (b"\xffBIOSEMI", "24BIT") if bdf else (b"0       ", "")
    extra = [f"{'BDF' if bdf else 'EDF'} Annotations"] if marks else []
    count = len(names) + len(extra)
    fields = [
        (16, names + extra),
        (80, [""] * count),
        (8, [of(unit, n) for n in names] + [""] * len(extra)),
        (8, [f"{-tops[n]:.8f}"[:8] for n in names] + [-1] * len(extra)),
        (8, [f"{tops[n]:.8f}"[:8] for n in names] + [1] * len(extra)),
        (8, [-largest] * count),
        (8, [largest] * count),
        (80, [""] * count),
        (8, [of(sfreq, n) for n in names] + [_MARK_BYTES // width] * len(extra)),
        (32, [""] * count),
    ]
    start = [(80, "X X X X"), (80, "Startdate 01-JAN-2020 X X X"), (8, "01.01.20"), (8, "00.00.00")]
    start += [(8, 256 * (count + 1)), (44, kind or usual_kind), (8, seconds), (8, 1), (4, count)]
    header = "".join(f"{value!s:<{width}}" for width, value in start)
    header += "".join(f"{value!s:<{width}}" for width, values in fields for value in values)
    body = bytearray()
    for second in range(seconds):
        for name in names:
            rate = of(sfreq, name)
            part = np.asarray(signals[name][second * rate : (second + 1) * rate], float)
            digits = np.round(part / tops[name] * largest).astype("<i4")
            body += digits.view(np.uint8).reshape(-1, 4)[:, :3].tobytes() if bdf else digits.astype("<i2").tobytes()
        if marks:
            body += marks[second].ljust(_MARK_BYTES, b"\0")
    path.write_bytes(version + header.encode("latin-1") + bytes(body))
    return path


@pytest.fixture(scope="session", name="write_edf")
def _write_edf():
    """See `write_edf`."""
    return write_edf


def noise(channels=3, seconds=10, sfreq=128, seed=0, sd=20.0) -> np.ndarray:
    """(channels, samples) of white noise, in microvolts."""
    return sd * np.random.default_rng(seed).standard_normal((channels, seconds * sfreq))


@pytest.fixture(scope="session", name="noise")
def _noise():
    """See `noise`."""
    return noise


@pytest.fixture
def write_fif():
    """`write_fif(path, microvolts, names, annotations=...)` writes a .fif at 128 Hz, or at `sfreq`."""
    import mne

    def write(path, microvolts, names, *, sfreq=128.0, annotations=(), bads=(), montage=None):
        info = mne.create_info(list(names), sfreq, "eeg")
        info["bads"] = list(bads)
        raw = mne.io.RawArray(np.asarray(microvolts) * 1e-6, info, verbose="error")
        if montage is not None:
            raw.set_montage(montage)
        if annotations:
            raw.set_annotations(mne.Annotations(*zip(*annotations, strict=True)))
        raw.save(path, overwrite=True, verbose="error")
        return path

    return write
