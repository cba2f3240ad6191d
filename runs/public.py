"""Public names of a package that are imported when they are first used, so that importing the package stays cheap."""

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package with public names; one that is also the name of a module means the function, not the module."""

    _places: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        place = self.__dict__["_places"].get(name)
        if place is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{self.__name__}.{place}" if place else f"{self.__name__}.{name}")
        value = getattr(module, name) if place else module
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # the import system sets a module as an attribute of its package
        if self._places.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._places})


def public_names(package: str, places: Mapping[str, str]) -> list[str]:
    """Let a package have public names that are imported when they are first used.

    Args:
        package: the `__name__` of the package, from its `__init__`.
        places: public name -> the module of the package that defines it; "" if the name is that of a module or package.

    Returns:
        The names, for `__all__`.
    """
    module = sys.modules[package]
    module.__dict__["_places"] = dict(places)
    module.__class__ = _Package
    return sorted(places)
