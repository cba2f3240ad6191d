"""What the registration commands read and write around `voxelwave.registration`: series, labels, b-vectors, notes."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...registration.diffusion import mean_b0, read_bvals, read_gradients, rotate_bvecs, write_bvecs
from ...registration.nestedmorph_files import load_nestedmorph, read_training_options
from ...registration.register import Registration
from ...runs.files import atomic_path
from ...volumes import Volume, VolumeWarning, read_volume

WARPED_DICOM, REGISTRATION_DICOM = "warped_dicom", "registration.dcm"


def reference_image(volume: Volume, path: Path) -> Volume:
    """The 3-D image that stands for a series: its mean b0 where b-values lie beside it, else the mean of all."""
    if volume.array.ndim == 3:
        return volume
    bval = sidecar(path, ".bval")
    if bval.is_file():
        return mean_b0(volume, read_bvals(bval))
    warnings.warn(
        f"{path} holds {volume.array.shape[3]} volumes and no {bval.name} lies beside it: their mean is aligned",
        VolumeWarning,
        stacklevel=2,
    )
    return volume.with_array(volume.array.mean(axis=3, dtype=np.float32))


def write_rotated_bvecs(moving: Path, series: Volume, output: Path, result: Registration) -> None:
    """Write warped.bval and warped.bvec, the gradients turned with the head, if the series has them."""
    bval, bvec = sidecar(moving, ".bval"), sidecar(moving, ".bvec")
    if not (bval.is_file() and bvec.is_file()):
        return
    _, bvecs = read_gradients(bval, bvec)
    rotated = rotate_bvecs(bvecs, result.affine, moving_affine=series.affine, fixed_affine=result.warped.affine)
    with atomic_path(output / "warped.bvec") as temporary:
        write_bvecs(temporary, rotated)
    with atomic_path(output / "warped.bval") as temporary:
        shutil.copyfile(bval, temporary)


def writes_dicom(moving: Path, fixed: Path, output: Path, *, always: bool) -> bool:
    """Whether a registration gives DICOM results: between two DICOM images, or `always` that MOVING is one.

    Raises:
        ValueError: `always` without a DICOM image to make a series from, or where one of an earlier run lies.
    """
    from ...volumes.dicom_registered import is_dicom

    if always and not is_dicom(moving):
        raise ValueError(f"--dicom needs a DICOM series as MOVING, whose headers the result gets, got {moving}")
    wanted = is_dicom(moving) and (always or is_dicom(fixed))
    folder = output / WARPED_DICOM
    if wanted and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds the series of an earlier run: remove it or choose another --output")
    return wanted


def write_dicom(
    output: Path, warped: Volume, moving: Path, fixed: Path, result: Registration, *, description: str
) -> None:
    """Write the warped scan as a derived series and the transform as a Deformable Spatial Registration object."""
    from ...volumes.dicom_registered import (
        common_frame_of_reference,
        is_dicom,
        write_deformable_registration,
        write_registered_series,
    )

    reference = fixed if is_dicom(fixed) else None
    frame = common_frame_of_reference(moving, fixed)
    write_registered_series(
        output / WARPED_DICOM,
        warped,
        moving,
        description,
        frame_of_reference=frame,
        fixed=reference,
        linear=result.affine,
    )
    write_deformable_registration(
        output / REGISTRATION_DICOM,
        result.forward,
        moving=moving,
        fixed=reference,
        frame_of_reference=frame,
        description=description,
    )


def read_labels(path: Path | None) -> Volume | None:
    """A label map as int32, or None for None.

    Raises:
        ValueError: for a map that is not 3-D or holds fractions.
    """
    if path is None:
        return None
    labels = read_volume(path, ndim=3)
    rounded = np.round(labels.array)
    if not np.array_equal(rounded, labels.array):
        raise ValueError(f"{path} must hold whole numbers, one for each structure, got fractions")
    return labels.with_array(rounded.astype(np.int32))


def network_options(weights: Path | None) -> dict[str, Any]:
    """What `register` needs to know of trained weights: the network and the spacing that it was trained at, if any."""
    if weights is None:
        return {}
    spacing_mm = (read_training_options(weights) or {}).get("spacing_mm")
    return {"network": load_nestedmorph(weights), "network_spacing_mm": spacing_mm}


def sidecar(path: Path, suffix: str) -> Path:
    """The file beside a NIfTI file that has its name and another suffix, such as ".bval"."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + suffix)


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """The warnings of the block about its files: shown as they come, and kept for the record."""
    notes: list[str] = []
    show = warnings.showwarning

    def keep(message, category, *rest, **options) -> None:
        if issubclass(category, VolumeWarning):
            notes.append(str(message))
        show(message, category, *rest, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("always", VolumeWarning)
        warnings.showwarning = keep
        yield notes
