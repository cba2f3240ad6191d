"""The results of a run over a BIDS data set as a BIDS derivative: OUTPUT/bids, whose files are those of the cases."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...runs.files import atomic_path
from ...runs.json_files import write_json
from ...runs.version import __version__
from .case import NIFTI, Case
from .manifest import finished_case
from .names import BIDS_NAME, bids_entities, name_stem

FOLDER = "bids"
_DESCRIPTION = "dataset_description.json"
_SIDES = (".bval", ".bvec")


def write_derivatives(cases: Sequence[Case], root: Path, output: Path) -> Path | None:
    """Write the finished cases under BIDS names, with a .json beside each image.

    Images are links to the files of the cases where the disk allows it, otherwise copies.

    Args:
        cases: pairs of scans, or single images; those without a BIDS name are left out.
        root: the BIDS data set.
        output: the folder of results.

    Returns:
        The folder; None if `root` is no BIDS data set, or no case is finished.
    """
    folder = output / FOLDER
    if not (root / _DESCRIPTION).is_file():
        return None
    written = 0
    for case in cases:
        if finished_case(output, case.identifier) is None:
            continue
        for result, name, facts in _files(case, output / case.identifier, root):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(result, target)
            if facts:
                write_json(target.with_name(f"{name_stem(target.name)}.json"), facts, indent=2)
            written += 1
    if not written:
        return None
    description = {
        "Name": "Results of voxelwave",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "voxelwave", "Version": __version__, "Description": "see ../manifest.jsonl"}],
        "SourceDatasets": [{"URL": os.path.relpath(root.resolve(), folder.resolve())}],
        "DatasetLinks": {"raw": os.path.relpath(root.resolve(), folder.resolve())},
    }
    write_json(folder / _DESCRIPTION, description, indent=2)
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(
            "Derivatives that voxelwave wrote. The folder above holds the same files by case, with a page"
            " (`index.html`) and a line for each case (`manifest.jsonl`): options, hashes, versions and metrics.\n"
        )
    return folder


_Derived = tuple[Path, Path, dict[str, object]]


def _files(case: Case, results: Path, root: Path) -> Iterator[_Derived]:
    """File of the case, path in the derivative, and the content of the .json beside it."""
    inputs = dict(zip(case.roles or ("input",), case.inputs, strict=False))
    moving = inputs.get("moving", case.inputs[0])
    for path in (moving, inputs.get("fixed", moving)):
        if not BIDS_NAME.fullmatch(name_stem(path.name)) or not path.is_relative_to(root):
            return
    stem, _, suffix = name_stem(moving.name).rpartition("_")
    place = moving.relative_to(root).parent
    if "fixed" not in inputs:
        for result in sorted(results.iterdir()):
            if result.name.lower().endswith(NIFTI):
                ending = result.name[len(name_stem(result.name)) :]
                facts: dict[str, object] = {"Sources": [_uri(moving, root)], "SkullStripped": False}
                yield result, place / f"{stem}_desc-restored_{suffix}{ending}", facts
        return
    fixed = inputs["fixed"]
    names = _space(moving, fixed), _space(fixed, moving)
    name = f"{stem}_space-{names[1]}_desc-registered_{suffix}"
    sources = [_uri(moving, root), _uri(fixed, root)]
    facts = {"Sources": sources, "SpatialReference": _uri(fixed, root), "SkullStripped": False}
    yield results / "warped.nii.gz", place / f"{name}.nii.gz", facts
    for side in _SIDES:
        if (results / f"warped{side}").is_file():
            yield results / f"warped{side}", place / f"{name}{side}", {}
    entities = bids_entities(name_stem(fixed.name))
    who = "_".join(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities)
    for file, ends in (("forward.nii.gz", names), ("inverse.nii.gz", names[::-1])):
        xfm = f"{who}_from-{ends[0]}_to-{ends[1]}_mode-image_xfm.nii.gz"
        yield (
            results / file,
            fixed.relative_to(root).parent / xfm,
            {"Sources": sources, "Type": "ITK displacement field"},
        )


def _space(image: Path, other: Path) -> str:
    """The label of the space of an image, such as T1w; with its session and acquisition if both have one suffix."""
    mine, theirs = (bids_entities(name_stem(path.name)) for path in (image, other))
    parts = (
        ["suffix"]
        if mine["suffix"] != theirs["suffix"]
        else [*(k for k in mine if k not in ("sub", "suffix")), "suffix"]
    )
    return re.sub(
        r"[^A-Za-z0-9]", "", "".join(mine[part] if part == "suffix" else f"{part}{mine[part]}" for part in parts)
    )


def _uri(path: Path, root: Path) -> str:
    return f"bids:raw:{path.relative_to(root).as_posix()}"


def _link(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
