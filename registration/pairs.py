"""Lists and folders of pairs of scans, and their split by subject."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from ..runs.files import is_hidden
from ..runs.json_files import read_json
from ..runs.tables import read_table
from .choices import CONTRASTS, SPLITS, Contrast, Split, Task

PAIR_FILES = ("moving", "fixed", "moving_labels", "fixed_labels")
MASK_FILES = ("moving_mask", "fixed_mask")


@dataclass(frozen=True)
class Pair:
    """The files of two images to align.

    Args:
        moving: image file.
        fixed: image file.
        subject: the subject of the images; a subject is never in two splits.
        moving_labels: label map in the world space of `moving`.
        fixed_labels: label map in the world space of `fixed`.
        fixed_subject: the subject of `fixed` if it differs from `subject`.
        contrast: map computed from a 4-D diffusion series in `fixed`: "b0" (mean), "fa" or "dwi" (mean of the weighted
            volumes), using the .bval and .bvec files beside it. "image" for a 3-D file.
        split: "train", "val" or "test", if already decided.
        moving_mask: mask in the world space of `moving`; voxels that are 0, such as a lesion, are not compared. A
            training does not use it.
        fixed_mask: the same for `fixed`.
    """

    moving: Path
    fixed: Path
    subject: str
    moving_labels: Path | None = None
    fixed_labels: Path | None = None
    fixed_subject: str | None = None
    contrast: Contrast = "image"
    split: Split | None = None
    moving_mask: Path | None = None
    fixed_mask: Path | None = None

    @property
    def has_labels(self) -> bool:
        """Whether the pair has both label maps."""
        return self.moving_labels is not None and self.fixed_labels is not None


def read_pairs(
    path: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None, must_exist: bool = True
) -> list[Pair]:
    """Read a list of pairs: .csv, .tsv, or .json (a list of objects).

    The columns are the fields of `Pair`; `moving` and `fixed` are required, the others may be absent or empty. Without
    `subject`, every pair counts as a different subject.

    Args:
        path: the list.
        folder: the folder to which relative paths refer; by default the folder of the list.
        must_exist: refuse a list that names a missing file.

    Raises:
        ValueError: columns are missing, or columns or values are unknown; the text names the line (or the entry).
        FileNotFoundError: the list or a file that it names is missing; the text names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no list of pairs at {path}")
    if path.suffix.lower() == ".json":
        rows = _json_rows(path)
    elif path.suffix.lower() in (".csv", ".tsv"):
        rows = _table_rows(path)
    else:
        raise ValueError(f"a list of pairs must end in .csv, .tsv or .json, got {path.name}")
    if not rows:
        raise ValueError(f"{path} must name at least one pair, got none")
    start = path.parent if folder is None else Path(folder)
    return [_pair(start, where, row, number, must_exist=must_exist) for number, (where, row) in enumerate(rows)]


def find_pairs(
    folder: str | os.PathLike[str],
    task: Task,
    *,
    contrast: Contrast = "b0",
    atlas: str | os.PathLike[str] | None = None,
) -> list[Pair]:
    """Find pairs in a BIDS-like folder: sub-*/[ses-*/]anat/*_T1w.nii.gz, and dwi/*_dwi.nii.gz with .bval and .bvec.

    The label map of an image has the same name with `_dseg` in place of the last part (`_T1w`, `_dwi`).

    Args:
        folder: the folder that holds the folders sub-*.
        task: "t1-dwi": T1w (moving) and diffusion (fixed) of one session. "atlas-to-patient": the atlas (moving) and
            each T1w. "patient-to-patient": each T1w and the T1w of every other subject; two sessions of one subject
            are not paired.
        contrast: map computed from the diffusion series, see `Pair`.
        atlas: image file, for "atlas-to-patient"; its label map is in the same folder as `*_dseg`.

    Raises:
        ValueError: no pairs were found, or an atlas is missing or given for another task.
        FileNotFoundError: the folder or the atlas is missing.
    """
    folder = Path(folder)
    if (atlas is not None) != (task == "atlas-to-patient"):
        raise ValueError(f'atlas must be given for task "atlas-to-patient" and only for it, got {atlas} for "{task}"')
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    t1s = [(path, _subject_of(folder, path)) for path in _images(folder, "anat", "T1w")]
    if task == "t1-dwi":
        pairs = [
            Pair(t1, dwi, subject, _labels_of(t1), _labels_of(dwi), contrast=contrast)
            for t1, subject in t1s
            for dwi in _images(t1.parent.parent, "dwi", "dwi", sessions=False)
        ]
    elif task == "atlas-to-patient":
        atlas = Path(str(atlas))
        if not atlas.is_file():
            raise FileNotFoundError(f"no atlas at {atlas}")
        pairs = [
            Pair(atlas, t1, subject, _labels_of(atlas), _labels_of(t1), fixed_subject=subject) for t1, subject in t1s
        ]
    elif task == "patient-to-patient":
        pairs = [
            Pair(a, b, subject_a, _labels_of(a), _labels_of(b), fixed_subject=subject_b)
            for (a, subject_a), (b, subject_b) in permutations(t1s, 2)
            if subject_a != subject_b
        ]
    else:
        raise ValueError(f'task must be "t1-dwi", "atlas-to-patient" or "patient-to-patient", got {task!r}')
    if not pairs:
        raise ValueError(
            f'no pairs for task "{task}" in {folder}: looked for sub-*/[ses-*/]anat/*_T1w.nii[.gz]'
            + (" with dwi/*_dwi.nii[.gz] beside anat/" if task == "t1-dwi" else "")
        )
    return pairs


