"""Transform files in the formats of ITK and ANTs (LPS mm).

| file | content |
| --- | --- |
| .h5 | affines and displacement fields, one after the other (ITK composite) |
| .mat, .txt, .tfm | one linear transform |
| .nii, .nii.gz | one displacement field: (D, H, W, 1, 3) float32, intent code 1007, LPS mm |
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.io

from ..runs.extras import load_optional
from ..runs.files import atomic_path
from .lta import LTA_SUFFIX, read_lta
from .nifti import NIFTI_SUFFIXES, load_image, nifti_affine, save_image, set_nifti_affine
from .sampling import apply_affine
from .transforms import AffineTransform, CompositeTransform, DisplacementField, Transform
from .volume import LPS, perpendicular_axes

LINEAR_SUFFIXES = (".mat", ".txt", ".tfm")
VECTOR_INTENT = 1007
_AFFINE = "AffineTransform_double_3_3"  # class, type of numbers, and dimensions in and out

# ITK's classes of linear and composite transforms
_KINDS = {
    "AffineTransform",
    "CenteredAffineTransform",
    "CenteredEuler3DTransform",
    "ComposeScaleSkewVersor3DTransform",
    "CompositeTransform",
    "DisplacementFieldTransform",
    "Euler3DTransform",
    "FixedCenterOfRotationAffineTransform",
    "GaussianSmoothingOnUpdateDisplacementFieldTransform",
    "IdentityTransform",
    "MatrixOffsetTransformBase",
    "QuaternionRigidTransform",
    "Rigid3DTransform",
    "ScalableAffineTransform",
    "ScaleLogarithmicTransform",
    "ScaleSkewVersor3DTransform",
    "ScaleTransform",
    "ScaleVersor3DTransform",
    "Similarity3DTransform",
    "TranslationTransform",
    "VersorRigid3DTransform",
    "VersorTransform",
}

# kinds whose parameters are matrix and translation
_PLAIN_LINEAR = re.compile(r"(?:AffineTransform|MatrixOffsetTransformBase)_(?:double|float)_3_3")

_SIGNS = np.diag(LPS)[:3]  # factors from RAS to LPS for a point or a vector


def write_transform(path: str | os.PathLike[str], transform: Transform) -> None:
    """Write a transform for ITK and ANTs; the file suffix selects the format (see the table of the module).

    Raises:
        ValueError: the suffix is another one, or the format cannot hold this kind of transform.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES) and isinstance(transform, DisplacementField):
        _write_field(path, transform)
    elif name.endswith(".h5"):
        _write_itk(path, _compose_itk(transform))
    elif name.endswith(LINEAR_SUFFIXES) and isinstance(transform, AffineTransform):
        _write_linear(path, transform)
    else:
        raise ValueError(
            f"{path.name} cannot hold this {type(transform).__name__}: use .h5 for any, .nii.gz for a displacement"
            " field, .mat or .txt for an affine"
        )


