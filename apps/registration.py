"""`voxelwave registration register` and `apply`: align two scans, and move further images the same way."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .cli import UsageError

if TYPE_CHECKING:
    from ..registration.register import Registration
    from ..volumes import Volume
    from .batch_find import Case

# torch and its friends load in the functions, so that --help answers at once

FORWARD, INVERSE, AFFINE = "forward.nii.gz", "inverse.nii.gz", "affine.mat"
LISTS = ("pairs.tsv", "pairs.csv", "pairs.json")


def register(
    moving: Path | None = None,
    fixed: Path | None = None,
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
    input: Path | None = None,
    pairs: Path | None = None,
    bids: str | None = None,
    dry_run: bool = False,
    include: str | None = None,
    threads: int | None = None,
    jobs: int | None = None,
    part: str | None = None,
    cluster: str | None = None,
    slurm: dict[str, Any] | None = None,
    keep_identifiers: bool = False,
) -> int:
    """Align MOVING to FIXED, or all pairs of a folder, and write warped scans, transforms, a record and a picture.

    A diffusion series (4-D, with .bval and .bvec beside it) is aligned by its mean b0 image; as MOVING it is moved
    volume by volume and its b-vectors are turned along. Between two DICOM images the warped scan also becomes a derived
    series (warped_dicom/) and the transform a Deformable Spatial Registration object (registration.dcm).

    With --input instead of MOVING and FIXED, every pair of a table (--pairs, or pairs.tsv in the folder) or of a BIDS
    folder (--bids) is aligned. OUTPUT then receives a folder per pair, manifest.jsonl and index.html; a pair that fails
    is recorded with its reason and the others go on (exit code 3); the same command again does what is missing or
    changed.

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
        input: a folder with many pairs.
        pairs: a table (.tsv, .csv, .json) with columns moving and fixed, paths in the folder, and where known
            moving_labels, fixed_labels, contrast.
        bids: MOVING,FIXED as BIDS names, such as T1w,FLAIR or acq-highres_T1w,dwi: one pair per session; with ses-1 in
            a name, that session's image is taken for all sessions of the subject.
        dry_run: of a folder: only show what would be done.
        include: of a folder: only pairs that these globs fit, such as "sub-01*": file name or path.
        threads: of a folder: of the CPU, per job; default all.
        jobs: of a folder: processes on this machine, or pairs under way at once on a cluster.
        part: of a folder: i/n, for the i-th of n jobs of an array.
        cluster: dask://HOST:PORT, slurm, or slurm-local to try it out.
        slurm: submitit's parameters, such as slurm_partition and mem_gb.
        keep_identifiers: of a folder: name pairs by their files, and show and record these names.
    """
    method = method or ("field" if weights is None else "nestedmorph")
    if weights is not None and method != "nestedmorph":
        raise ValueError(f"--weights belong to --method nestedmorph, got --method {method}")
    if weights is None and method == "nestedmorph":
        raise ValueError("--method nestedmorph needs a trained network: give its --weights, or use --method field")
    options = {
        "method": method,
        "similarity": similarity,
        "diffeomorphic": diffeomorphic,
        "device": device,
        "seed": seed,
    }
    if input is None and pairs is None:
        if moving is None or fixed is None:
            raise UsageError("expected MOVING and FIXED, or --input with --pairs or --bids")
        files = {"moving": moving, "fixed": fixed, "moving_labels": moving_labels, "fixed_labels": fixed_labels}
        _register_single(files, output, weights, options, dicom=dicom, cache=cache)
        return 0
    given = (moving, fixed, moving_labels, fixed_labels)
    if any(path is not None for path in given):
        raise UsageError("--input and --pairs name the scans themselves: leave out MOVING, FIXED and label maps")
    from .batch import run_batch
    from .batch_find import choose

    root = input or Path(str(pairs)).parent
    cases = _find_pairs(root, pairs, bids, keep_identifiers, whole=input is not None)
    arguments = {
        **options,
        "weights": None if weights is None else str(weights.resolve()),
        "dicom": dicom,
        "cache": None if cache is None else str(cache.resolve()),
    }
    return run_batch(
        choose(cases, include=include),
        {"factory": f"{__name__}:batch_work", "arguments": arguments},
        output,
        root=root,
        options={name: value for name, value in {**options, "dicom": dicom}.items() if name != "device"},
        weights=weights,
        jobs=jobs,
        cluster=cluster,
        slurm=slurm,
        part=part,
        dry_run=dry_run,
        threads=threads,
        keep_identifiers=keep_identifiers,
    )


def _find_pairs(
    root: Path, pairs: Path | None, bids: str | None, keep_identifiers: bool, *, whole: bool
) -> "list[Case]":
    from .batch_find import pairs_of_bids, pairs_of_table

    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    if bids is not None:
        names = [name.strip() for name in bids.split(",")]
        if len(names) != 2 or not all(names) or pairs is not None:
            raise ValueError(f"--bids takes MOVING,FIXED such as T1w,FLAIR, and no --pairs beside it, got {bids!r}")
        return pairs_of_bids(root, *names)
    table = pairs or next((root / name for name in LISTS if (root / name).is_file()), None)
    if table is None:
        raise ValueError(f"{root} holds none of {', '.join(LISTS)}: give --pairs TABLE or --bids MOVING,FIXED")
    return pairs_of_table(table, root if whole else None, keep_identifiers=keep_identifiers)


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
        from ..registration.data import Pair, load_fixed
        from ..registration.picture import draw_registration
        from ..registration.register import register as align
        from ..volumes import read_volume, resample
        from .scans import overlap, read_labels, reference_image, write_dicom, writes_dicom

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
    from ..volumes import AffineTransform, resample, write_transform, write_volume
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
    from ..volumes import resample, write_volume

    moved = resample(labels, fixed_image, result.forward, order="nearest")
    write_volume(output / "warped_labels.nii.gz", moved, space="aligned")
    return moved


def _register_single(
    files: dict[str, Path | None],
    output: Path,
    weights: Path | None,
    options: dict[str, Any],
    *,
    dicom: bool,
    cache: Path | None,
) -> None:
    """One pair, with its record and its figures on the screen."""
    from .record import write_record
    from .scans import collected_notes

    started = time.perf_counter()
    with collected_notes() as notes:
        work = batch_work(
            weights=None if weights is None else str(weights),
            dicom=dicom,
            cache=None if cache is None else str(cache),
            **options,
        )
        done = work.align(files, output, progress=lambda text: print(f"  {text}", flush=True))
    seconds = {**done["seconds"], "all": time.perf_counter() - started}
    write_record(
        output / "record.json",
        inputs={**files, "weights": weights},
        options=options,
        metrics=done["metrics"],
        seconds=seconds,
        notes=notes,
    )
    for name, value in done["metrics"].items():
        print(f"  {name:<32}{value:.4g}")
    written = [
        "warped.nii.gz",
        FORWARD,
        INVERSE,
        AFFINE,
        *(("warped_dicom/", "registration.dcm") if done["dicom"] else ()),
    ]
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
