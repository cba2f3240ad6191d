"""Mutated EEG files: each is refused in one line or gives finite samples, in bounded time and memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import scipy.io

from voxelwave.eeg.recording import Recording, read_recording

MUTANTS = 600  # mutants of each format
SECONDS = 20  # seconds for each mutant
MEMORY_GIB = 4  # GiB above the memory of the process
NAMES = ("Fp1", "Fp2", "Cz", "O1")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"reference": "average", "band": (1.0, 30.0), "sfreq": 100.0},
    {"channels": ["Cz", "O1"], "unit": "uV"},
)
BYTES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xc0\0\0", b"\x7f\xf0\0\0\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0")
WORDS = (b"-1", b"0", b"99999999", b"1e308", b"nan", b"inf", b"", b"\xff\xfe", b"../../x", b"=", b"\x14\x14\0", b"+1e9")
CHANGES: dict[str, Any] = {
    "values": BYTES,
    "words": WORDS,
    "most_changes": 4,
    "header": 2000,
    "longest": 39,
    "fields": True,
}


def _noise(seconds: int = 6) -> np.ndarray:
    """Noise (channels, samples) in microvolts at 128 Hz."""
    return 20 * np.random.default_rng(0).standard_normal((len(NAMES), 128 * seconds))


def _edf(folder: Path, *, bdf: bool = False) -> list[Path]:
    """EDF+D or BDF+D with a gap, a bad span and records of one second."""
    width, kind = (3, "BDF") if bdf else (2, "EDF")
    top, count, seconds, mark_bytes = 2 ** (8 * width - 1) - 1, len(NAMES) + 1, 6, 60
    last = [("", -1, 1, mark_bytes // width)]
    rows = [("uV", -200, 200, 128)] * len(NAMES) + last
    columns = [
        (16, [*NAMES, f"{kind} Annotations"]),
        (80, [""] * count),
        (8, [row[0] for row in rows]),
        (8, [row[1] for row in rows]),
        (8, [row[2] for row in rows]),
        (8, [-top - 1] * count),
        (8, [top] * count),
        (80, [""] * count),
        (8, [row[3] for row in rows]),
        (32, [""] * count),
    ]
    start = [(80, "X X X X"), (80, "Startdate 01-JAN-2020 X X X"), (8, "01.01.20"), (8, "00.00.00")]
    start += [(8, 256 * (count + 1)), (44, f"{kind}+D"), (8, seconds), (8, 1), (4, count)]
    text = "".join(f"{value!s:<{size}}" for size, value in start)
    text += "".join(f"{value!s:<{size}}" for size, values in columns for value in values)
    content = (b"\xffBIOSEMI" if bdf else b"0       ") + text.encode()
    digits = np.round(_noise(seconds) / 200 * top).astype("<i4")
    for second in range(seconds):
        part = digits[:, 128 * second : 128 * (second + 1)]
        content += np.ascontiguousarray(part).view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
        onset = second + (30 if second > 2 else 0)
        mark = f"+{onset}\x14\x14\0+{onset}\x150.5\x14BAD_x\x14\0".encode()
        content += mark.ljust(mark_bytes, b"\0")
    file = folder / f"x.{kind.lower()}"
    file.write_bytes(content)
    return [file]


def _bdf(folder: Path) -> list[Path]:
    return _edf(folder, bdf=True)


def _fif(folder: Path) -> list[Path]:
    montage = mne.channels.make_standard_montage("easycap-M1")
    raw = mne.io.RawArray(_noise() * 1e-6, mne.create_info(list(NAMES), 128.0, "eeg"), verbose="error")
    raw.set_montage(montage).set_annotations(mne.Annotations([1.0], [0.5], ["BAD_x"]))
    raw.save(folder / "x_raw.fif", verbose="error")
    return [folder / "x_raw.fif"]


def _brainvision(folder: Path) -> list[Path]:
    lines = ["Brain Vision Data Exchange Header File Version 1.0", "[Common Infos]", "Codepage=UTF-8", "DataFile=x.eeg"]
    lines += ["MarkerFile=x.vmrk", "DataFormat=BINARY", "DataOrientation=MULTIPLEXED", f"NumberOfChannels={len(NAMES)}"]
    lines += [f"SamplingInterval={1e6 / 128}", "[Binary Infos]", "BinaryFormat=INT_16", "[Channel Infos]"]
    lines += [f"Ch{i}={name},,0.1,µV" for i, name in enumerate(NAMES, start=1)]
    (folder / "x.vhdr").write_text("\n".join(lines) + "\n", encoding="utf-8")
    marks = [
        "Brain Vision Data Exchange Marker File, Version 1.0",
        "[Common Infos]",
        "DataFile=x.eeg",
        "[Marker Infos]",
    ]
    marks += [
        "Mk1=New Segment,,1,1,0,20200101000000000000",
        "Mk2=New Segment,,300,1,0",
        "Mk3=Bad Interval,BAD,400,64,0",
    ]
    (folder / "x.vmrk").write_text("\n".join(marks) + "\n")
    np.round(_noise().T * 10).astype("<i2").tofile(folder / "x.eeg")
    return [folder / "x.vhdr", folder / "x.vmrk", folder / "x.eeg"]


def _eeglab(folder: Path) -> list[Path]:
    places = np.zeros(len(NAMES), dtype=[("labels", object), ("X", object), ("Y", object), ("Z", object)])
    for number, (row, name) in enumerate(zip(places, NAMES, strict=True)):
        row["labels"], row["X"], row["Y"], row["Z"] = name, 1.0, float(number), 0.5
    content = {
        "setname": "x",
        "nbchan": len(NAMES),
        "trials": 1,
        "pnts": 768,
        "srate": 128.0,
        "xmin": 0.0,
        "xmax": 767 / 128,
    }
    content |= {"data": "x.fdt", "chanlocs": places, "ref": "common"}
    content |= dict.fromkeys(
        ("event", "epoch", "icawinv", "icasphere", "icaweights", "icaact", "icachansind"), np.array([])
    )
    scipy.io.savemat(folder / "x.set", {"EEG": content}, appendmat=False)
    _noise().T.astype("<f4").tofile(folder / "x.fdt")
    return [folder / "x.set", folder / "x.fdt"]


def _mat(folder: Path) -> list[Path]:
    x = np.random.default_rng(0).normal(size=(300, 19)) * 40 + 130
    scipy.io.savemat(folder / "x.mat", {"x": x}, do_compression=True)
    return [folder / "x.mat"]


FORMATS: dict[str, Callable[[Path], list[Path]]] = {
    "edf": _edf,
    "bdf": _bdf,
    "fif": _fif,
    "brainvision": _brainvision,
    "eeglab": _eeglab,
    "mat": _mat,
}


def problem_with(file: Path, options: dict[str, Any], limits: Callable[..., Any]) -> str | None:
    """The error in reading a file; None if it is refused in one line or read with finite numbers."""
    try:
        with limits(SECONDS, MEMORY_GIB):
            found: Recording = read_recording(file, **options)
    except (ValueError, OSError) as error:
        plain = type(error) is ValueError or isinstance(error, OSError)
        return None if plain and "\n" not in str(error) and str(error) else f"{type(error).__name__}: {error}"
    except KeyboardInterrupt as error:
        return str(error)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    if found.signal.shape[0] != len(found.channels) or not np.isfinite(found.signal).all():
        return f"{np.count_nonzero(~np.isfinite(found.signal))} numbers that are not finite, shape {found.signal.shape}"
    numbers = [found.sfreq, found.file_sfreq, *(edge for span in found.bad_spans for edge in span)]
    return None if np.isfinite(numbers).all() and found.sfreq > 0 else f"spans or rates {numbers}"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit of memory needs Linux")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_mutated_file_is_refused_in_one_line_or_read(kind: str, tmp_path: Path, mutated: Any, limits: Any) -> None:
    files = FORMATS[kind](tmp_path)
    contents = [file.read_bytes() for file in files]
    sound = {str(options): problem_with(files[0], options, limits) for options in OPTIONS}
    assert not any(sound.values()), sound
    problems = {}
    for number in range(MUTANTS):
        generator = np.random.default_rng([number, *kind.encode()])
        which = 0 if generator.random() < 0.7 else int(generator.integers(0, len(files)))
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(mutated(content, generator, **CHANGES) if file == files[which] else content)
        found = problem_with(files[0], OPTIONS[number % len(OPTIONS)], limits)
        if found:
            problems[number] = found
    assert not problems, "\n".join(f"mutant {number}: {found}" for number, found in problems.items())
