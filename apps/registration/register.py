"""`voxelwave registration register` and `apply`: align two scans, and move further images the same way."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...runs.exit import UsageError

if TYPE_CHECKING:
    from ..batch.case import Case
from .work import AFFINE, FORWARD, INVERSE, batch_work

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
    from ..batch.find import choose
    from ..batch.run import run_batch

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
        {"factory": "align", "arguments": arguments},
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
    from ..batch.pairs import pairs_of_bids, pairs_of_table

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
    from ...runs.record import write_record
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
