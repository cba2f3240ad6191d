"""A case: the input files of one unit of work, and the name of its results."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from .names import printable, short_hash

Kind = Literal["dicom", "nifti", "image", "eeg", "pair"]

VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd")
DICOM_KIND = (".dcm", ".ima", ".dicom")


@dataclass(frozen=True)
class Case:
    """One unit of work.

    Args:
        identifier: a unique folder name that reveals nothing about the patient.
        inputs: the files.
        kind: the kind of input, such as a DICOM series.
        description: a short description for people, without free text of the header.
        reason: the reason why the case cannot be run, if already known.
        roles: the roles of the inputs of a pair: "moving", "fixed", "moving_labels", "fixed_labels", "moving_mask",
            "fixed_mask".
        modality: DICOM's code, such as "MR"; None if unknown.
        label: series description and path of the files; may identify a person.
        size: size of the inputs in bytes.
        warnings: remarks made during the search for inputs.
        contrast: for a pair, the image that represents a fixed diffusion series.
    """

    identifier: str
    inputs: tuple[Path, ...]
    kind: Kind
    description: str
    reason: str | None = None
    roles: tuple[str, ...] = ()
    modality: str | None = None
    label: str = ""
    size: int = 0
    warnings: tuple[str, ...] = ()
    contrast: str = "image"

    def with_size(self) -> "Case":
        """The same case with the size of its inputs in bytes."""
        return replace(self, size=file_size(self.inputs))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` restores the case."""
        return {**asdict(self), "inputs": [str(path) for path in self.inputs]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Case":
        """The case from the plain values of `as_dict`."""
        lists = {name: tuple(content[name]) for name in ("roles", "warnings")}
        return cls(**{**content, **lists, "inputs": tuple(Path(path) for path in content["inputs"])})


def with_unique_names(cases: Iterable[Case]) -> list[Case]:
    """Cases sorted by name; cases whose names are equal (ignoring case) also get a hash of their path."""
    same: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        same[case.identifier.lower()].append(case)
    named = []
    for some in same.values():
        if len(some) == 1:
            named += some
            continue
        for case in some:
            place = short_hash(case.label, *(str(path) for path in case.inputs), length=6)
            named.append(replace(case, identifier=f"{case.identifier}-{place}"))
    return sorted(named, key=lambda case: case.identifier)


def file_name(text: str) -> str:
    """A text, converted to a file name that is valid on every file system."""
    slug = re.sub(r"[^\w.+=-]+", "_", printable(text)).strip("._-")[:80]
    return slug or "case"


def file_size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total
