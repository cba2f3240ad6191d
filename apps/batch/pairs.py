"""Pairs of scans from a table or a BIDS folder."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ...registration.pairs import MASK_FILES, PAIR_FILES, read_pairs
from .case import VOLUMES, Case, file_name, with_unique_names
from .find import find_files
from .names import BIDS_NAME, bids_entities, is_harmless, name_stem, relative, short_hash, shown_path


def pairs_of_table(table: Path, folder: Path | None = None, *, keep_identifiers: bool = False) -> list[Case]:
    """A case per row of a list of pairs (see `voxelwave.registration.pairs.read_pairs`); a missing file is a reason.

    Args:
        table: .csv, .tsv or .json with columns moving, fixed and optionally moving_labels, fixed_labels, moving_mask,
            fixed_mask, contrast.
        folder: the folder to which paths are relative; by default that of the list.
        keep_identifiers: name cases by the files.
    """

    root = folder or table.parent
    cases = []
    for pair in read_pairs(table, folder=folder, must_exist=False):
        files = {name: getattr(pair, name) for name in PAIR_FILES + MASK_FILES}
        stems = [name_stem(path.name) for path in (pair.moving, pair.fixed)]
        if all(keep_identifiers or is_harmless(stem) for stem in stems):
            identifier = "-to-".join(stems)
        else:
            identifier = f"pair-{short_hash(*(relative(path, root) for path in (pair.moving, pair.fixed)))}"
        cases.append(_pair_case(root, identifier, files, contrast=pair.contrast))
    return with_unique_names(cases)


def pairs_of_bids(folder: Path, moving: str, fixed: str, *, output: Path | None = None) -> list[Case]:
    """A case per session of a BIDS folder that has the two images.

    Args:
        folder: the folder that holds the folders sub-*.
        moving: the BIDS name of the moving image: a suffix such as "T1w", or with entities such as "acq-highres_T1w";
            if it contains "ses-1", the image of that session is used for every session of the subject.
        fixed: the same for the fixed image.
        output: a folder of results, which is left out if it lies in `folder`.

    Raises:
        ValueError: the folder has neither image.
    """
    images = [
        path
        for path, problem in find_files(folder, output)
        if problem is None
        and path.name.lower().endswith(VOLUMES)
        and BIDS_NAME.fullmatch(name_stem(path.name))
        and not {"derivatives", "sourcedata"} & set(path.relative_to(folder).parts)
    ]
    sessions: dict[tuple[str, str], dict[str, list[Path]]] = defaultdict(lambda: {"moving": [], "fixed": []})
    whole: dict[str, dict[str, list[Path]]] = defaultdict(lambda: {"moving": [], "fixed": []})
    fits = {"moving": bids_entities(moving), "fixed": bids_entities(fixed)}
    for path in images:
        entities = bids_entities(name_stem(path.name))
        for role, wanted in fits.items():
            if wanted.items() <= entities.items():
                across = "ses" in wanted
                place = whole[entities["sub"]] if across else sessions[entities["sub"], entities.get("ses", "")]
                place[role].append(path)
    if not sessions and not whole:
        raise ValueError(f"{folder} must hold BIDS images named {moving} and {fixed}, got neither in {len(images)}")
    for subject in whole:
        if not any(key[0] == subject for key in sessions):
            sessions[subject, ""]  # both names contain a session
    cases = []
    for (subject, session), place in sorted(sessions.items()):
        own = {role: place[role] + whole[subject][role] for role in fits}
        prefix = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        identifier = f"{prefix}_{moving}-to-{fixed}"
        problem = next(
            (
                f"{len(own[role])} images are named {name}: add an entity to the name, such as run-1_{name}"
                if own[role]
                else f"there is no image named {name}"
                for role, name in (("moving", moving), ("fixed", fixed))
                if len(own[role]) != 1
            ),
            None,
        )
        files = {role: paths[0] for role, paths in own.items() if paths}
        case = _pair_case(folder, identifier, files)
        cases.append(replace(case, reason=problem or case.reason))
    return with_unique_names(cases)


def _pair_case(root: Path, identifier: str, files: Mapping[str, Path | None], contrast: str = "image") -> Case:
    given = {role: path for role, path in files.items() if path is not None}
    kinds = [kind for kind, ends in (("labels", "_labels"), ("masks", "_mask")) if any(r.endswith(ends) for r in given)]
    absent = [path for path in given.values() if not path.exists()]
    return Case(
        identifier=file_name(identifier),
        inputs=tuple(given.values()),
        kind="pair",
        description="pair" + (f" with {' and '.join(kinds)}" if kinds else ""),
        reason=f"there is no {shown_path(absent[0], root)}" if absent else None,
        roles=tuple(given),
        label="\t" + " ".join(relative(path, root) for path in given.values()),
        contrast=contrast,
    ).with_size()