def split_by_subject(
    pairs: Sequence[Pair], *, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[Split, list[Pair]]:
    """Divide the pairs into train, val and test so that no subject is in two of them.

    A pair of two subjects is kept only if both are in the same split. If any pair has a `split`, all pairs need one;
    the given splits are then checked and used. Otherwise subjects are drawn at random: val gets at least one of two
    or more subjects and test at least one of three or more, unless its fraction is 0.

    Raises:
        ValueError: fractions do not sum to 1, only some pairs have a split, or a subject is in two splits.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three numbers that sum to 1, got {fractions}")
    given = [pair.split is not None for pair in pairs]
    if any(given):
        if not all(given):
            raise ValueError(f"split must be given for all pairs or for none, got {sum(given)} of {len(pairs)}")
        return _given_splits(pairs)
    subjects = sorted({name for pair in pairs for name in _subjects(pair)})
    drawn = np.random.default_rng(seed).permutation(len(subjects))
    counts = _counts(len(subjects), fractions)
    of_subject: dict[str, Split] = {
        subjects[index]: split
        for split, indices in zip(SPLITS, np.split(drawn, np.cumsum(counts)[:2]), strict=True)
        for index in indices
    }
    shared: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        splits = {of_subject[name] for name in _subjects(pair)}
        if len(splits) == 1:
            split = splits.pop()
            shared[split].append(replace(pair, split=split))
    return shared


def _table_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    columns, rows = read_table(path)
    _check_columns(f"{path}:1", columns)
    return [(f"{path}:{line}", row) for line, row in rows]


def _json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'{path} must hold a list of objects, such as [{{"moving": ..., "fixed": ...}}]')
    for number, entry in enumerate(entries):
        _check_columns(f"{path}, entry {number}", entry)
    return [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries)]


def _check_columns(where: str, names: Any) -> None:
    known = [field.name for field in fields(Pair)]
    missing = [name for name in ("moving", "fixed") if name not in names]
    unknown = [str(name) for name in names if name not in known]
    if missing or unknown:
        problem = f"has no column {', '.join(missing)}" if missing else f"has unknown columns {', '.join(unknown)}"
        raise ValueError(f"{where} {problem}; columns are {', '.join(known)}")


def _pair(folder: Path, where: str, row: dict[str, Any], number: int, *, must_exist: bool) -> Pair:
    values: dict[str, Any] = {
        name: text for name, value in row.items() if (text := "" if value is None else str(value).strip())
    }
    for name in PAIR_FILES + MASK_FILES:
        if name not in values:
            if name in ("moving", "fixed"):
                raise ValueError(f"{where}: {name} is empty")
            continue
        file = folder / values[name]
        if must_exist and not file.exists():
            raise FileNotFoundError(f"{where}: {name} not found: {file}")
        values[name] = file
    for name, allowed in (("contrast", CONTRASTS), ("split", SPLITS)):
        if values.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{where}: {name} must be one of {', '.join(allowed)}, got {values[name]!r}")
    return Pair(**{"subject": f"pair-{number}", **values})


def _images(folder: Path, kind: str, suffix: str, *, sessions: bool = True) -> list[Path]:
    patterns = [f"sub-*/{kind}", f"sub-*/ses-*/{kind}"] if sessions else [kind]
    found = {p for pattern in patterns for end in ("nii", "nii.gz") for p in folder.glob(f"{pattern}/*_{suffix}.{end}")}
    return sorted(p for p in found if not is_hidden(p.relative_to(folder)))


def _subject_of(folder: Path, path: Path) -> str:
    return path.relative_to(folder).parts[0]


def without_suffix(path: Path) -> Path:
    """Return the path of an image without the suffix of its format, .nii.gz, .nii, .mgz or .mgh."""
    name = path.name
    for suffix in (".nii.gz", ".nii", ".mgz", ".mgh"):
        if name.lower().endswith(suffix):
            return path.with_name(name[: -len(suffix)])
    return path


def _labels_of(image: Path) -> Path | None:
    stem = without_suffix(image).name
    stem = stem.rsplit("_", 1)[0] if "_" in stem else stem
    candidates = [image.with_name(f"{stem}_dseg{end}") for end in (".nii.gz", ".nii", ".mgz")]
    return next((file for file in candidates if file.is_file()), None)


def _subjects(pair: Pair) -> set[str]:
    return {pair.subject} if pair.fixed_subject is None else {pair.subject, pair.fixed_subject}


def _given_splits(pairs: Sequence[Pair]) -> dict[Split, list[Pair]]:
    seen: dict[str, Split] = {}
    shared: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        assert pair.split is not None
        for name in _subjects(pair):
            if seen.setdefault(name, pair.split) != pair.split:
                raise ValueError(f"subject {name} must be in one split, got {seen[name]} and {pair.split}")
        shared[pair.split].append(pair)
    return shared


def _counts(n: int, fractions: tuple[float, float, float]) -> tuple[int, int, int]:
    test = round(fractions[2] * n)
    if fractions[2] > 0 and n >= 3:
        test = max(test, 1)
    val = round(fractions[1] * n)
    if fractions[1] > 0 and n >= 2:
        val = max(val, 1)
    return n - val - test, val, test
