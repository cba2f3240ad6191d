"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("voxelwave")
except PackageNotFoundError:  # used from its folder, without an installation
    __version__ = "unknown"
