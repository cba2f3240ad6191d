"""Preview of a case for the page of a batch: a small picture, and a script that holds the images at reduced size.

Both are in a hidden folder, so that patterns such as *.png match only results. A page that is opened from a disk may
load scripts but cannot read files, so the images are stored as scripts. Their size is limited: a volume has at most
2^20 voxels of 256 grey levels (1.4 MB of text before compression), a picture at most 1,024 pixels per side. They
contain only intensities, positions and roles, but no headers and no file names.
"""

import base64
import gzip
import io
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from ...restoration.images import read_image
from ...volumes import Volume, read_volume
from ...volumes.nifti import is_nifti_name
from .case import Case
from .preview_files import DRAWING, LONGEST_SIDE, MOST_VOXELS, PICTURE, PREVIEWS, SCRIPT

_LEVELS = 254  # grey levels 1 to 255; the viewer draws 0 as transparent
_HEIGHT = 112  # height of the small picture, in pixels
_BITMAPS = (".png", ".tif", ".tiff", ".bmp", ".pgm", ".ppm")


def write_preview(case: "Case", folder: Path) -> list[str]:
    """Write images.js and small.png (small.svg for a recording) of a finished case to .preview in its folder.

    Args:
        case: the case, in which a DICOM series is one folder.
        folder: the folder of its results.

    Returns:
        A warning with the reason if there is no preview.
    """
    try:
        if case.kind == "eeg":
            content, small = _recording(folder)
        elif case.kind == "image":
            content, small = _pictures(case.inputs[0], folder)
        else:
            content, small = _volumes(_volume_paths(case, folder))
    except (ValueError, KeyError) as error:
        return [f"no preview: {' '.join(str(error).split())}"]
    (folder / PREVIEWS).mkdir(exist_ok=True)
    (folder / (DRAWING if case.kind == "eeg" else PICTURE)).write_bytes(small)
    script = f"voxelwavePreview({json.dumps(case.identifier)}, {json.dumps(content)});\n"
    (folder / SCRIPT).write_text(script, encoding="utf-8")
    return []


def _volume_paths(case: "Case", folder: Path) -> list[tuple[str, str, Path]]:
    """Role, window and position of each volume, bottom layer first."""
    if case.kind == "pair":
        inputs = dict(zip(case.roles, case.inputs, strict=True))
        return [
            ("fixed", "fixed", inputs["fixed"]),
            ("moving (input)", "moving", inputs["moving"]),
            ("warped (result)", "moving", folder / "warped.nii.gz"),
        ]
    series = folder / "series"
    results = [series] if series.is_dir() else [p for p in sorted(folder.iterdir()) if is_nifti_name(p)]
    if not results:
        raise ValueError("the case has no volume as result")
    return [("input", "input", case.inputs[0]), ("result", "input", results[0])]


def _volumes(paths: list[tuple[str, str, Path]]) -> tuple[dict[str, Any], bytes]:
    windows: dict[str, tuple[float, float]] = {}
    small: dict[str, Volume] = {}
    shown, notes = [], []
    for role, window, path in paths:
        volume = read_volume(path)
        if volume.array.ndim == 4:
            notes.append(f"{role}: the first of {volume.array.shape[3]} volumes")
            volume = volume.with_array(volume.array[..., 0])
        reduced, step = block_mean(volume)
        low, high = windows.setdefault(window, _window(reduced.array))
        levels = _grey_levels(reduced.array, low, high)
        small[role] = reduced.with_array(levels)
        if step != (1, 1, 1):
            notes.append(f"{role}: means of {' x '.join(map(str, step))} voxels")
        data = _nifti(small[role], low, high)
        shown.append({"role": role, "low": low, "high": high, "data": base64.b64encode(data).decode()})
    first, last = paths[0][0], paths[-1][0]
    return {"volumes": shown, "notes": notes}, _png([_middle_slice(small[role]) for role in (first, last)])


