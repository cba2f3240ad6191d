"""Images and transforms of a run over a BIDS data set as a BIDS derivative, OUTPUT/bids."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...runs.archives import original_of
from ...runs.files import atomic_path
from ...runs.json_files import write_json
from ...runs.version import __version__
from ...runs.words import plural
from .case import VOLUMES, Case
from .manifest import finished_case, read_manifest
from .names import BIDS_NAME, bids_entities, is_harmless, name_stem

FOLDER = "bids"
_DESCRIPTION = "dataset_description.json"
_SIDES = (".bval", ".bvec")
# BIDS 1.10 has no names for transforms, and none for gradients of a derived image, which it asks for all the same
_BIDSIGNORE = "*_xfm.*\n*_dwi.bval\n*_dwi.bvec\n"


class Derivatives(NamedTuple):
    """What was written.

    Args:
        folder: the derivative.
        cases: number of cases with files in it.
        left_out: number of finished cases without, since a name is not BIDS or reveals a person, or is taken.
    """

    folder: Path
    cases: int
    left_out: int


def write_derivatives(
    cases: Sequence[Case], root: Path, output: Path, *, keep_identifiers: bool = False
) -> Derivatives | None:
    """Write images and transforms of the finished cases under BIDS names, with a .json beside each.

    They are links to the files of the cases where the disk allows it, otherwise copies. Files of a case that failed
    are removed. No file is written outside OUTPUT/bids, and none replaces that of another case.

    Args:
        cases: pairs of scans, or single images.
        root: the BIDS data set.
        output: the folder of results.
        keep_identifiers: also write cases whose folders may reveal a person.

    Returns:
        What was written; None if `root` is no BIDS data set, if no case has a BIDS name, or if a case has the name of
        the folder.
    """
    folder = output / FOLDER
    if not (root / _DESCRIPTION).is_file() or any(case.identifier == FOLDER for case in cases):
        return None
    entries = read_manifest(output)
    taken: set[Path] = set()
    written = left_out = 0
    for case in cases:
        done = entries.get(case.identifier, {}).get("status") == "done" and finished_case(output, case.identifier)
        files = list(_files(case, output / case.identifier, root, keep_identifiers=keep_identifiers))
        targets = {folder / name for _, name, _ in files}
        if taken & targets:
            files = []
        elif not done:
            for target in targets:
                for stale in (target, _sidecar(target)):
                    stale.unlink(missing_ok=True)
        taken |= targets
        if not done:
            continue
        for result, name, facts in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _publish(result, target, link=result.is_relative_to(output))
            if facts:
                write_json(_sidecar(target), facts, indent=2)
        written += bool(files)
        left_out += not files
    if not written:
        return None
    raw = os.path.relpath(original_of(root).resolve(), folder.resolve())
    description = {
        "Name": "Results of voxelwave",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "voxelwave", "Version": __version__, "Description": "see ../manifest.jsonl"}],
        "SourceDatasets": [{"URL": raw}],
        "DatasetLinks": {"raw": raw},
    }
    write_json(folder / _DESCRIPTION, description, indent=2)
    texts = {
        ".bidsignore": _BIDSIGNORE,
        "README.md": (
            "Derivatives that voxelwave wrote. The folder above holds the same images by case, with a page"
            " (`index.html`) and a line for each case (`manifest.jsonl`): options, hashes, versions and metrics. Files"
            " here may be links to those of the cases: copy a file before you change it.\n"
        ),
    }
    for title, text in texts.items():
        with atomic_path(folder / title) as temporary:
            temporary.write_text(text)
    return Derivatives(folder, written, left_out)


def print_derivatives(found: Derivatives | None) -> None:
    """Say what was written."""
    if found is not None:
        rest = f"; {found.left_out} without a usable BIDS name" if found.left_out else ""
        print(f"images and transforms of {plural(found.cases, 'case')} under BIDS names: {found.folder}/{rest}")


_Derived = tuple[Path, Path, dict[str, object]]


def _files(case: Case, results: Path, root: Path, *, keep_identifiers: bool) -> Iterator[_Derived]:
    """File of the case, path in the derivative, and the content of the .json beside it."""
    inputs = dict(zip(case.roles or ("input",), case.inputs, strict=False))
    moving = inputs.get("moving", case.inputs[0])
    for path in (moving, inputs.get("fixed", moving)):
        if not BIDS_NAME.fullmatch(name_stem(path.name)) or not path.is_relative_to(root):
            return
        folders = path.relative_to(root).parts[:-1]
        if ".." in folders or not (keep_identifiers or all(is_harmless(part) for part in folders)):
            return
    stem, _, suffix = name_stem(moving.name).rpartition("_")
    stem = re.sub("_(desc|space)-[A-Za-z0-9]+", "", stem)
    place = moving.relative_to(root).parent
    if "fixed" not in inputs:
        for result in sorted(results.iterdir()) if results.is_dir() else ():
            if result.name.lower().endswith(VOLUMES):
                ending = result.name[len(name_stem(result.name)) :]
                facts: dict[str, object] = {
                    "Description": "Restored by voxelwave",
                    "Sources": [_uri(moving, root)],
                    "SkullStripped": False,
                }
                yield result, place / f"{stem}_desc-restored_{suffix}{ending}", facts
                yield from _gradients(moving, place / f"{stem}_desc-restored_{suffix}")
        return
    fixed = inputs["fixed"]
    names = _space(moving, fixed), _space(fixed, moving)
    name = f"{stem}_space-{names[1]}_desc-registered_{suffix}"
    sources = [_uri(moving, root), _uri(fixed, root)]
    facts = {
        "Description": f"Registered to {fixed.name} by voxelwave",
        "Sources": sources,
        "SpatialReference": _uri(fixed, root),
        "SkullStripped": False,
    }
    yield results / "warped.nii.gz", place / f"{name}.nii.gz", facts
    yield from _gradients(results / "warped.nii.gz", place / name)
    entities = bids_entities(name_stem(fixed.name))
    who = "_".join(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities)
    for file, ends in (("forward.nii.gz", names), ("inverse.nii.gz", names[::-1])):
        xfm = f"{who}_from-{ends[0]}_to-{ends[1]}_mode-image_xfm.nii.gz"
        yield (
            results / file,
            fixed.relative_to(root).parent / xfm,
            {"Sources": sources, "Type": "ITK displacement field"},
        )


def _gradients(image: Path, base: Path) -> Iterator[_Derived]:
    """The b-values and b-vectors beside a diffusion series."""
    for ending in _SIDES:
        file = image.with_name(f"{name_stem(image.name)}{ending}")
        if file.is_file():
            yield file, base.with_name(f"{base.name}{ending}"), {}


def _space(image: Path, other: Path) -> str:
    """The label of the space of an image, such as T1w, with the entities in which it differs from the other image."""
    mine, theirs = (bids_entities(name_stem(path.name)) for path in (image, other))
    different = [f"{key}{value}" for key, value in mine.items() if key != "suffix" and theirs.get(key) != value]
    return re.sub(r"[^A-Za-z0-9]", "", "".join([*different, mine["suffix"]]))


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{name_stem(path.name)}.json")


def _uri(path: Path, root: Path) -> str:
    return f"bids:raw:{path.relative_to(root).as_posix()}"


def _publish(source: Path, target: Path, *, link: bool) -> None:
    """A link, or a copy where links are impossible or `source` is a file of the user."""
    with atomic_path(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            (os.link if link else shutil.copyfile)(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
