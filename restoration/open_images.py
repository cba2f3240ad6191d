"""Openly licensed images from installed packages and drawn cloth, as grey pictures to train and validate denoisers."""

import importlib.util
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from ..runs.files import atomic_path
from ..volumes import read_volume
from .images import LUMA, read_image
from .textures import cloth

# name -> (package, file in it, licence, downsampling factor)
_PICTURES: dict[str, tuple[str, str, str, int]] = {
    "astronaut": ("skimage", "data/astronaut.png", "public domain (NASA)", 1),
    "brick": ("skimage", "data/brick.png", "CC0", 1),
    "camera": ("skimage", "data/camera.png", "CC0 (Lav Varshney)", 1),
    "chelsea": ("skimage", "data/chelsea.png", "CC0 (Stefan van der Walt)", 1),
    "coffee": ("skimage", "data/coffee.png", "CC0 (Rachel Michetti)", 1),
    "coins": ("skimage", "data/coins.png", "no known copyright restrictions (Brooklyn Museum)", 1),
    "grass": ("skimage", "data/grass.png", "CC0", 1),
    "gravel": ("skimage", "data/gravel.png", "CC0", 1),
    "hubble": ("skimage", "data/hubble_deep_field.jpg", "public domain (NASA)", 2),
    "ihc": ("skimage", "data/ihc.png", "no known copyright restrictions", 1),
    "retina": ("skimage", "data/retina.jpg", "CC0 (Mikael Haggstrom)", 2),
    "rocket": ("skimage", "data/rocket.jpg", "public domain (SpaceX)", 1),
    "text": ("skimage", "data/text.png", "public domain", 1),
    "china": ("sklearn", "datasets/images/china.jpg", "CC BY 2.0 (danielbuechele)", 1),
    "flower": ("sklearn", "datasets/images/flower.jpg", "CC BY 2.0 (vultilion)", 1),
}
# Photographs of the Debian package lomiri-wallpapers-16.04 whose debian/copyright allows any use with attribution:
# file name -> (licence, downsampling factors). The package's other pictures are under share-alike licences, except for
# one smooth drawing. JPEG compressed them strongly for their 1.5 to 16 megapixels, so they are averaged to a third and
# a fifth of their size; two that are mostly out of focus, to a fifth.
PHOTOGRAPHS = Path("/usr/share/backgrounds")
_PHOTOGRAPHS: dict[str, tuple[str, tuple[int, ...]]] = {
    "aitzgorri_by_Aitzol_Berasategi.jpg": ("CC BY 4.0 (Aitzol Berasategi)", (3, 5)),
    "friends_by_Aitzol_Berasategi.jpg": ("CC BY 4.0 (Aitzol Berasategi)", (3, 5)),
    "life_by_Aitzol_Berasategi.jpg": ("CC BY 4.0 (Aitzol Berasategi)", (3, 5)),
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": ("CC BY 4.0 (Aitzol Berasategi)", (3, 5)),
    "Picture_0B_by_freespace.jpg": ('CC BY 4.0 (Trevor "Freespace")', (3, 5)),
    "Picture_1A_by_freespace.jpg": ('CC BY 4.0 (Trevor "Freespace")', (3, 5)),
    "seeding_by_Clements_Engelhardt.jpg": ("CC0 1.0 (Clemens Engelhardt)", (5,)),
    "sunset_by_Aitzol_Berasategi.jpg": ("CC BY 4.0 (Aitzol Berasategi)", (5,)),
    "Wine_by_Jakkub_Mede.jpg": ("CC BY 4.0 (Jakub Mede)", (3, 5)),
}
_PHOTOGRAPH_PACKAGE = "lomiri-wallpapers-16.04"
_BRAIN = (
    "nilearn",
    "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill"
    " University: free to use, copy, modify and distribute for any purpose with this notice (nilearn calls it unknown)",
)
OF_THE_CARD = 83  # training images of the shipped weights, see shipped/denoise-grey.md
_PIP = {"skimage": "scikit-image", "sklearn": "scikit-learn"}  # import name -> name for pip, where they differ
_CLOTHS = 16
_VALIDATION = ("camera", "coffee", "brain-axial-110")


