"""`voxelwave info`: what a file or folder is, and which commands take it."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from ...eeg.readers import SUFFIXES as EEG_SUFFIXES
from ...eeg.recording import read_recording
from ...registration.acquisition import acquisition_of
from ...registration.series import gradients_of
from ...restoration.images import Image, read_image
from ...restoration.inference import Refused, check_card, slices_of
from ...restoration.suffixes import BITMAP_SUFFIXES
from ...restoration.weights import load_weights
from ...runs.archives import original_of
from ...runs.catalogue import list_weights
from ...runs.outcome import add_outcome
from ...scanpath.eye_tracker_files import read_eyelink, read_fixation_table
from ...scanpath.readers import read_scanpaths
from ...volumes import read_transform
from ...volumes.describe import describe_transform, describe_volume
from ...volumes.itk import LINEAR_SUFFIXES, is_field
from ...volumes.lta import LTA_SUFFIX
from ...volumes.nifti import is_nifti_name
from ...volumes.point_files import read_points
from ..batch.find import find_cases
from ..registration.options import FORWARD, INVERSE
from .options import Info

Facts = dict[str, Any]
_TRANSFORMS = (*LINEAR_SUFFIXES, ".h5", LTA_SUFFIX)


def info(options: Info) -> None:
    """Run the command."""
    facts, uses = _described(options.file)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    for use in uses:
        print(f"  {use}")
    add_outcome(file=original_of(options.file), facts=facts, uses=uses)


def _described(path: Path) -> tuple[Facts, list[str]]:
    """What there is, and the commands that take it.

    Raises:
        ValueError: it is of no kind that a command takes, or is damaged.
    """
    name = path.name.lower()
    if path.is_dir():
        return _folder(path)
    kinds: list[tuple[bool, Callable[[Path], tuple[Facts, list[str]]]]] = [
        (name.endswith(".safetensors"), _weights),
        (name.endswith(".json"), _scenes),
        (name.endswith(".mat") and path.read_bytes()[:10] == b"MATLAB 5.0", _recording),  # ITK's are MATLAB 4
        (name.endswith(_TRANSFORMS) or (is_nifti_name(path) and is_field(path)), _transform),
        (is_nifti_name(path) or name.endswith((".nrrd", *BITMAP_SUFFIXES)), _image),
        (name.endswith(EEG_SUFFIXES), _recording),
        (name.endswith(".asc"), _eye_tracker),
        (name.endswith((".csv", ".tsv", ".gii")), _table),
    ]
    describe = next((describe for fits, describe in kinds if fits), _image)
    return describe(path)


def _image(path: Path) -> tuple[Facts, list[str]]:
    image = read_image(path)
    facts: Facts = {"kind": {"bitmap": "picture", "volume": "image volume", "dicom": "DICOM series"}[image.kind]}
    if image.volume is None:
        facts["size"] = (
            f"{image.stack.shape[2]} x {image.stack.shape[3]} {image.stack.dtype}, channels {image.channels}"
        )
    else:
        facts |= describe_volume(image.volume)
    if image.modality:
        facts["modality"] = image.modality
    uses = _restorations(path, image)
    if image.volume is not None:
        gradients = gradients_of(path)
        acquisition = acquisition_of(path, series=image.volume.array.ndim == 4)
        facts |= {"contrast": acquisition.contrast} if acquisition.contrast != "image" else {}
        facts |= {"phase encoding": acquisition.phase_axis} if acquisition.phase_axis else {}
        if gradients is not None:
            facts["diffusion"] = f"{len(gradients[0])} volumes, b up to {max(gradients[0]):.0f}"
        how = {True: "by its mean b0 image; each volume is moved and the b-vectors are rotated", False: "by its mean"}
        series = f"  (a series is aligned {how[gradients is not None]})" if image.volume.array.ndim == 4 else ""
        uses.insert(0, f"voxelwave registration register {original_of(path)} FIXED -o OUT{series}")
    return facts, uses


def _restorations(path: Path, image: Image) -> list[str]:
    """A line for each of the weights that come with the package."""
    uses = []
    for entry in list_weights("restoration"):
        try:
            check_card(image, entry)
            slices_of(load_weights(entry.file)[0], image.channels)
        except Refused as refused:
            uses.append(f"not restored: {refused}")
        else:
            uses.append(f"voxelwave restoration restore {original_of(path)} -o OUT --weights {entry.name}")
    return uses


def _transform(path: Path) -> tuple[Facts, list[str]]:
    transform = read_transform(path)
    facts: Facts = {"kind": "transform", **describe_transform(transform)}
    return facts, [
        f"voxelwave registration apply {original_of(path)} IMAGE --like FIXED -o OUT",
        f"voxelwave registration transform {original_of(path)} -o OUT.mat",
    ]


def _recording(path: Path) -> tuple[Facts, list[str]]:
    recording = read_recording(path)
    facts: Facts = {
        "kind": "EEG recording",
        "channels": f"{len(recording.channels)}: {', '.join(recording.channels)}",
        "sampling rate": f"{recording.sfreq:g} Hz",
        "length": f"{recording.seconds:.1f} s",
        "unit": recording.unit,
        "bad spans": len(recording.bad_spans),
    }
    facts |= {f"note {k}": note.text for k, note in enumerate(recording.notes, 1)}
    names = [entry.name for entry in list_weights("eeg")]
    return facts, [
        f"voxelwave eeg diagnose {original_of(path)} -o OUT --weights {name}" for name in (*names, "MODEL.safetensors")
    ]


def _scenes(path: Path) -> tuple[Facts, list[str]]:
    dataset = read_scanpaths(path, duplicates="drop")
    scenes = list(dataset.scenes.values())
    facts: Facts = {
        "kind": "scenes with scanpaths",
        "scenes": len(scenes),
        "objects": _range(list(map(len, scenes))),
        "scanpaths": len(dataset.trials),
    }
    uses = [f"voxelwave scanpath predict {original_of(path)} -o OUT --weights WEIGHTS"]
    return facts, uses + ([f"voxelwave scanpath train {original_of(path)} -o OUT"] if dataset.trials else [])


def _eye_tracker(path: Path) -> tuple[Facts, list[str]]:
    fixations = read_eyelink(path) if path.suffix.lower() == ".asc" else read_fixation_table(path)
    facts: Facts = {
        "kind": "fixations of an eye tracker",
        "fixations": len(fixations),
        "people": len({fixation.person for fixation in fixations}),
        "pictures": len({fixation.scene for fixation in fixations}),
    }
    return facts, [f"voxelwave scanpath import {path} --pictures FOLDER -o OUT.json"]


def _table(path: Path) -> tuple[Facts, list[str]]:
    """Points in space, or fixations.

    Raises:
        ValueError: the columns are those of neither.
    """
    try:
        points = read_points(path)
    except ValueError as error:
        if path.suffix.lower() == ".gii":
            raise
        try:
            return _eye_tracker(path)
        except ValueError:
            raise ValueError(f"{error}; for fixations, columns for the scene, x and y") from None
    low, high = (ends(points.coordinates, axis=0) for ends in (np.nanmin, np.nanmax))
    extent = ", ".join(f"{a:.4g} to {b:.4g}" for a, b in zip(low, high, strict=True))
    facts: Facts = {"kind": "table of points" if points.table else "surface", "points": len(points.coordinates)}
    facts["extent"] = f"{extent} (x, y, z)"
    return facts, [f"voxelwave registration apply TRANSFORM --points {path} -o OUT{path.suffix}"]


def _weights(path: Path) -> tuple[Facts, list[str]]:
    try:
        with safetensors.safe_open(path, framework="np") as content:
            metadata, names = content.metadata() or {}, list(content.keys())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    facts: Facts = {"kind": "weights", "size": f"{os.path.getsize(path) / 2**20:.1f} MB, {len(names)} tensors"}
    facts |= {key: value if len(value) <= 200 else f"{value[:197]}..." for key, value in metadata.items()}
    return facts, ["voxelwave weights  (lists the weights that are found by name)"]


def _folder(path: Path) -> tuple[Facts, list[str]]:
    found = find_cases(
        path, ("dicom", "nifti", "image", "eeg"), suffixes={"image": BITMAP_SUFFIXES, "eeg": EEG_SUFFIXES}
    )
    if all((path / name).is_file() for name in (FORWARD, INVERSE)):
        described, uses = _transform(path / FORWARD)
        uses = [use.replace(str(original_of(path / FORWARD)), str(original_of(path))) for use in uses]
        return {**described, "kind": "result of a registration"}, uses
    if len(found.cases) == 1 and found.cases[0].kind == "dicom" and found.cases[0].reason is None:
        return _image(path)
    counts = Counter(case.kind for case in found.cases)
    broken = [case for case in found.cases if case.reason is not None]
    facts: Facts = {"kind": "folder", "cases": ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"}
    facts |= {"broken": len(broken)} if broken else {}
    facts |= {f"note {k}": note for k, note in enumerate(found.notes, 1)}
    uses = ["voxelwave restoration restore -i FOLDER -o OUT --dry-run"] if set(counts) - {"eeg"} else []
    uses += ["voxelwave eeg diagnose -i FOLDER -o OUT --weights WEIGHTS --dry-run"] if "eeg" in counts else []
    return facts, [use.replace("FOLDER", str(original_of(path))) for use in uses]


def _range(counts: list[int]) -> str:
    if not counts:
        return "none"
    low, high = min(counts), max(counts)
    return f"{low} per scene" if low == high else f"{low} to {high} per scene"
