"""Align pairs of scans, with the network in memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...registration.register import Registration
    from ...volumes import Volume
    from ..batch.case import Case

# torch and its friends load in the functions, so that --help answers at once

FORWARD, INVERSE, AFFINE = "forward.nii.gz", "inverse.nii.gz", "affine.mat"


@dataclass(frozen=True)
class Alignment:
    """How pairs are aligned, with the network in memory.

    Args:
        options: of `registration.register.register`.
        trained: the network and what it was trained at, if any.
        dicom: as in `register`.
    """

    options: dict[str, Any]
    trained: dict[str, Any]
    dicom: bool

    def __call__(self, case: "Case", folder: Path) -> dict[str, Any]:
        """Align one pair of a batch."""
        files: dict[str, Path | None] = {"moving_labels": None, "fixed_labels": None}
        files |= dict(zip(case.roles, case.inputs, strict=True))
        done = self.align(files, folder, contrast=case.contrast)
        return {"metrics": done["metrics"]}

    def align(
        self, files: dict[str, Path | None], output: Path, *, contrast: str = "image", progress: Any = None
    ) -> dict[str, Any]:
        """One pair from files to a folder; gives metrics, seconds of each step and whether DICOM was written."""
        from ...registration.data import load_fixed
        from ...registration.pairs import Pair
        from ...registration.picture import draw_registration
        from ...registration.register import register as align
        from ...volumes import read_volume, resample
        from .overlap import overlap
        from .scans import read_labels, reference_image, write_dicom, writes_dicom

        moving, fixed = (Path(str(files[role])) for role in ("moving", "fixed"))
        to_dicom = writes_dicom(moving, fixed, output, always=self.dicom)
        moving_volume = read_volume(moving)
        moving_image = reference_image(moving_volume, moving)
        if contrast == "image":
            fixed_image = reference_image(read_volume(fixed), fixed)
        else:
            fixed_image = load_fixed(Pair(moving, fixed, "", contrast=contrast))  # type: ignore[arg-type]
        labels = read_labels(files["moving_labels"]), read_labels(files["fixed_labels"])
        result = align(moving_image, fixed_image, **self.trained, **self.options, progress=progress)
        warped = _write_results(output, moving, moving_volume, fixed_image, result)
        if to_dicom:
            words = f"registered by voxelwave, method {self.options['method']}"
            write_dicom(output, warped, moving, fixed, result, description=words)
        metrics = dict(result.metrics)
        if labels[0] is not None:
            moved = _write_labels(output, labels[0], fixed_image, result)
            if labels[1] is not None:
                metrics |= overlap(resample(labels[0], fixed_image, order="nearest"), labels[1], "before")
                metrics |= overlap(moved, labels[1], "after")
        draw_registration(
            output / "picture.png",
            fixed=fixed_image,
            moving=moving_image,
            warped=result.warped,
            forward=result.forward,
        )
        return {"metrics": metrics, "seconds": result.seconds, "dicom": to_dicom}


def batch_work(*, weights: str | None, dicom: bool, cache: str | None, **options: Any) -> Alignment:
    """A way to align pairs, from plain values."""
    from .scans import network_options

    trained = network_options(None if weights is None else Path(weights))
    return Alignment({**options, "cache_dir": cache}, trained, dicom)


def _write_results(
    output: Path, moving: Path, moving_volume: "Volume", fixed_image: "Volume", result: "Registration"
) -> "Volume":
    """The warped scan, which is given, and the transforms."""
    from ...volumes import AffineTransform, resample, write_transform, write_volume
    from .scans import write_rotated_bvecs

    warped = result.warped
    if moving_volume.array.ndim == 4:
        warped = resample(moving_volume, fixed_image, result.forward)
        write_rotated_bvecs(moving, moving_volume, output, result)
    write_volume(output / "warped.nii.gz", warped, space="aligned")
    write_transform(output / FORWARD, result.forward)
    write_transform(output / INVERSE, result.inverse)
    write_transform(output / AFFINE, AffineTransform(result.affine))
    return warped


def _write_labels(output: Path, labels: "Volume", fixed_image: "Volume", result: "Registration") -> "Volume":
    """The moved label map, which is given."""
    from ...volumes import resample, write_volume

    moved = resample(labels, fixed_image, result.forward, order="nearest")
    write_volume(output / "warped_labels.nii.gz", moved, space="aligned")
    return moved