def write_open_images(folder: Path) -> dict[str, int]:
    """Write grey 8-bit PNG files into folder/train and folder/validation, and LICENCES.tsv.

    Large pictures that are stored as JPEG are averaged over several pixels, so that a denoiser does not learn their
    compression artefacts. Packages that are not installed are skipped. The pictures of cloth are drawn
    (`textures.cloth`).

    Returns:
        Name of the folder -> number of its images.

    Raises:
        ValueError: no package with images is installed.
    """
    found = _all_images()
    first = next(found, None)
    if first is None:
        raise ValueError("no package with open images is installed: pip install scikit-image scikit-learn nilearn")
    counts = {"train": 0, "validation": 0}
    rows = []
    for name, pixels, licence in chain([first], found, _cloths()):
        part = "validation" if name in _VALIDATION else "train"
        with atomic_path(folder / part / f"{name}.png") as temporary:
            Pillow.fromarray(pixels).save(temporary)
        counts[part] += 1
        rows.append(f"{part}/{name}.png\t{licence}")
    with atomic_path(folder / "LICENCES.tsv") as temporary:
        temporary.write_text("file\tlicence\n" + "\n".join(rows) + "\n")
    return counts


def _all_images() -> Iterator[tuple[str, np.ndarray, str]]:
    for name, (package, file, licence, factor) in _PICTURES.items():
        path = _in_package(package, file)
        if path is not None:
            stack = read_image(path).stack[0].astype(np.float64)
            grey = np.tensordot(LUMA, stack, 1) if len(stack) == 3 else stack[0]
            yield name, _as_bytes(_averaged(grey, factor)), f"{licence}, from {package}"
    for file, (licence, factors) in _PHOTOGRAPHS.items():
        path = PHOTOGRAPHS / file
        if path.is_file():
            grey = np.tensordot(LUMA, read_image(path).stack[0].astype(np.float64), 1)
            for factor in factors:
                name = f"{path.stem}-{factor}"
                yield name, _as_bytes(_averaged(grey, factor)), f"{licence}, from {_PHOTOGRAPH_PACKAGE}"
    package, file, licence = _BRAIN
    path = _in_package(package, file)
    if path is not None:
        volume = read_volume(path).array.astype(np.float64)
        volume *= 255 / np.percentile(volume, 99.9)
        for axis, word in ((0, "sagittal"), (1, "coronal"), (2, "axial")):
            for k in range(40, volume.shape[axis] - 40, 10):
                yield f"brain-{word}-{k}", _as_bytes(np.take(volume, k, axis)), f"{licence}, from {package}"


def _cloths() -> Iterator[tuple[str, np.ndarray, str]]:
    for number in range(_CLOTHS):
        yield f"cloth-{number:02}", _as_bytes(255 * cloth(number)), "drawn by voxelwave (CC0)"


def commands_for_missing_images() -> list[str]:
    """Commands that install the packages with open images that are not installed."""
    names = dict.fromkeys([package for package, _, _, _ in _PICTURES.values()] + [_BRAIN[0]])
    missing = [_PIP.get(name, name) for name in names if importlib.util.find_spec(name) is None]
    commands = [f"pip install {' '.join(missing)}"] if missing else []
    if not all((PHOTOGRAPHS / file).is_file() for file in _PHOTOGRAPHS):
        commands.append(f"apt install {_PHOTOGRAPH_PACKAGE} (on Debian)")
    return commands


def _in_package(package: str, file: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / file
    return path if path is not None and path.is_file() else None


def _averaged(grey: np.ndarray, factor: int) -> np.ndarray:
    height, width = (size // factor * factor for size in grey.shape)
    blocks = grey[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean((1, 3)))


def _as_bytes(grey: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return rounded
