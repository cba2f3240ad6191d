"""The endings of the names of images."""

from pathlib import Path

BITMAP_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".webp", ".pgm", ".ppm")
TIFF_SUFFIXES = (".tif", ".tiff")
PNM_SUFFIXES = (".pgm", ".ppm")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd")


def file_stem(path: Path) -> str:
    """The name of a file without its suffix (.nii.gz is one suffix); the whole name of a folder.

    Example:
        >>> file_stem(Path("scans/head.nii.gz"))
        'head'
    """
    return path.name if path.is_dir() else path.name.removesuffix(".gz").rsplit(".", 1)[0]
