"""Write values computed from a DICOM series as a derived series.

The headers are copied from the source images, so patient, study, acquisition and display are kept. Attributes that no
longer hold are changed: UIDs of series and images, image type, size, spacing, stored type, rescale; and the sources are
recorded (DICOM PS3.3: C.7.6.1 General Image, C.7.6.16.2.6 Derivation Image).
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from .dicom import read_series
from .dicom_derived import (
    atomic_folder,
    check_free,
    current_time,
    derive,
    read_source,
    reference_item,
    uid_of,
)
from .dicom_encode import encode, set_pixels
from .dicom_groups import shared_groups
from .volume import LPS, Volume


def write_derived_series(
    folder: str | os.PathLike[str], volume: Volume, source_folder: str | os.PathLike[str], description: str
) -> Path:
    """Write a volume that was computed from a DICOM series as a new, derived series of the same study.

    The images correspond to those of the source: classic files stay one per slice, an enhanced multi-frame file stays
    one file. Values are stored uncompressed: integers exactly if they fit into 16 bits, else rounded to the source's
    own rescale slope if it covers their range, otherwise to 1 / 65,534 of the range. The same values from the same
    series get the same UIDs, so that sending them again creates no duplicates; if SOURCE_DATE_EPOCH (seconds since
    1970) is set, it is used as the time, and the files are identical too. The folder appears complete or not at all.

    Args:
        folder: the folder to write; must not exist, or be empty.
        volume: (columns, rows, slices) or (columns, rows, slices, volumes) as `read_volume` returns it for the source;
            values in the source's output unit (HU). The in-plane size may differ, but not the number and positions of
            slices.
        source_folder: the source series or multi-frame file.
        description: a description of the processing; SeriesDescription holds its start, DerivationDescription all of
            it.

    Returns:
        The folder.

    Raises:
        ValueError: the volume is not on the slices of the source, or the folder is not empty.
    """
    folder, source_folder = Path(folder), Path(source_folder)
    check_free(folder)
    headers, stacks = read_series(source_folder)
    order = {file: number for number, file in enumerate(headers)}
    frames = sorted((frame for stack in stacks for frame in stack), key=lambda f: (order[f.path], f.index))
    array = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    _check_grid(volume, array.shape, stacks, source_folder)
    # (volume, slice, rows downwards, columns), as images are stored
    planes = array.transpose(3, 2, 1, 0)[:, :, ::-1]
    stored, encoding = encode(planes, frames, next(iter(headers.values())))
    places = {(f.path, f.index): (t, k) for t, stack in enumerate(stacks) for k, f in enumerate(stack)}

    source_uid = str(next(iter(headers.values())).get("SeriesInstanceUID", ""))
    digest = hashlib.sha256(stored.tobytes()).hexdigest()
    series_uid = uid_of(
        source_uid, description, digest, json.dumps(encoding._asdict()), *map(str, volume.affine.ravel())
    )
    now = current_time()
    with atomic_folder(folder) as temporary:
        for number, file in enumerate(headers):
            dataset = read_source(file)
            image_uid = uid_of(series_uid, str(dataset.get("SOPInstanceUID") or number))
            count = sum(path == file for path, _ in places)
            chosen = [places[file, index] for index in range(count)]
            resampled = (int(dataset.Columns), int(dataset.Rows)) != volume.shape[:2]
            derive(dataset, description, series_uid, now, sources=[reference_item(dataset)], resampled=resampled)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = image_uid
            _set_geometry(dataset, volume, [k for _, k in chosen])
            set_pixels(
                dataset, np.stack([stored[place] for place in chosen]), encoding, [stacks[t][k] for t, k in chosen]
            )
            name = file.name if file.suffix.lower() == ".dcm" else f"{number:05d}.dcm"
            dataset.save_as(temporary / name, enforce_file_format=True)
    return folder


def _check_grid(volume: Volume, shape: tuple[int, ...], stacks: list[list[Any]], source: Path) -> None:
    """Refuse a volume whose slices are not those of the source."""
    if shape[2:] != (len(stacks[0]), len(stacks)):
        raise ValueError(
            f"volume must have {len(stacks[0])} slices and {len(stacks)} volumes to match {source}, got {shape[2:]}"
        )
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    for k, frame in enumerate(stacks[0]):
        centre = volume.affine @ [(shape[0] - 1) / 2, (shape[1] - 1) / 2, k, 1]
        offset = (LPS @ centre)[:3] - frame.position
        normal = np.cross(frame.orientation[:3], frame.orientation[3:])
        if abs(offset @ normal) > 0.1 * volume.spacing[2]:
            raise ValueError(
                f"volume does not lie on the slices of {source}: slice {k} is {offset @ normal:.2f} mm off"
            )
        if (LPS[:3, :3] @ axes[:, 0]) @ frame.orientation[:3] < 0.99:
            raise ValueError(f"volume must have the axes that read_volume gives for {source}, got {volume.orientation}")


def _set_geometry(dataset: Dataset, volume: Volume, slices: list[int]) -> None:
    """Set size, spacing and first pixel, if the volume has another in-plane grid than the image."""
    columns, rows = volume.shape[:2]
    if (int(dataset.Columns), int(dataset.Rows)) == (columns, rows):
        return
    dataset.Columns, dataset.Rows = columns, rows
    spacing = [f"{volume.spacing[1]:.10g}", f"{volume.spacing[0]:.10g}"]
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    for holder in [dataset, *shared_groups(dataset), *groups]:
        for inner in [holder, *(holder.get("PixelMeasuresSequence") or [])]:
            if "PixelSpacing" in inner:
                inner.PixelSpacing = spacing
    for holder, k in zip(groups or [dataset], slices, strict=True):
        position = (LPS @ volume.affine @ [0, rows - 1, k, 1])[:3]
        inner = holder["PlanePositionSequence"][0] if "PlanePositionSequence" in holder else holder
        inner.ImagePositionPatient = [f"{value:.10g}" for value in position]
    for element in [e for e in dataset if 0x6000 <= e.tag.group <= 0x60FF]:  # overlays of the old size
        del dataset[element.tag]
