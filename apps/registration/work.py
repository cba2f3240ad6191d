"""Align pairs of scans, with the network in memory."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...kernels.threads import ordered_sums
from ...registration.acquisition import facts_of
from ...registration.choices import contrast_named
from ...registration.jacobian import jacobian_map
from ...registration.nestedmorph_files import TrainedNetwork
from ...registration.network_files import RegistrationNetwork, read_network
from ...registration.pairs import Pair
from ...registration.picture import draw_registration
from ...registration.planar import is_planar
from ...registration.register import register, working_grid
from ...registration.result import Choice, Progress, Registration
from ...registration.searched import draw_searched, find_searched
from ...registration.series import load_fixed, reference_image
from ...registration.settings import RegistrationSettings
from ...registration.tissues import TrainedTissueNet
from ...runs.finite import check_finite
from ...volumes import AffineTransform, Volume, VolumeWarning, read_volume, resample, write_transform, write_volume
from ...volumes.hounsfield import share_of_air
from ..batch.case import Case
from ..batch.task import CaseRefused
from .initial import after_initial, moved_by, read_initial
from .options import AFFINE, FORWARD, INVERSE
from .overlap import overlap
from .scans import (
    REGISTRATION_DICOM,
    is_picture,
    read_labels,
    read_mask,
    read_scan,
    write_dicom,
    write_rotated_bvecs,
    writes_dicom,
)

SEARCHED = "searched.png"
JACOBIAN = "jacobian.nii.gz"
OPTIONAL_FILES = (
    "warped_labels.nii.gz",
    "warped.bval",
    "warped.bvec",
    REGISTRATION_DICOM,
    SEARCHED,
    JACOBIAN,
)  # written for some pairs only


@dataclass(frozen=True)
class Aligned:
    """The outcome of aligning one pair.

    Args:
        metrics: name -> value.
        seconds: wall time of each step.
        dicom: whether DICOM results were written.
        choice: the stages that were tried and kept.
    """

    metrics: dict[str, float]
    seconds: dict[str, float]
    dicom: bool
    choice: Choice


@dataclass(frozen=True)
class Alignment:
    """Aligns pairs of files, with the network in memory.

    Args:
        settings: see `registration.register.register`.
        network: the trained network, if any.
        device: where network and refinement run.
        cache: folder in which affine alignments are kept.
        dicom: write DICOM results even if only the moving scan is DICOM.
        fix_tilt: straighten the slices of a tilted gantry.
        reversed_b0: the file of a b0 image with the phase encoding of the diffusion scan reversed.
        guard: "refuse" or "warn" about a result that is not credible.
        initial: the file of a linear transform from which the registration starts.
        jacobian: also write the map of the Jacobian determinant.
    """

    settings: RegistrationSettings
    network: RegistrationNetwork | None
    device: str
    cache: Path | None
    dicom: bool
    fix_tilt: bool = False
    reversed_b0: Path | None = None
    guard: Literal["refuse", "warn"] = "refuse"
    initial: Path | None = None
    jacobian: bool = False

    def __call__(self, case: Case, folder: Path) -> dict[str, Any]:
        """Align one pair of a batch and write the results into a folder."""
        files = dict(zip(case.roles, case.inputs, strict=True))
        pair = Pair(
            files["moving"],
            files["fixed"],
            "",
            files.get("moving_labels"),
            files.get("fixed_labels"),
            contrast=contrast_named(case.contrast),
            moving_mask=files.get("moving_mask"),
            fixed_mask=files.get("fixed_mask"),
        )
        aligned = self.align(pair, folder)
        return {"metrics": aligned.metrics, "choice": aligned.choice.as_json()}

    @ordered_sums()
    def align(self, pair: Pair, output: Path, *, progress: Progress | None = None) -> Aligned:
        """Align one pair of files and write the results into a folder.

        Args:
            pair: the files.
            output: the folder to write to.
            progress: called with a line about each step.

        Raises:
            CaseRefused: the result is not credible, and `guard` is "refuse".
            ValueError: a scan cannot be used, or requested DICOM results cannot be written.
        """
        to_dicom = writes_dicom(pair.moving, pair.fixed, always=self.dicom, fix_tilt=self.fix_tilt)
        moving_volume = read_scan(pair.moving, fix_tilt=self.fix_tilt)
        moving = reference_image(moving_volume, pair.moving)
        fixed_volume = read_scan(pair.fixed, fix_tilt=self.fix_tilt)
        fixed = reference_image(fixed_volume, pair.fixed) if pair.contrast == "image" else load_fixed(pair)
        facts = facts_of(pair, series=(moving_volume.array.ndim == 4, fixed_volume.array.ndim == 4))
        if self.reversed_b0 is not None:
            facts = replace(facts, reversed_b0=reference_image(read_volume(self.reversed_b0), self.reversed_b0))
        if isinstance(self.network, TrainedTissueNet):
            self._refuse_ct({pair.moving: moving, pair.fixed: fixed})
        labels, fixed_labels = read_labels(pair.moving_labels), read_labels(pair.fixed_labels)
        start = read_initial(self.initial)
        result = register(
            moved_by(moving, start),
            fixed,
            self.settings,
            network=self.network,
            facts=facts,
            moving_mask=moved_by(read_mask(pair.moving_mask, moving), start),
            fixed_mask=read_mask(pair.fixed_mask, fixed),
            device=self.device,
            cache_dir=self.cache,
            progress=progress,
        )
        result = after_initial(result, start, moving, fixed)
        if result.doubt and self.guard == "refuse":
            raise CaseRefused(f"{result.doubt}; with --guard warn, the result is written all the same")
        if result.doubt:
            warnings.warn(result.doubt, VolumeWarning, stacklevel=2)
        warped = _write_results(output, pair.moving, moving_volume, fixed, result)
        if to_dicom:
            words = f"registered by voxelwave, method {self.settings.method}"
            write_dicom(output, warped, pair.moving, pair.fixed, result, description=words)
        if self.jacobian:
            write_volume(output / JACOBIAN, jacobian_map(result.forward), space="aligned")
        metrics = dict(result.metrics)
        if labels is not None:
            moved = resample(labels, fixed, result.forward, order="nearest")
            write_volume(output / "warped_labels.nii.gz", moved, space="aligned")
            if fixed_labels is not None:
                metrics |= overlap(resample(labels, fixed, order="nearest"), fixed_labels, "before")
                metrics |= overlap(moved, fixed_labels, "after")
        draw_registration(
            output / "picture.png",
            fixed=fixed,
            moving=moving,
            warped=result.warped,
            forward=result.forward,
            linear=AffineTransform(result.affine),
            note=str(result.choice),
            sides=not is_picture(pair.fixed) and not (is_planar(fixed) and pair.fixed.suffix.lower() == ".nrrd"),
            unit="pixels" if is_picture(pair.fixed) else "mm",
        )
        self._draw_searched(output, moving, fixed, AffineTransform(result.affine))
        return Aligned(metrics, result.seconds, to_dicom, result.choice)

    def _refuse_ct(self, scans: dict[Path, Volume]) -> None:
        """Refuse scans that look like CT, for which a network that finds tissues is not made, or warn about them."""
        for path, scan in scans.items():
            if air := share_of_air(scan.array):
                problem = (
                    f"the network of --weights is for MR, and {path.name} looks like CT, since {100 * air:.0f} % of its"
                    " values lie near -1000, like those of air; leave --weights out"
                )
                if self.guard == "refuse":
                    raise CaseRefused(f"{problem}, or use it all the same with --guard warn")
                warnings.warn(problem, VolumeWarning, stacklevel=3)

    def _draw_searched(self, output: Path, moving: Volume, fixed: Volume, affine: AffineTransform) -> None:
        """Draw where the network searched, if it chooses regions."""
        if not isinstance(self.network, TrainedNetwork):
            return
        searched = find_searched(self.network, moving, fixed, affine, grid=working_grid(fixed))
        if searched is not None:
            draw_searched(output / SEARCHED, searched)


def batch_work(
    *,
    weights: str | None,
    dicom: bool,
    cache: str | None,
    device: str,
    fix_tilt: bool = False,
    guard: Literal["refuse", "warn"] = "refuse",
    jacobian: bool = False,
    **settings: Any,
) -> Alignment:
    """Build the work of a batch from plain values; `settings` are the fields of `RegistrationSettings`."""
    network = None if weights is None else read_network(weights)
    place = None if cache is None else Path(cache)
    return Alignment(
        RegistrationSettings(**settings), network, device, place, dicom, fix_tilt, guard=guard, jacobian=jacobian
    )


def _write_results(
    output: Path, moving: Path, moving_volume: Volume, fixed_image: Volume, result: Registration
) -> Volume:
    """Write the warped scan and the transforms, and return the warped scan."""
    warped = result.warped
    if moving_volume.array.ndim == 4:
        warped = resample(moving_volume, fixed_image, result.forward)
        check_finite(warped.array, "values of the warped scan")
        write_rotated_bvecs(moving, moving_volume, output, result)
    write_volume(output / "warped.nii.gz", warped, space="aligned")
    write_transform(output / FORWARD, result.forward)
    write_transform(output / INVERSE, result.inverse)
    write_transform(output / AFFINE, AffineTransform(result.affine))
    return warped
