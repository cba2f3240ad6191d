"""Recordings made from seeded noise."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from damages import DAMAGES, Damage, cut, damaged, zeros_deflated

CHANNELS = [
    "Fp1",
    "Fp2",
    "F3",
    "F4",
    "C3",
    "C4",
    "P3",
    "P4",
    "O1",
    "O2",
    "F7",
    "F8",
    "T7",
    "T8",
    "P7",
    "P8",
    "Fz",
    "Cz",
    "Pz",
]
RATE = 128


def sound_eeg(seconds: int = 8) -> np.ndarray:
    """Seeded noise, (channels, samples) int16 in units of 0.1 µV."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 150, (len(CHANNELS), RATE * seconds))
    return np.rint(np.cumsum(noise, axis=1) * 0.2 + noise).clip(-30000, 30000).astype(np.int16)


def edf(data: np.ndarray, *, bits: int = 16, **changes: Any) -> bytes:
    """An EDF or BDF file with records of one second."""
    count, records = len(data), data.shape[1] // RATE
    limit = 30000
    fields = {"records": records, "duration": 1, "channels": count, "samples": RATE, "header": 256 * (count + 1)}
    fields |= {"low": -limit / 10, "high": limit / 10, "unit": "uV"} | changes

    def text(value: Any, width: int) -> bytes:
        return str(value).encode()[:width].ljust(width)

    version = b"\xffBIOSEMI" if bits == 24 else text("0", 8)
    head = version + text("X X X X", 80) + text("Startdate X X X X", 80) + b"01.01.2001.01.01"
    head += text(fields["header"], 8) + text("", 44)
    head += text(fields["records"], 8) + text(fields["duration"], 8) + text(fields["channels"], 4)
    per_channel = [(name, 16) for name in CHANNELS[:count]], [("", 80)] * count, [(fields["unit"], 8)] * count
    more = (fields["low"], 8), (fields["high"], 8), (-limit, 8), (limit, 8), ("", 80), (fields["samples"], 8)
    for group in (*per_channel, *([one] * count for one in more), [("", 32)] * count):
        head += b"".join(text(*one) for one in group)
    stored = data.reshape(count, records, RATE).transpose(1, 0, 2)
    if bits == 24:
        return head + np.ascontiguousarray(stored, "<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return head + stored.astype("<i2").tobytes()


def eeg(what: str, said: str, outcome: str = "refused", name: str = "a.edf") -> Callable:
    """Register a file made from the undamaged recording."""

    def add(change: Callable) -> Callable:
        def make(folder: Path) -> Any:
            data = sound_eeg()
            changed = change(data)
            truth = {"array": data * 0.1}
            if isinstance(changed, tuple):
                changed, truth = changed
            (folder / name).write_bytes(changed)
            return folder / name, truth

        DAMAGES.append(Damage("EEG", what, outcome, said, make))
        return change

    return add


def matlab(compressed: bool = False, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, arrays, do_compression=compressed)
    return stream.getvalue()


eeg("EDF, sound", "", "read")(edf)
eeg("BDF, sound", "", "read", "a.bdf")(lambda d: edf(d, bits=24))
eeg("EDF, empty (0 bytes)", "could not be read as EDF")(lambda d: b"")
eeg("EDF, ends in its header", "could not be read as EDF")(lambda d: edf(d)[:700])
eeg("EDF, header only", "holds no samples")(lambda d: edf(d)[: 256 * 20])
eeg("EDF, stopped in its sixth second", "does not match the file size", "read, with a note")(
    lambda d: (edf(d)[: 256 * 20 + 5 * 19 * RATE * 2 + 999], {"array": d[:, : 5 * RATE] * 0.1})
)
eeg("EDF, number of records unknown (-1)", "does not match the file size", "read, with a note")(
    lambda d: edf(d, records=-1)
)
eeg("EDF, 10^7 records claimed", "does not match the file size", "read, with a note")(
    lambda d: edf(d, records=9_999_999)
)
eeg("EDF, 9999 channels claimed", "could not be read as EDF")(lambda d: edf(d, channels=9999))
eeg("EDF, -5 channels claimed", "could not be read as EDF")(lambda d: edf(d, channels=-5))
eeg("EDF, 10^8 samples in a record claimed", "no samples")(lambda d: edf(d, samples=99_999_999))
eeg("EDF, records of 0 s", "must last more than 0 s")(lambda d: edf(d, duration=0))
eeg("EDF, records of NaN s", "must last more than 0 s")(lambda d: edf(d, duration="nan"))
eeg("EDF, header of another length", "could not be read as EDF")(lambda d: edf(d, header=99999))
eeg("EDF, physical range of 0", "physical range must be above 0")(lambda d: edf(d, low=0, high=0))
eeg("EDF, no unit", "no voltage unit", "read, with a note")(lambda d: (edf(d, unit=""), {"array": d * 0.1}))
eeg("BDF, cut to half", "does not match the file size", "read, with a note", "a.bdf")(
    lambda d: (edf(d, bits=24)[: 256 * 20 + 4 * 19 * RATE * 3], {"array": d[:, : 4 * RATE] * 0.1})
)
eeg("text named .edf", "could not be read as EDF")(lambda d: b"hello " * 2000)
eeg(".mat, sound", "no rate and no names", "read, with a note", "a.mat")(
    lambda d: (matlab(a=d.T), {"array": d - d.mean(axis=1, keepdims=True)})
)
eeg(".mat, half of it", "is damaged or cut off", name="a.mat")(lambda d: matlab(a=d.T)[:9000])
eeg(".mat, empty (0 bytes)", "could not be read as a MATLAB file", name="a.mat")(lambda d: b"")
eeg(".mat, compressed, half of it", "is damaged or cut off", name="a.mat")(lambda d: matlab(True, a=d.T)[:9000])
eeg(".mat of 3 columns", "must hold (samples, 19)", name="a.mat")(lambda d: matlab(a=d.T[:, :3]))
eeg(".mat of words", "must hold one array", name="a.mat")(lambda d: matlab(a="words"))


@eeg(".mat bomb: an array of 1 GiB of zeros", "does not fit in memory", name="a.mat")
def _(data):
    whole = bytearray(matlab(a=np.zeros((1, 19))))
    packed = zeros_deflated(1 << 30, 15)
    return bytes(whole[:128]) + struct.pack("<II", 15, len(packed)) + packed


@eeg("EEGLAB .set, half of it", "is damaged or cut off", name="a.set")
def _(data):
    return matlab(EEG={"data": data, "srate": RATE, "nbchan": 19.0, "trials": 1.0, "pnts": data.shape[1]})[:9000]


@eeg("EEGLAB .set whose .fdt is missing", "could not be read as SET", name="a.set")
def _(data):
    chanlocs = np.array([(name,) for name in CHANNELS], [("labels", object)])
    fields = {"data": "a.fdt", "srate": RATE, "nbchan": 19, "trials": 1, "pnts": data.shape[1], "xmin": 0}
    return matlab(EEG={**fields, "xmax": 8, "chanlocs": chanlocs, "event": np.array([]), "icaweights": np.array([])})


VHDR = """Brain Vision Data Exchange Header File Version 1.0
[Common Infos]
DataFile={data}
MarkerFile=
DataFormat=BINARY
DataOrientation=MULTIPLEXED
NumberOfChannels={channels}
SamplingInterval={interval}
[Binary Infos]
BinaryFormat=INT_16
[Channel Infos]
"""


def brainvision(what: str, said: str, outcome: str = "refused", keep: int | None = None, **changes: Any) -> None:
    """Register a header file with its data file."""

    def make(folder: Path) -> Any:
        data = sound_eeg()
        fields = {"data": "a.eeg", "channels": len(CHANNELS), "interval": 1e6 / RATE} | changes
        lines = [f"Ch{n}={name},,0.1,µV" for n, name in enumerate(CHANNELS, start=1)]
        (folder / "a.vhdr").write_text(VHDR.format(**fields) + "\n".join(lines), encoding="utf-8")
        (folder / "a.eeg").write_bytes(data.T.astype("<i2").tobytes()[:keep])
        whole = data.shape[1] + (0 if keep is None else -1)
        return folder / "a.vhdr", {"array": data[:, :whole] * 0.1}

    DAMAGES.append(Damage("EEG", f"BrainVision, {what}", outcome, said, make))


brainvision("sound", "", "read")
brainvision("data file missing", "which is not in its folder", data="b.eeg")
brainvision("data file is a device without end", "which is not in its folder", data="/dev/zero")
brainvision("data file empty", "holds no samples", keep=0)
brainvision("data file ends within a sample", "ends within a sample", "read, with a note", keep=-7)
brainvision("10^6 channels claimed", "correct NumberOfChannels", channels=10**6)
brainvision("sampling interval 0", "could not be read", interval=0)


@damaged("EEG", "FIF, half of it", said="damaged samples")
def _(folder):
    content = fif(folder)
    (folder / "b_raw.fif").write_bytes(content[: len(content) // 2])
    return folder / "b_raw.fif"


@damaged("EEG", "FIF, list of tags points to itself", said="could not be read as FIF")
def _(folder):
    content = bytearray(fif(folder))
    struct.pack_into(">i", content, 12, 0)  # the position of the second tag
    for place in range(0, 4000, 4):
        if content[place : place + 4] == b"\0\0\0\x65":  # the pointer of the directory
            struct.pack_into(">i", content, place + 16, 16)
    (folder / "b_raw.fif").write_bytes(bytes(content))
    return folder / "b_raw.fif"


def fif(folder: Path) -> bytes:
    import mne

    raw = mne.io.RawArray(sound_eeg() * 1e-7, mne.create_info(CHANNELS, RATE, "eeg", verbose="ERROR"), verbose="ERROR")
    raw.save(folder / "a_raw.fif", verbose="ERROR")
    content = (folder / "a_raw.fif").read_bytes()
    (folder / "a_raw.fif").unlink()
    return content


@damaged("EEG", "GDF, random bytes", said="could not be read as GDF")
def _(folder):
    (folder / "a.gdf").write_bytes(b"GDF 2.20" + np.random.default_rng(0).integers(0, 256, 9000, np.uint8).tobytes())
    return folder / "a.gdf"


@damaged("EEG", "bomb in a .zip: 1 GiB of zeros named a.mat", said="does not fit in memory")
def _(folder):
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.mat", bytes(1 << 20))
        member = packed.getinfo("a.mat")  # its sizes are written at the end
        member.file_size, member.compress_size = 1 << 30, 1 << 20
    return folder / "all.zip" / "a.mat"


@damaged("EEG", ".zip, half of it", said="zip")
def _(folder):
    with zipfile.ZipFile(folder / "all.zip", "w") as packed:
        packed.writestr("a.mat", matlab(a=sound_eeg().T))
    cut(folder / "all.zip", -9000)
    return folder / "all.zip" / "a.mat"
