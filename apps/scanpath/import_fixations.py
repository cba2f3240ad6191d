"""`voxelwave scanpath import`: turn fixations from the files of an eye tracker into scanpaths."""

from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...runs.files import output_lock
from ...runs.json_files import read_json, write_json
from ...runs.outcome import add_outcome
from ...runs.words import plural
from ...scanpath.eye_tracker_files import MeasuredFixation, read_eyelink, read_fixation_table, screen_of_eyelink
from ...scanpath.own_files import write_scanpaths
from ...scanpath.picture_scenes import scene_of_picture
from ...scanpath.readers import read_scanpaths
from ...scanpath.scene import Dataset, Scene
from ...scanpath.suffixes import PICTURE_SUFFIXES
from .options import Import


def import_fixations(options: Import) -> None:
    """Run the command."""
    fixations = [fixation for file in options.files for fixation in _read(options, file)]
    names = {_stem(fixation.scene) for fixation in fixations}
    scenes = _scenes(options, names)
    if missing := sorted(names - set(scenes)):
        raise ValueError(
            f"{options.scenes or options.pictures} lacks {plural(len(missing), 'picture')} that the fixations name:"
            f" {', '.join(missing[:5])}"
        )
    _note_other_sizes(options, [scenes[name] for name in sorted(names)])
    trials, outside = _trials(fixations, scenes, options.origin)
    if not trials:
        raise ValueError(
            f"all {len(fixations)} fixations lie outside of their pictures: give the --origin of the pictures"
        )
    with output_lock(options.output):
        used = {trial["scene"] for trial in trials}
        _write(options.output, {name: scene for name, scene in scenes.items() if name in used}, trials)
    people = len({trial["person"] for trial in trials})
    if outside:
        print(f"note: {outside} of {len(fixations)} fixations lie outside of their pictures and are left out")
    counts = plural(len(trials), "scanpath"), "1 person" if people == 1 else f"{people} people"
    print(f"wrote {options.output}: {counts[0]} of {counts[1]} on {plural(len(used), 'picture')}")
    add_outcome(trials=len(trials), people=people, scenes=len(used), fixations=len(fixations), outside=outside)


def _note_other_sizes(options: Import, scenes: list[Scene]) -> None:
    """Note that pictures are smaller than the screen, so that their place on it must be known."""
    if options.origin != (0, 0):
        return
    for file in options.files:
        screen = screen_of_eyelink(file) if file.suffix.lower() == ".asc" else None
        smaller = next((s for s in scenes if screen is not None and s.size != screen), None)
        if screen is not None and smaller is not None:
            middle = ",".join(f"{(a - b) / 2:g}" for a, b in zip(screen, smaller.size, strict=True))
            print(
                f"note: the screen of {file.name} has {screen[0]} x {screen[1]} pixels, and the picture"
                f" {smaller.identifier} {smaller.size[0]} x {smaller.size[1]}: if it was in the middle of the screen,"
                f" give --origin {middle}"
            )
            return


def _read(options: Import, file: Path) -> list[MeasuredFixation]:
    if file.suffix.lower() == ".asc":
        return read_eyelink(file, eye=options.eye[0])
    return read_fixation_table(file, columns=options.columns)


def _stem(name: str) -> str:
    """The name of a picture without its folder and suffix."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return last[: -len(Path(last).suffix)] if Path(last).suffix.lower() in PICTURE_SUFFIXES else last


def _scenes(options: Import, names: set[str]) -> dict[str, Scene]:
    """The scenes of these names."""
    if options.scenes is not None:
        found = read_scanpaths(options.scenes, duplicates="drop").scenes
        return {name: scene for name, scene in found.items() if name in names}
    assert options.pictures is not None  # see Import.check
    files = {file.stem: file for file in sorted(options.pictures.iterdir()) if file.suffix.lower() in PICTURE_SUFFIXES}
    rows, columns = options.grid
    return {name: scene_of_picture(files[name], rows=rows, columns=columns) for name in sorted(names & set(files))}


def _trials(
    fixations: list[MeasuredFixation], scenes: dict[str, Scene], origin: tuple[float, float]
) -> tuple[list[dict[str, Any]], int]:
    """The trials as records of our JSON, and the number of fixations outside of their pictures."""
    groups: dict[tuple[str, str, int], list[MeasuredFixation]] = defaultdict(list)
    counts: Counter[bool] = Counter()
    for fixation in fixations:
        name = _stem(fixation.scene)
        width, height = scenes[name].size
        inside = 0 <= fixation.x - origin[0] <= width and 0 <= fixation.y - origin[1] <= height
        counts[inside] += 1
        if inside:
            groups[name, fixation.person, fixation.trial].append(fixation)
    trials = []
    for (name, person, _), path in groups.items():
        record: dict[str, Any] = {"scene": name, "person": person}
        record["x"] = [round(f.x - origin[0], 3) for f in path]
        record["y"] = [round(f.y - origin[1], 3) for f in path]
        for key in ("onset", "duration"):
            values = [getattr(f, key) for f in path]
            if all(value is not None for value in values):
                record[key] = values
        trials.append(record)
    return trials, counts[False]


def _write(path: Path, scenes: dict[str, Scene], trials: list[dict[str, Any]]) -> None:
    """Write scenes and trials; the fixations are assigned to objects by the reader of our own files."""
    with TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        write_scanpaths(Dataset(scenes), draft)
        content = read_json(draft)
        write_json(draft, content | {"trials": trials})
        dataset = read_scanpaths(draft, duplicates="drop")
    for note in dataset.notes:
        print(f"note: {note}")
    write_scanpaths(dataset, path)
