"""Trained weights that are found by name: in the package, in the folders of $VOXELWAVE_WEIGHTS, and in other packages.

A set of weights is NAME.safetensors, NAME.catalogue.json (its entry in the catalogue) and NAME.md (its model card).
Another distribution provides weights through an entry point in the group `voxelwave.weights`, whose value is the name
of a package that holds the files.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import safetensors

from .json_files import parse_json, read_json

VARIABLE = "VOXELWAVE_WEIGHTS"
_GROUP = "voxelwave.weights"
_ENTRY = ".catalogue.json"
_TEXTS = ("field", "task", "sha256", "data", "licence", "figures", "not_for")
_LISTS = {"not_for_modalities": "CT", "for_modalities": "MR", "for_contrasts": "T1w"}  # with an example
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Entry:
    """The entry of one weight file in the catalogue.

    Args:
        name: the name for `--weights`.
        field: "registration", "restoration", "eeg" or "scanpath".
        task: the task of the weights, in one line.
        sha256: hash of the .safetensors file.
        data: the training data.
        licence: the licence of the weights.
        figures: the measured performance, in one line.
        not_for: uses that are ruled out, in one line.
        file: the .safetensors file.
        not_for_modalities: the modalities that are ruled out, by DICOM's names, such as CT.
        for_modalities: the modalities for which the weights were made.
        for_contrasts: the contrasts of MR, by BIDS suffixes such as T1w, that the weights are for; empty for any.
        pixel_mm: the smallest and the largest pixel size, in mm, of the images that the weights are for; None for any.
        magnitudes: whether the weights are for magnitudes only, which have no negative values.
        removes_rician_bias: whether results for MR magnitudes are signals, without the bias of Rician noise.
        strongest_noise: the strongest noise that the weights remove well, as a fraction of the range; None if unknown.
    """

    name: str
    field: str
    task: str
    sha256: str
    data: str
    licence: str
    figures: str
    not_for: str
    file: Path
    not_for_modalities: tuple[str, ...] = ()
    for_modalities: tuple[str, ...] = ()
    for_contrasts: tuple[str, ...] = ()
    pixel_mm: tuple[float, float] | None = None
    magnitudes: bool = False
    removes_rician_bias: bool = False
    strongest_noise: float | None = None

    @property
    def card(self) -> Path:
        """The model card."""
        return self.file.with_suffix(".md")

    @property
    def size(self) -> int:
        """Bytes of the .safetensors file."""
        return self.file.stat().st_size

    @property
    def sizes(self) -> list[str]:
        """The sizes for `--size`, such as small, medium and full, if the file contains several networks.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with safetensors.safe_open(self.file, framework="np") as content:
                metadata = content.metadata() or {}
        except safetensors.SafetensorError as error:
            raise ValueError(f"{self.file} is not a readable safetensors file: {error}") from None
        smaller = parse_json(metadata.get("sizes", "{}"), f"the sizes in {self.file.name}")
        if not isinstance(smaller, dict):
            raise ValueError(f"the sizes in {self.file.name} must be a mapping, got {smaller!r}")
        return [*smaller, "full"] if smaller else []


def list_weights(field: str | None = None) -> list[Entry]:
    """All weights that can be found by name, sorted by name; the first of two with the same name is used.

    Args:
        field: list only the weights of this field.

    Raises:
        ValueError: an entry is damaged.

    Example:
        >>> "denoise-grey" in [entry.name for entry in list_weights("restoration")]
        True
    """
    found: dict[str, Entry] = {}
    for folder in _folders():
        for path in sorted(folder.glob(f"*{_ENTRY}")):
            if _weights_of(path).is_file():
                entry = _read(path)
                found.setdefault(entry.name, entry)
    return sorted((e for e in found.values() if field in (None, e.field)), key=lambda e: e.name)


def find_weights(weights: str | os.PathLike[str], field: str) -> Path:
    """The file of weights by name, or the path itself if it has a suffix.

    Args:
        weights: a name of `list_weights(field)`, or a path.
        field: the field of the weights.

    Raises:
        FileNotFoundError: there is no such file or name.
        ValueError: the hash of the file differs from that in the catalogue.
    """
    path = Path(weights)
    if path.suffix or path.is_dir():
        return path
    entries = list_weights(field)
    entry = next((entry for entry in entries if entry.name == str(weights)), None)
    if entry is None:
        names = ", ".join(entry.name for entry in entries) or "none is installed"
        raise FileNotFoundError(f"weights must be a file or a name ({names}), got {weights}")
    check_hash(entry)
    return entry.file


def entry_of(file: Path) -> Entry | None:
    """The entry beside a weight file; None if it has none.

    Raises:
        ValueError: the entry is damaged.
    """
    path = file.with_name(file.stem + _ENTRY)
    return _read(path) if path.is_file() else None


def check_hash(entry: Entry) -> None:
    """Refuse a file whose hash differs from that in the catalogue.

    Raises:
        ValueError: the hashes differ; the message gives both.
    """
    digest = hashlib.sha256(entry.file.read_bytes()).hexdigest()
    if digest != entry.sha256:
        raise ValueError(
            f"{entry.file} is damaged or was replaced: its SHA-256 is {digest[:12]}..., not {entry.sha256[:12]}...;"
            " install it again"
        )


def _folders() -> Iterator[Path]:
    """The folders to search: the package's, the user's, and those of other distributions."""
    yield from sorted(_PACKAGE.glob("*/shipped"))
    yield from (Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder)
    for point in entry_points(group=_GROUP):
        spec = importlib.util.find_spec(point.value.partition(":")[0])
        yield from map(Path, (spec and spec.submodule_search_locations) or ())


def _read(path: Path) -> Entry:
    try:
        content = read_json(path)
        texts = {name: str(content[name]) for name in _TEXTS}
        lists = {name: content.get(name, []) for name in _LISTS}
        for name, listed in lists.items():
            if not isinstance(listed, list):
                raise ValueError(f'{name} must be a list such as ["{_LISTS[name]}"], got {listed!r}')
        sizes = content.get("pixel_mm")
        if sizes is not None and (not isinstance(sizes, list) or len(sizes) != 2):
            raise ValueError(f"pixel_mm must be the smallest and the largest pixel size, got {sizes!r}")
        limits = None if sizes is None else (float(sizes[0]), float(sizes[1]))
        strongest = None if content.get("strongest_noise") is None else float(content["strongest_noise"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an entry of the catalogue of weights: {error}") from None
    file = _weights_of(path)
    return Entry(
        name=file.stem,
        file=file,
        pixel_mm=limits,
        magnitudes=bool(content.get("magnitudes", False)),
        removes_rician_bias=bool(content.get("removes_rician_bias", False)),
        strongest_noise=strongest,
        not_for_modalities=tuple(map(str, lists["not_for_modalities"])),
        for_modalities=tuple(map(str, lists["for_modalities"])),
        for_contrasts=tuple(map(str, lists["for_contrasts"])),
        **texts,
    )


def _weights_of(entry: Path) -> Path:
    return entry.with_name(entry.name.removesuffix(_ENTRY) + ".safetensors")
