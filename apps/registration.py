"""`voxelwave registration register` and `apply`: align two scans, and move further images the same way."""

import time
from pathlib import Path
from typing import Literal

# torch and its friends load in the functions, so that --help answers at once

FORWARD, INVERSE, AFFINE = "forward.nii.gz", "inverse.nii.gz", "affine.mat"


def register(
    moving: Path,
    fixed: Path,
    *,
    output: Path,
    weights: Path | None = None,
    method: Literal["nestedmorph", "field", "syn"] | None = None,
    similarity: Literal["auto", "ncc", "mi", "mind"] = "auto",
    diffeomorphic: bool = False,
    moving_labels: Path | None = None,
    fixed_labels: Path | None = None,
    dicom: bool = False,
    cache: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
) -> None:
    """Align MOVING to FIXED and write the warped scan, the transforms, a record and a picture.

    A diffusion series (4-D, with .bval and .bvec beside it) is aligned by its mean b0 image; as MOVING it is moved
    volume by volume and its b-vectors are turned along. Between two DICOM images the warped scan also becomes a derived
    series (warped_dicom/) and the transform a Deformable Spatial Registration object (registration.dcm).

    Args:
        moving: the scan to move: NIfTI, .mgz, or a folder with one DICOM series.
        fixed: the scan that stays, any of the same kinds.
        output: the folder to write into: warped.nii.gz, forward.nii.gz and inverse.nii.gz (ITK displacement fields),
            affine.mat, record.json, picture.png.
        weights: a trained NestedMorph (.safetensors, .ckpt, .pth); its displacement starts the refinement.
        method: field (no network), nestedmorph (needs weights) or syn (ANTs). Default: nestedmorph with weights,
            field without.
        similarity: what makes two images alike: local correlation, mutual information, MIND, or chosen by contrast.
        diffeomorphic: only compose small smooth steps, between contrasts too; the map then never folds.
        moving_labels: a label map on the grid of MOVING, to be moved too (nearest neighbour).
        fixed_labels: a label map on the grid of FIXED, to measure the overlap (Dice, HD95) before and after.
        dicom: write DICOM results where only MOVING is DICOM too.
        cache: a folder where affine alignments are kept and found again.
        device: where the refinement runs; auto takes a GPU if there is one.
        seed: of the affine's sampling.
    """
    from ..registration.picture import draw_registration
    from ..registration.register import register as align
    from ..volumes import AffineTransform, read_volume, resample, write_transform, write_volume
    from .record import write_record
    from .scans import (
        collected_notes,
        network_options,
        overlap,
        read_labels,
        reference_image,
        write_dicom,
        write_rotated_bvecs,
        writes_dicom,
    )

    started = time.perf_counter()
    method = method or ("field" if weights is None else "nestedmorph")
    if weights is not None and method != "nestedmorph":
        raise ValueError(f"--weights belong to --method nestedmorph, got --method {method}")
    if weights is None and method == "nestedmorph":
        raise ValueError("--method nestedmorph needs a trained network: give its --weights, or use --method field")
    to_dicom = writes_dicom(moving, fixed, output, always=dicom)
    with collected_notes() as notes:
        moving_volume, fixed_volume = read_volume(moving), read_volume(fixed)
        moving_image, fixed_image = reference_image(moving_volume, moving), reference_image(fixed_volume, fixed)
        labels = read_labels(moving_labels), read_labels(fixed_labels)
        trained = network_options(weights)
        result = align(
            moving_image,
            fixed_image,
            method=method,
            **trained,
            similarity=similarity,
            diffeomorphic=diffeomorphic,
            device=device,
            seed=seed,
            cache_dir=cache,
            progress=lambda text: print(f"  {text}", flush=True),
        )
        warped = result.warped
        if moving_volume.array.ndim == 4:
            warped = resample(moving_volume, fixed_image, result.forward)
            write_rotated_bvecs(moving, moving_volume, output, result)
        write_volume(output / "warped.nii.gz", warped, space="aligned")
        write_transform(output / FORWARD, result.forward)
        write_transform(output / INVERSE, result.inverse)
        write_transform(output / AFFINE, AffineTransform(result.affine))
        if to_dicom:
            write_dicom(output, warped, moving, fixed, result, description=f"registered by voxelwave, method {method}")
        metrics = dict(result.metrics)
        if labels[0] is not None:
            moved = resample(labels[0], fixed_image, result.forward, order="nearest")
            write_volume(output / "warped_labels.nii.gz", moved, space="aligned")
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
    seconds = {**result.seconds, "all": time.perf_counter() - started}
    write_record(
        output / "record.json",
        inputs={
            "moving": moving,
            "fixed": fixed,
            "weights": weights,
            "moving_labels": moving_labels,
            "fixed_labels": fixed_labels,
        },
        options={
            "method": method,
            "similarity": similarity,
            "diffeomorphic": diffeomorphic,
            "device": device,
            "seed": seed,
        },
        metrics=metrics,
        seconds=seconds,
        notes=notes,
    )
    for name, value in metrics.items():
        print(f"  {name:<32}{value:.4g}")
    written = ["warped.nii.gz", FORWARD, INVERSE, AFFINE, *(("warped_dicom/", "registration.dcm") if to_dicom else ())]
    print(f"wrote {output}/ in {seconds['all']:.0f} s: {', '.join(written)}, picture.png")


def apply(
    transform: Path,
    image: Path,
    *,
    like: Path,
    output: Path,
    inverse: bool = False,
    labels: bool = False,
) -> None:
    """Move IMAGE by a TRANSFORM onto the grid of another image, with one interpolation.

    Args:
        transform: a folder that `register` wrote, or an ITK transform file (.nii.gz field, .h5, .mat, .txt).
        image: what to move; 3-D, or 4-D volume by volume.
        like: gives the grid of the result: the fixed image, or with --inverse the moving one.
        output: the .nii.gz, .nii or .mgz to write.
        inverse: go from moving to fixed space's other direction; a single file is inverted numerically.
        labels: the image is a label map: nearest neighbour, integers stay integers.
    """
    from ..volumes import invert, read_transform, read_volume, resample, write_volume

    grid = read_volume(like)
    source = read_volume(image)
    if transform.is_dir():
        chosen = read_transform(transform / (INVERSE if inverse else FORWARD))
    else:
        chosen = read_transform(transform)
        if inverse:
            chosen = invert(chosen, grid)
    moved = resample(source, grid, chosen, order="nearest" if labels else "linear")
    write_volume(output, moved, space="aligned")
    print(f"wrote {output}: {' x '.join(map(str, moved.array.shape))}, {moved.array.dtype}")
