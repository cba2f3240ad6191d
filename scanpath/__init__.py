"""Scanpaths: models of the order in which a person looks at the objects of a scene."""

from typing import TYPE_CHECKING

from ..runs.public import public_names

if TYPE_CHECKING:
    from .oat import OAT as OAT
    from .readers import read_scanpaths as read_scanpaths
    from .scene import Dataset as Dataset
    from .scene import Scene as Scene
    from .scene import SceneObject as SceneObject
    from .weights import load_model as load_model

__all__ = public_names(
    __name__,
    {
        "OAT": "oat",
        "Dataset": "scene",
        "Scene": "scene",
        "SceneObject": "scene",
        "load_model": "weights",
        "read_scanpaths": "readers",
    },
)
