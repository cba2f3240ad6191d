"""One geometry for every image: arrays with a voxel -> world affine (RAS+ mm), and the files they live in."""

from .volume import Volume

__all__ = ["Volume"]
