"""The extras of the package: packages that only some commands need, such as those for training."""

import importlib
from importlib.util import find_spec
from typing import Any

# extra -> names under which its packages are imported; the same as in pyproject.toml, which a test checks
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("lightning", "monai", "optuna"),
    "eeg": ("lightning", "optuna", "pyriemann"),
    "registration": ("ants",),
}
PIP_NAMES = {"ants": "antspyx"}  # where pip has another name than import


def missing_packages(*extras: str) -> list[str]:
    """The packages of some extras that are not installed, by the names that pip uses."""
    names = dict.fromkeys(name for extra in extras for name in EXTRAS[extra])
    return [PIP_NAMES.get(name, name) for name in names if find_spec(name) is None]


def must_have(what: str, *extras: str) -> None:
    """Refuse work without the packages of its extras.

    Args:
        what: the work, as the subject of the message.
        extras: names in `EXTRAS`.

    Raises:
        ImportError: a package is missing; the message names the extra.
    """
    if absent := missing_packages(*extras):
        raise ImportError(_message(what, " and ".join(absent), ",".join(extras)))


def load_optional(package: str, what: str) -> Any:
    """Import a package of an extra, or one that no extra has since only other people's objects need it.

    Args:
        package: its name for import.
        what: the work that needs it, as the subject of the message.

    Raises:
        ImportError: it is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        extra = next((extra for extra, names in EXTRAS.items() if package in names), None)
        if extra is None:
            raise ImportError(f"{what} needs {package}, which is not installed: pip install {package}") from error
        raise ImportError(_message(what, PIP_NAMES.get(package, package), extra)) from error


def in_words(error: ImportError) -> str:
    """The message of a failed import; for a package of an extra, it names the extra.

    Example:
        >>> in_words(ModuleNotFoundError("No module named 'lightning'", name="lightning.pytorch"))
        'this needs lightning, which is not installed: pip install "voxelwave[train]"'
    """
    name = (getattr(error, "name", None) or "").split(".")[0]
    extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
    if extra is None or not isinstance(error, ModuleNotFoundError):
        return str(error)
    return _message("this", PIP_NAMES.get(name, name), extra)


def _message(what: str, packages: str, extras: str) -> str:
    verb = "are" if " and " in packages else "is"
    return f'{what} needs {packages}, which {verb} not installed: pip install "voxelwave[{extras}]"'
