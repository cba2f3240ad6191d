"""Linear transforms in FreeSurfer's .lta files.

An .lta file maps the source (our moving image) to the destination (our fixed image), the reverse of our transforms: in
RAS mm (type 1), or between the voxels of the two volumes that the file describes (type 0).
"""

import os
import re
from pathlib import Path

import numpy as np

from ..runs.files import atomic_path
from .transforms import AffineTransform
from .volume import Volume

LTA_SUFFIX = ".lta"
_VOXELS, _RAS = 0, 1
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def write_lta(
    path: str | os.PathLike[str],
    transform: AffineTransform,
    *,
    moving: Volume | None = None,
    fixed: Volume | None = None,
) -> None:
    """Write a linear transform as an .lta file of type 1 (RAS to RAS).

    Args:
        path: the .lta file.
        transform: fixed world -> moving world.
        moving: the moving image, whose geometry is described as the source.
        fixed: the fixed image, whose geometry is described as the destination. FreeSurfer's programs need both
            geometries to draw or convert the transform; without them, they are marked as unknown.
    """
    matrix = transform.inverse().matrix
    lines = ["type      = 1", "nxforms   = 1", "mean      = 0.0000 0.0000 0.0000", "sigma     = 1.0000", "1 4 4"]
    lines += [" ".join(f"{value:.15e}" for value in row) for row in matrix]
    for title, volume in (("src", moving), ("dst", fixed)):
        lines += [f"{title} volume info", *_geometry(volume)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def read_lta(path: str | os.PathLike[str]) -> AffineTransform:
    """Read the linear transform of an .lta file.

    Raises:
        ValueError: the file holds no single transform of type 0 or 1, or a type 0 without the geometry of both volumes.
        OSError: the file cannot be read.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    kind, count = (re.search(rf"^{name}\s*=\s*(\d+)", text, re.M) for name in ("type", "nxforms"))
    rows = re.search(rf"^1 4 4\s*\n((?:(?:\s*{_NUMBER}){{4}}\s*\n){{4}})", text, re.M)
    if kind is None or count is None or rows is None or int(count[1]) != 1 or int(kind[1]) not in (_VOXELS, _RAS):
        raise ValueError(f"{path} must be an .lta file with one transform of type 0 or 1")
    matrix = np.array(rows[1].split(), dtype=np.float64).reshape(4, 4)
    try:
        if int(kind[1]) == _VOXELS:
            source, destination = (_voxels_to_ras(path, text, title) for title in ("src", "dst"))
            matrix = destination @ matrix @ np.linalg.inv(source)
        matrix[3] = [0, 0, 0, 1]
        return AffineTransform(matrix).inverse()
    except (ValueError, np.linalg.LinAlgError) as error:
        raise ValueError(f"{path}: {error}") from None


def _geometry(volume: Volume | None) -> list[str]:
    """The lines that describe a volume."""
    if volume is None:
        return ["valid = 0  # volume info invalid"]
    axes = volume.affine[:3, :3] / np.array(volume.spacing)
    centre = (volume.affine @ [*(n / 2 for n in volume.shape), 1])[:3]
    rows = {
        "voxelsize": volume.spacing,
        "xras  ": axes[:, 0],
        "yras  ": axes[:, 1],
        "zras  ": axes[:, 2],
        "cras  ": centre,
    }
    return [
        "valid = 1  # volume info valid",
        f"filename = {volume.source or 'unknown'}",
        f"volume = {' '.join(map(str, volume.shape))}",
        *(f"{name} = {' '.join(f'{value:.15e}' for value in values)}" for name, values in rows.items()),
    ]


def _voxels_to_ras(path: Path, text: str, title: str) -> np.ndarray:
    """The affine of a volume, from its description.

    Raises:
        ValueError: the description is missing or marked as unknown.
    """
    part = re.search(rf"^{title} volume info(.*?)(?=^(?:src|dst) volume info|\Z)", text, re.M | re.S)
    values = {}
    for name, count in (
        ("valid", 1),
        ("volume", 3),
        ("voxelsize", 3),
        ("xras", 3),
        ("yras", 3),
        ("zras", 3),
        ("cras", 3),
    ):
        found = part and re.search(
            rf"^{name}\s*=\s*((?:{_NUMBER}\s*?){{{count}}})", re.sub(r"[ \t]+", " ", part[1]), re.M
        )
        if not found:
            raise ValueError(f"a transform between voxels needs the geometry of both volumes, got none for {title}")
        values[name] = np.array(re.findall(_NUMBER, found[1])[:count], dtype=np.float64)
    if values["valid"][0] != 1:
        raise ValueError(f"a transform between voxels needs the geometry of both volumes, got none for {title}")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([values["xras"], values["yras"], values["zras"]], axis=1) * values["voxelsize"]
    affine[:3, 3] = values["cras"] - affine[:3, :3] @ (values["volume"] / 2)
    return affine