def read_transform(path: str | os.PathLike[str]) -> Transform:
    """Read a transform in one of ITK's formats (see the table of the module), or FreeSurfer's .lta.

    Raises:
        ValueError, OSError: the file is missing, cut off, or no transform; the message is one line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such transform file: {path}")
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return _read_field(path)
    if name.endswith((".h5", *LINEAR_SUFFIXES)):
        return _read_itk(path)
    if name.endswith(LTA_SUFFIX):
        return read_lta(path)
    raise ValueError(f"a transform ends in .nii, .nii.gz, .h5, .mat, .txt, .tfm or .lta, got {path.name}")


def _write_field(path: Path, field: DisplacementField) -> None:
    if not perpendicular_axes(field.affine):
        raise ValueError(f"affine must have perpendicular axes to be written for ITK, got {field.affine.tolist()}")
    vectors = (field.vectors_mm * _SIGNS.astype(np.float32))[:, :, :, None, :]
    image = nib.Nifti1Image(vectors, None)
    image.header.set_intent(VECTOR_INTENT)
    set_nifti_affine(image, field.affine, code=1)
    save_image(path, image)


def is_field(path: Path) -> bool:
    """Whether a NIfTI file holds a displacement field, by its shape and intent; False if it cannot be read."""
    try:
        image = load_image(path)
    except (OSError, ValueError):
        return False
    return len(image.shape) == 5 and image.shape[3:] == (1, 3)


def _read_field(path: Path) -> DisplacementField:
    image = load_image(path)
    intent = int(image.header["intent_code"])
    if len(image.shape) != 5 or image.shape[3:] != (1, 3) or intent != VECTOR_INTENT:
        raise ValueError(
            f"{path} must be a displacement field of shape (D, H, W, 1, 3) with intent code {VECTOR_INTENT}, got"
            f" {image.shape} with intent code {intent}"
        )
    vectors = np.asarray(image.dataobj, dtype=np.float32)[:, :, :, 0] * _SIGNS.astype(np.float32)
    try:
        return DisplacementField(vectors, nifti_affine(path, image))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _write_linear(path: Path, transform: AffineTransform) -> None:
    """Write ITK's text or MATLAB 4 file with parameters and centre, without ANTs, which takes seconds to load."""
    lps = LPS @ transform.matrix @ LPS
    parameters, centre = np.append(lps[:3, :3].ravel(), lps[:3, 3]), np.zeros(3)
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".mat":
            matrices = {_AFFINE: parameters[:, None], "fixed": centre[:, None]}
            scipy.io.savemat(temporary, matrices, appendmat=False, format="4")
            return
        temporary.write_text(
            "#Insight Transform File V1.0\n#Transform 0\n"
            f"Transform: {_AFFINE}\n"
            f"Parameters: {' '.join(map(repr, parameters.tolist()))}\n"
            f"FixedParameters: {' '.join(map(repr, centre.tolist()))}\n"
        )


def _ants() -> Any:
    """antspyx, which takes seconds to load and is optional."""
    return load_optional("ants", "a composite transform (.h5) or a linear one of a rare kind")


def _itk_affine(transform: AffineTransform) -> Any:
    """The affine as a part of a composite, in single precision."""
    ants = _ants()

    matrix = LPS @ transform.matrix @ LPS
    return ants.create_ants_transform(
        transform_type="AffineTransform",
        precision="float",
        dimension=3,
        matrix=matrix[:3, :3],
        offset=matrix[:3, 3].tolist(),
    )


def _itk_field(field: DisplacementField) -> Any:
    ants = _ants()

    if not perpendicular_axes(field.affine):
        raise ValueError(f"affine must have perpendicular axes to be written for ITK, got {field.affine.tolist()}")
    spacing = np.linalg.norm(field.affine[:3, :3], axis=0)
    image = ants.from_numpy(
        field.vectors_mm * _SIGNS.astype(np.float32),
        origin=(_SIGNS * field.affine[:3, 3]).tolist(),
        spacing=spacing.tolist(),
        direction=_SIGNS[:, None] * field.affine[:3, :3] / spacing,
        has_components=True,
    )
    return ants.transform_from_displacement_field(image)


def _compose_itk(transform: Transform) -> Any:
    ants = _ants()

    parts = transform.parts if isinstance(transform, CompositeTransform) else (transform,)
    # antspyx cannot write a single field, only a composite that holds it; all parts must be float
    made = [_itk_affine(part) if isinstance(part, AffineTransform) else _itk_field(part) for part in parts]
    return ants.compose_ants_transforms(made)


def _write_itk(path: Path, transform: Any) -> None:
    ants = _ants()

    with atomic_path(path) as temporary:
        ants.write_transform(transform, str(temporary))


