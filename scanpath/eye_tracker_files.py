"""Fixations from the files of eye trackers: EyeLink's text files (.asc), and tables of fixations with any names.

Positions are in pixels of the screen from its upper left corner, times in milliseconds; the results are in seconds from
the first sample of the trial, as in our own tables.
"""

import csv
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# our column -> names in tables of eye trackers, in lower case without blanks and underscores
_NAMES: Mapping[str, tuple[str, ...]] = {
    "scene": ("scene", "image", "stimulus", "stimulusname", "picture", "trialid", "presentedstimulusname"),
    "person": ("person", "subject", "participant", "participantname", "recordingsessionlabel", "observer"),
    "trial": ("trial", "trialindex", "trialnumber"),
    "x": ("x", "fixx", "currentfixx", "fixationpointx", "posx", "meanx", "avgx", "fixationpositionx[px]"),
    "y": ("y", "fixy", "currentfixy", "fixationpointy", "posy", "meany", "avgy", "fixationpositiony[px]"),
    "onset": ("onset", "start", "starttime", "currentfixstart", "fixationstart", "t", "time", "eventstart"),
    "duration": ("duration", "dur", "currentfixduration", "fixationduration", "gazeeventduration", "durationms"),
}
_EFIX = re.compile(r"^EFIX\s+([LR])\s+(\d+\.?\d*)\s+(\d+\.?\d*)\s+(\d+\.?\d*)\s+(\S+)\s+(\S+)")

_CORNERS = r"[\s,]+".join([r"(-?\d+\.?\d*)"] * 4)  # left, top, right, bottom
_SCREEN = re.compile(rf"^(?:MSG\s+\d+\s+)?(?:\S+\s+)?(?:DISPLAY|GAZE)_COORDS[\s=]+{_CORNERS}")


@dataclass(frozen=True)
class MeasuredFixation:
    """One fixation as measured.

    Args:
        scene: name of the picture.
        person: name of the person.
        trial: number of the trial, from 1.
        x: pixels from the left.
        y: pixels from the top.
        onset: seconds from the start of the trial; None if unknown.
        duration: seconds; None if unknown.
    """

    scene: str
    person: str
    trial: int
    x: float
    y: float
    onset: float | None
    duration: float | None


def read_eyelink(path: str | os.PathLike[str], *, person: str = "", eye: str = "") -> list[MeasuredFixation]:
    """Read the fixations of an EyeLink .asc file (the output of edf2asc, with events).

    A trial begins at a message TRIALID or at START. Its picture is the last word of a message that is the file of a
    picture (as in `!V IMGLOAD FILL pictures/a.png`), or the words after TRIALID.

    Args:
        path: the file.
        person: name of the person; by default the name of the file.
        eye: "L" or "R", if both eyes were recorded; by default the right one. If only one was, it is taken.

    Raises:
        ValueError: the file holds no fixation.
    """
    path = Path(path)
    lines = _lines(path)
    eyes = {found[1] for line in lines if (found := _EFIX.match(line))}
    chosen = next(iter(eyes)) if len(eyes) == 1 else eye.upper() or "R"
    found_all: list[MeasuredFixation] = []
    trial, scene, start = 0, "", 0.0
    named_here = False
    for line in lines:
        words = line.split()
        if line.startswith("MSG") and len(words) > 2:
            if words[2] == "TRIALID":
                trial, scene, named_here = trial + 1, " ".join(words[3:]), True
            elif picture := next(
                (w for w in reversed(words[2:]) if re.search(r"\.(png|jpe?g|bmp|tiff?)$", w, re.I)), None
            ):
                scene = re.split(r"[\\/]", picture)[-1].rsplit(".", 1)[0]
        elif words[:1] == ["START"] and len(words) > 1:
            start = float(words[1])
            trial = trial if named_here else trial + 1
            named_here = False
        elif (fixation := _EFIX.match(line)) and fixation[1] == chosen:
            onset, duration = float(fixation[2]), float(fixation[4])
            try:
                x, y = float(fixation[5]), float(fixation[6])
            except ValueError:  # "." for a lost position
                continue
            seconds = (onset - start) / 1000, duration / 1000
            found_all.append(
                MeasuredFixation(scene or f"trial {trial}", person or path.stem, max(trial, 1), x, y, *seconds)
            )
    if not found_all:
        raise ValueError(f"{path} holds no fixation (lines EFIX): convert the .edf file with events")
    return found_all


def screen_of_eyelink(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Width and height of the screen in pixels, by the message DISPLAY_COORDS of an .asc file; None without it."""
    for line in _lines(Path(path)):
        if found := _SCREEN.match(line):
            left, top, right, bottom = (float(corner) for corner in found.groups())
            return round(right - left) + 1, round(bottom - top) + 1
    return None


def _lines(path: Path) -> list[str]:
    """The lines of an .asc file, whose messages may be in UTF-8 or Latin-1."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return path.read_text(encoding="latin-1").splitlines()


def read_fixation_table(
    path: str | os.PathLike[str], *, columns: Mapping[str, str] | None = None, person: str = ""
) -> list[MeasuredFixation]:
    """Read a table of fixations, one per line, separated by tabs, commas or semicolons, times in milliseconds.

    Args:
        path: the file, with a header.
        columns: our name ("scene", "person", "trial", "x", "y", "onset", "duration") -> the column in the file. Others
            are recognised by the usual names of eye trackers' exports.
        person: name of the person, for a table without such a column; by default the name of the file.

    Raises:
        ValueError: x, y or the scene is missing, or a value is no number.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be a table in UTF-8") from None
    header = text.splitlines()[0] if text.strip() else ""
    delimiter = max("\t,;", key=header.count)
    rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    given = dict(columns or {})
    if unknown := sorted(set(given) - set(_NAMES)):
        raise ValueError(f"columns must name {', '.join(_NAMES)}, got {', '.join(unknown)}")
    names = list(rows[0]) if rows else header.split(delimiter)
    place = {ours: given.get(ours) or _recognised(ours, names) for ours in _NAMES}
    missing = [ours for ours in ("scene", "x", "y") if place[ours] not in names]
    if missing or not rows:
        raise ValueError(
            f"{path} must have columns for {', '.join(missing) or 'fixations'}, got {', '.join(names) or 'nothing'};"
            " name them with --columns, such as {x: FIX_X}"
        )
    found, numbers = [], dict[tuple[str, str, str], int]()
    for number, row in enumerate(rows, 2):

        def cell(ours: str, row: dict[str, str] = row) -> str:
            return (row.get(place[ours] or "") or "").strip()

        try:
            x, y, onset, duration = (_number(cell(ours)) for ours in ("x", "y", "onset", "duration"))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if x is None or y is None:
            continue
        who = cell("person") or person or path.stem
        trial = numbers.setdefault((who, cell("scene"), cell("trial")), len(numbers) + 1)
        seconds = [None if t is None else t / 1000 for t in (onset, duration)]
        found.append(MeasuredFixation(cell("scene"), who, trial, x, y, seconds[0], seconds[1]))
    if not found:
        raise ValueError(f"{path} holds no fixation with a position")
    return found


def _recognised(ours: str, names: list[str]) -> str | None:
    plain = {re.sub(r"[\s_]", "", name.lower()): name for name in reversed(names)}
    return next((plain[known] for known in _NAMES[ours] if known in plain), None)


def _number(text: str) -> float | None:
    """A number, also with a decimal comma; None for an empty cell or a lost sample."""
    if text in ("", ".", "NA", "NaN", "nan"):
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise ValueError(f"expected a number, got {text!r}") from None