def block_mean(volume: Volume, most_voxels: int = MOST_VOXELS) -> tuple[Volume, tuple[int, int, int]]:
    """Reduce a volume to at most `most_voxels` voxels by averaging blocks; also returns the size of a block.

    The finest axis is coarsened first. An incomplete last block is left out.

    Example:
        >>> image = Volume(np.arange(8.0).reshape(8, 1, 1), np.diag([1.0, 4.0, 4.0, 1.0]))
        >>> small, step = block_mean(image, most_voxels=4)
        >>> small.array.ravel().tolist(), small.spacing, small.origin, step
        ([0.5, 2.5, 4.5, 6.5], (2.0, 4.0, 4.0), (0.5, 0.0, 0.0), (2, 1, 1))
    """
    step = [1, 1, 1]
    while math.prod(n // s for n, s in zip(volume.shape, step, strict=True)) > most_voxels:
        can = [axis for axis in range(3) if volume.shape[axis] // (step[axis] + 1) >= 1]
        step[min(can, key=lambda axis: volume.spacing[axis] * step[axis])] += 1
    array = volume.array
    for axis, width in enumerate(step):
        if width > 1:
            whole = array.shape[axis] // width
            array = np.moveaxis(array, axis, 0)[: whole * width]
            array = array.reshape(whole, width, *array.shape[1:]).mean(axis=1, dtype=np.float32)
            array = np.moveaxis(array, 0, axis)
    grid = np.diag([*map(float, step), 1.0])
    grid[:3, 3] = [(width - 1) / 2 for width in step]
    d, h, w = step
    return Volume(np.asarray(array, dtype=np.float32), volume.affine @ grid), (d, h, w)


def _window(array: np.ndarray) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(array, (0.5, 99.8)))
    return (low, high) if high > low else (float(array.min()), max(float(array.max()), float(array.min()) + 1))


def _grey_levels(array: np.ndarray, low: float, high: float) -> np.ndarray:
    return (1 + np.rint(np.clip((array - low) / (high - low), 0, 1) * (_LEVELS))).astype(np.uint8)


def _nifti(levels: Volume, low: float, high: float) -> bytes:
    """A .nii.gz file whose scaled values are those of the image, clipped to the window."""

    image = nib.Nifti1Image(levels.array, levels.affine)
    slope = (high - low) / _LEVELS
    image.header.set_slope_inter(slope, low - slope)
    image.set_sform(levels.affine, 1)
    image.set_qform(levels.affine, 1)
    return gzip.compress(image.to_bytes(), mtime=0)


def _middle_slice(levels: Volume) -> np.ndarray:
    """The middle slice (rows, columns) across the axis with the fewest voxels, resampled to square pixels.

    It is in radiological convention, with the patient's right side on the left; in sagittal slices, the face points to
    the right.
    """

    canonical = nib.as_closest_canonical(nib.Nifti1Image(levels.array, levels.affine))
    array, spacing = np.asarray(canonical.dataobj), np.linalg.norm(canonical.affine[:3, :3], axis=0)
    across = min(range(3), key=lambda axis: (array.shape[axis], -axis))
    plane = np.take(array, array.shape[across] // 2, axis=across).T[::-1]  # rows from the top or front down
    width, height = (n * s for n, s in zip(plane.shape[::-1], np.delete(spacing, across), strict=True))
    if across != 0:
        plane = plane[:, ::-1]
    size = max(1, round(_HEIGHT * width / height)), _HEIGHT
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, Image.Resampling.BILINEAR))


def _pictures(source: Path, folder: Path) -> tuple[dict[str, Any], bytes]:
    """Input and result of a bitmap, in the same window."""

    results = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in _BITMAPS]
    if not results:
        raise ValueError("the case has no image as result")
    window: tuple[float, float] | None = None
    shown, thumbnails = [], []
    for role, path in (("input", source), ("result", results[0])):
        image = read_image(path)
        plane = np.moveaxis(image.stack[0], 0, -1).astype(np.float32)  # (rows, columns, channels)
        if window is None:
            window = (0.0, 255.0) if image.dtype == np.uint8 else _window(plane)
        pixels = np.rint(np.clip((plane - window[0]) / (window[1] - window[0]), 0, 1) * 255).astype(np.uint8)
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        data = base64.b64encode(_png([_at_most(pixels, LONGEST_SIDE)])).decode()
        shown.append({"role": role, "data": f"data:image/png;base64,{data}"})
        thumbnails.append(_at_most(pixels, _HEIGHT))
    same_size = thumbnails[0].shape == thumbnails[1].shape
    return {"pictures": shown, "notes": []}, _png(thumbnails if same_size else thumbnails[1:])


def _at_most(pixels: np.ndarray, side: int) -> np.ndarray:

    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(picture)


def _png(parts: list[np.ndarray]) -> bytes:
    """Pictures side by side."""

    stream = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _recording(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The windows of a diagnosed recording, and a drawing of their probabilities."""
    result = json.loads((folder / "diagnosis.json").read_text())
    windows = [{key: float(window[key]) for key in ("start_s", "probability")} for window in result["window"]]
    bars = []
    for number, window in enumerate(windows):
        height = 50 * window["probability"]
        bars.append(f'<rect x="{number}" y="{50 - height:.2f}" width="0.9" height="{height:.2f}" fill="#0b63a5"/>')
    box = f'viewBox="0 0 {max(1, len(windows))} 50" preserveAspectRatio="none" width="160" height="50"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img"><title>probability of each window</title>'
    # a line at a probability of one half
    line = f'<path d="M0 25H{len(windows)}" stroke="#888" stroke-dasharray="3" vector-effect="non-scaling-stroke"/>'
    return {"windows": windows, "notes": []}, f"{head}{''.join(bars)}{line}</svg>\n".encode()