def _read_itk(path: Path) -> Transform:
    _check_itk_file(path)
    if (plain := _read_plain_linear(path)) is not None:
        return plain
    ants = _ants()
    try:
        read = ants.read_transform(str(path), precision="double")
    except Exception as error:  # ITK's readers fail in many ways on damaged files
        raise ValueError(f"{path} is not a readable ITK transform (cut off, damaged or another format)") from error
    if read.dimension != 3:
        raise ValueError(f"{path} must hold a 3-D transform, got {read.dimension}-D")
    try:
        if read.transform_type == "CompositeTransform":
            return _composite(read)
        return _linear(read)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_plain_linear(path: Path) -> AffineTransform | None:
    """A linear transform that is stored as matrix, translation and centre, as ANTs, Greedy and we write it.

    Returns:
        The transform; None for files that hold another kind, which ITK itself must read.
    """
    try:
        numbers = _numbers_of(path)
    except Exception as error:  # SciPy's reader fails in many ways on damaged files
        raise ValueError(f"{path} is not a readable ITK transform (cut off, damaged or another format)") from error
    if numbers is None or tuple(map(len, numbers)) != (12, 3):
        return None
    parameters, centre = numbers
    lps = np.eye(4)
    lps[:3, :3] = parameters[:9].reshape(3, 3)
    lps[:3, 3] = parameters[9:] + centre - lps[:3, :3] @ centre
    try:
        return AffineTransform(LPS @ lps @ LPS)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _numbers_of(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Parameters and centre of one transform whose parameters are matrix and translation; None for other files."""
    suffix = path.suffix.lower()
    if suffix == ".mat":
        found = {k: np.ravel(v).astype(float) for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
        kind = next(iter(found), "")
        plain = _PLAIN_LINEAR.fullmatch(kind) and set(found) == {kind, "fixed"}
        return (found[kind], found["fixed"]) if plain else None
    if suffix in (".txt", ".tfm"):
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line and line[0] != "#")
        if not _PLAIN_LINEAR.fullmatch(lines.get("Transform", "").strip()):
            return None
        parameters, centre = (np.array(lines[k].split(), dtype=float) for k in ("Parameters", "FixedParameters"))
        return parameters, centre
    return None


def _check_itk_file(path: Path) -> None:
    """Refuse truncated files: ITK reads zeros beyond the end of .mat and .txt files, and prints long errors for .h5."""
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path} is empty (0 bytes)")
    suffix = path.suffix.lower()
    if suffix == ".h5" and (len(content) < 48 or content[:8] != b"\x89HDF\r\n\x1a\n"):
        raise ValueError(f"{path} is not an HDF5 file, though its name ends in .h5")
    if suffix in (".txt", ".tfm") and b"FixedParameters:" not in content:
        # without this last line of the file, ITK assumes a centre of 0
        raise ValueError(f"{path} is no ITK transform text or is cut off: it has no FixedParameters")
    _check_kinds(path, content)
    end = _hdf5_end(content) if suffix == ".h5" else _mat_end(content) if suffix == ".mat" else 0
    if len(content) < end:
        raise ValueError(f"{path} is cut off: {len(content)} of {end} bytes; get the file again")


def _check_kinds(path: Path, content: bytes) -> None:
    """Refuse B-splines and other kinds that we cannot apply, and a list of transforms, such as one per volume."""
    kinds = [name.decode() for name in re.findall(rb"([A-Za-z0-9]+)_(?:double|float)_\d+_\d+", content)]
    unknown = sorted(set(kinds) - _KINDS)
    if unknown:
        raise ValueError(
            f"{path} must hold linear transforms and displacement fields, got {', '.join(unknown)}; convert it to a"
            " displacement field"
        )
    if len(kinds) > 1 and "CompositeTransform" not in kinds:
        raise ValueError(
            f"{path} must hold one transform, got a list of {len(kinds)} (such as one per volume of a series); save"
            " each one as a separate file, or a chain of them as an ITK composite"
        )


def _hdf5_end(content: bytes) -> int:
    """The file's length by its superblock (versions 0 and 1, or 2 and 3)."""
    start = 40 if content[8] < 2 else 28
    return int.from_bytes(content[start : start + 8], "little")


def _mat_end(content: bytes) -> int:
    """The length of a MATLAB 4 file according to its headers; ITK writes two matrices, parameters and centre."""
    end = 0
    for _ in range(2):
        if len(content) < end + 20:
            return end + 20
        kind, rows, columns, _, name = np.frombuffer(content, "<i4", 5, end).tolist()
        # the tens digit is the number type: 0 is double, 1 is single
        end += 20 + name + rows * columns * (4 if kind // 10 % 10 == 1 else 8)
        if not 0 <= end < 1 << 20:
            return 0  # not a little-endian MATLAB 4 file: ITK's reader reports it
    return end


def _itk_map(read: Any, points: np.ndarray) -> np.ndarray:
    ants = _ants()

    lps = points * _SIGNS
    result: np.ndarray = np.array([ants.apply_ants_transform_to_point(read, tuple(point)) for point in lps]) * _SIGNS
    return result


def _linear(read: Any) -> AffineTransform:
    """Any linear ITK transform, regardless of its parameters, computed from the images of four points."""
    points = 100.0 * np.vstack([np.zeros(3), np.eye(3), np.ones(3)])
    moved = _itk_map(read, points)
    matrix = np.eye(4)
    matrix[:3, 3] = moved[0]
    matrix[:3, :3] = (moved[1:4] - moved[0]).T / 100.0
    transform = AffineTransform(matrix)
    if not np.allclose(transform.map(points), moved, atol=1e-3):
        raise ValueError(f"a linear transform is needed, got {read.transform_type}")
    return transform


def _composite(read: Any) -> Transform:
    """The parts of an ITK composite of affines and displacement fields, in the order in which they are applied."""
    fixed, values = np.array(read.fixed_parameters, dtype=np.float64), np.asarray(read.parameters)
    for parts in _splits(fixed, values):
        transform = parts[0] if len(parts) == 1 else CompositeTransform(tuple(parts))
        points = _test_points(parts)
        moved = transform.map(points)
        # single precision inside ITK: some 1e-5 mm at 100 mm
        if np.allclose(moved, _itk_map(read, points), atol=1e-2, equal_nan=False):
            return transform
    raise ValueError("only composites of affine transforms (12 parameters) and displacement fields can be read")


def _test_points(parts: list[AffineTransform | DisplacementField]) -> np.ndarray:
    """Four world points that stay inside the fields, so that a wrong split of the parameters is detected."""
    for number, part in enumerate(parts):
        if isinstance(part, DisplacementField):
            size = np.array(part.shape) - 1
            points = apply_affine(part.affine, size * np.array([[0.5, 0.5, 0.5], [0.4, 0.5, 0.6], [0.6, 0.4, 0.5]]))
            for before in reversed(parts[:number]):
                if isinstance(before, AffineTransform):
                    points = before.inverse().map(points)
            return points
    return 50.0 * np.vstack([np.zeros(3), np.eye(3)])


def _splits(fixed: np.ndarray, values: np.ndarray) -> Iterator[list[AffineTransform | DisplacementField]]:
    """Every way to read concatenated ITK parameters as affines (3 fixed, 12) and fields (18 fixed, 3 per voxel)."""
    if not len(fixed) and not len(values):
        yield []
    if len(fixed) >= 18 and _is_grid(fixed[:18]):
        count = 3 * int(np.prod(fixed[:3]))
        if count <= len(values):
            for rest in _splits(fixed[18:], values[count:]):
                yield [_field_of(fixed[:18], values[:count]), *rest]
    if len(fixed) >= 3 and len(values) >= 12 and np.linalg.det(values[:9].reshape(3, 3)) != 0:
        for rest in _splits(fixed[3:], values[12:]):
            yield [_affine_of(fixed[:3], values[:12]), *rest]


def _is_grid(fixed: np.ndarray) -> bool:
    size, spacing, direction = fixed[:3], fixed[6:9], fixed[9:].reshape(3, 3)
    whole = bool((size >= 1).all() and (size == np.round(size)).all())
    return whole and bool((spacing > 0).all()) and np.allclose(direction @ direction.T, np.eye(3), atol=1e-3)


def _affine_of(center: np.ndarray, values: np.ndarray) -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, :3] = values[:9].reshape(3, 3)
    matrix[:3, 3] = values[9:] + center - matrix[:3, :3] @ center
    flip = LPS
    return AffineTransform(flip @ matrix @ flip)


def _field_of(fixed: np.ndarray, values: np.ndarray) -> DisplacementField:
    d, h, w = fixed[:3].astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _SIGNS[:, None] * fixed[9:].reshape(3, 3) * fixed[6:9]
    affine[:3, 3] = _SIGNS * fixed[3:6]
    # ITK stores the first axis fastest and the components of a vector together
    vectors = values.reshape(w, h, d, 3).transpose(2, 1, 0, 3) * _SIGNS
    return DisplacementField(vectors, affine)
