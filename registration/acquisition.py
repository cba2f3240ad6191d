"""Facts that files report about two scans: whether they are of one subject, contrast, and phase-encoding axis."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydicom.dataset import Dataset

from ..runs.json_files import read_json
from ..volumes import Volume
from ..volumes.dicom_headers import first_header
from ..volumes.dicom_registered import is_dicom
from .choices import PhaseAxis
from .pairs import Pair, without_suffix
from .series import gradients_of, sidecar

Relation = Literal["session", "subject", "unknown"]
ImageContrast = Literal["t1", "b0", "fa", "dwi", "image"]

# the last part of a BIDS name, in lower case
_SUFFIXES: dict[str, ImageContrast] = {
    **{"t1w": "t1", "mprage": "t1"},
    **{"b0": "b0", "tensorb0": "b0", "sbref": "b0", "epi": "b0"},
    **{"fa": "fa", "dwi": "dwi", "tracew": "dwi", "trace": "dwi"},
}
_PLACEHOLDERS = ("", "0", "anon", "anonymous", "anonymized", "unknown", "none")


@dataclass(frozen=True)
class Acquisition:
    """Facts about one scan besides its grid.

    Args:
        contrast: the contrast; "b0", "fa" and "dwi" are diffusion images.
        phase_axis: the voxel axis of the phase encoding; None if unknown.
    """

    contrast: ImageContrast = "image"
    phase_axis: PhaseAxis | None = None

    @property
    def diffusion(self) -> bool:
        """Whether it is a diffusion image."""
        return self.contrast in ("b0", "fa", "dwi")


@dataclass(frozen=True, eq=False)
class PairFacts:
    """Facts about two scans besides their grids.

    Args:
        relation: whether the scans are of one session or of one subject, if that is known.
        moving: the moving scan.
        fixed: the fixed scan.
        reversed_b0: the b0 image with reversed phase encoding, on the grid of the diffusion scan.
    """

    relation: Relation = "unknown"
    moving: Acquisition = Acquisition()
    fixed: Acquisition = Acquisition()
    reversed_b0: Volume | None = None

    @property
    def with_diffusion(self) -> bool:
        """Whether one of the scans, and only one, is a diffusion image."""
        return self.moving.diffusion != self.fixed.diffusion

    @property
    def one_subject(self) -> bool:
        """Whether both scans are known to be of one person."""
        return self.relation != "unknown"


def relation_of(first: Path, second: Path) -> Relation:
    """How two files are related, by the BIDS entities sub-, ses- and space-, or by the UIDs and names of DICOM.

    Example:
        >>> relation_of(Path("sub-1_ses-1_T1w.nii.gz"), Path("sub-1_ses-1_dwi.nii.gz"))
        'session'
        >>> relation_of(Path("sub-1_T1w.nii.gz"), Path("sub-1_space-MNI_T1w.nii.gz"))
        'unknown'
    """
    if is_dicom(first) and is_dicom(second):
        return _dicom_relation(first_header(first), first_header(second))
    if _entity(first, "space") != _entity(second, "space"):
        return "unknown"
    subjects = [_entity(path, "sub") for path in (first, second)]
    if subjects[0] is None or subjects[0] != subjects[1]:
        return "unknown"
    return "session" if _entity(first, "ses") == _entity(second, "ses") else "subject"


def facts_of(pair: Pair, *, series: tuple[bool, bool]) -> PairFacts:
    """Read the facts about a pair from its files.

    Args:
        pair: the files.
        series: whether the moving and the fixed file are 4-D.
    """
    moving = acquisition_of(pair.moving, series=series[0])
    fixed = acquisition_of(pair.fixed, contrast=pair.contrast, series=series[1])
    return PairFacts(relation_of(pair.moving, pair.fixed), moving, fixed)


def acquisition_of(path: Path, *, contrast: str = "image", series: bool = False) -> Acquisition:
    """Read the facts about a scan from its name, its .json, its gradients or its DICOM headers.

    Args:
        path: the scan.
        contrast: the map that is computed from a series ("b0", "fa", "dwi"); "image" for the scan itself.
        series: whether the scan is 4-D; a 4-D scan with gradients is represented by its mean b0.
    """
    kind: ImageContrast = "image"
    if contrast in ("b0", "fa", "dwi"):
        kind = cast(ImageContrast, contrast)
    elif series and gradients_of(path) is not None:
        kind = "b0"
    elif not is_dicom(path):
        kind = _SUFFIXES.get(without_suffix(path).name.rsplit("_", 1)[-1].lower(), "image")
        if kind == "image" and path.parent.name == "dwi":
            kind = "dwi"
    return Acquisition(kind, phase_axis_of(path))


def phase_axis_of(path: Path) -> PhaseAxis | None:
    """The phase-encoding axis of a scan, from the .json beside it (BIDS) or, without a sign, from its DICOM headers.

    Raises:
        ValueError: the .json beside the scan names something other than i, j or k.
    """
    if is_dicom(path):
        return _dicom_axis(first_header(path))
    beside = sidecar(path, ".json")
    if not beside.is_file():
        return None
    content = read_json(beside)
    if not isinstance(content, dict):
        return None
    named = content.get("PhaseEncodingDirection", content.get("PhaseEncodingAxis"))
    if named is None:
        return None
    if named not in get_args(PhaseAxis):
        axes = ", ".join(get_args(PhaseAxis))
        raise ValueError(f"{beside}: PhaseEncodingDirection must be one of {axes}, got {named!r}")
    return cast(PhaseAxis, named)


def _entity(path: Path, name: str) -> str | None:
    """The value of a BIDS entity in the file's name; sub- and ses- are also looked up in the names of its folders."""
    found = re.findall(rf"(?:^|_){name}-([A-Za-z0-9]+)(?=_|$)", without_suffix(path).name)
    if len(found) > 1:
        return None
    if found:
        return str(found[0])
    if name == "space":
        return None
    for part in reversed(path.absolute().parts[:-1]):
        folder = re.fullmatch(rf"{name}-([A-Za-z0-9]+)", part)
        if folder:
            return folder[1]
    return None


def _dicom_relation(first: Dataset, second: Dataset) -> Relation:
    def same(keyword: str) -> bool:
        values = [str(header.get(keyword, "")).strip() for header in (first, second)]
        return values[0] == values[1] and values[0].lower() not in _PLACEHOLDERS

    if same("FrameOfReferenceUID") or same("StudyInstanceUID"):
        return "session"
    return "subject" if same("PatientID") and same("PatientName") else "unknown"


def _dicom_axis(header: Dataset) -> PhaseAxis | None:
    named = header.get("InPlanePhaseEncodingDirection")
    if named is None:  # an enhanced file
        shared: Any = header.get("SharedFunctionalGroupsSequence", [])
        geometry = shared[0].get("MRFOVGeometrySequence", []) if shared else []
        named = geometry[0].get("InPlanePhaseEncodingDirection") if geometry else None
    # a row of the image lies along i, a column along j
    axes: dict[str, PhaseAxis] = {"ROW": "i", "COL": "j", "COLUMN": "j"}
    return axes.get(str(named).upper())
