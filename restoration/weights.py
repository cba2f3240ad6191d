"""Weights on disk: our own safetensors files, which say what they are, and published files, which do not.

A published file holds parameters only. Nothing in it tells the stripe width, on which no shape depends, and the
variant shows only in its shapes; so both must be said when it is loaded, and are compared with what is known.
"""

import json
import os
import pickle
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from ..runs.files import atomic_path
from . import mair, mair_unet
from .mair import MaIR
from .mair_unet import MaIRUNet
from .weight_files import weights_file

FORMAT = "voxelwave-restoration-1"
_ARCHITECTURES = {"MaIR": MaIR, "MaIRUNet": MaIRUNet}


@dataclass(frozen=True)
class WeightsInfo:
    """What a file of weights is made for.

    Attributes:
        architecture: "MaIR" or "MaIRUNet".
        arguments: the constructor's arguments, stripe width and channels among them.
        task: "denoise", "super-resolution", "deblur" or "dehaze".
        intensity_range: the intensities that the network sees as 0 and as 1.
        intensity_unit: their unit: "HU", "8-bit", or "relative" where each image is scaled by itself.
        notes: free words for a reader: data, licence, command, seed.
    """

    architecture: str
    arguments: dict[str, Any]
    task: str
    intensity_range: tuple[float, float]
    intensity_unit: str
    notes: dict[str, str] = field(default_factory=dict)


def model_from_variant(variant: str, **changes: Any) -> MaIR | MaIRUNet:
    """A published configuration of either network by its name, with random parameters.

    Args:
        variant: a name in `mair.VARIANTS` or `mair_unet.VARIANTS`.
        changes: constructor arguments to replace.
    """
    if variant in mair.VARIANTS:
        return MaIR.from_variant(variant, **changes)
    if variant in mair_unet.VARIANTS:
        return MaIRUNet.from_variant(variant, **changes)
    raise ValueError(f"variant must be one of {', '.join(_variants())}, got {variant!r}")


def save_weights(
    path: str | os.PathLike,
    model: MaIR | MaIRUNet,
    *,
    task: str,
    intensity_range: tuple[float, float],
    intensity_unit: str,
    notes: dict[str, str] | None = None,
) -> None:
    """Write parameters and all that is needed to use them as a safetensors file.

    Args:
        path: ends in .safetensors.
        model: its arguments are written too.
        task, intensity_range, intensity_unit, notes: see `WeightsInfo`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    low, high = intensity_range
    if not low < high:
        raise ValueError(f"intensity_range must be (low, high) with low < high, got {intensity_range}")
    metadata = {
        "format": FORMAT,
        "architecture": type(model).__name__,
        "arguments": json.dumps(model.arguments),
        "task": task,
        "intensity_range": json.dumps([float(low), float(high)]),
        "intensity_unit": intensity_unit,
        "notes": json.dumps(notes or {}),
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, metadata))  # save_file would give a file that its owner alone can read


def load_weights(
    weights: str | os.PathLike,
    *,
    variant: str | None = None,
    stripe_width: int | None = None,
    key: str = "params",
) -> tuple[MaIR | MaIRUNet, WeightsInfo]:
    """A model in evaluation mode with the parameters of a file, and what it is made for.

    A file of ours (`save_weights`) needs no other argument; those that are given are checked against it. A published
    file (.pth, .pt, .ckpt, or safetensors without our metadata) needs `variant` and `stripe_width`; it is taken to be
    made for 8-bit images divided by 255, as all published ones are. Nothing in a file is ever executed.

    Args:
        weights: the file, or the name of weights that come with the package (`shipped_weights`).
        variant: the published configuration.
        stripe_width: width of the scan's stripes in pixels.
        key: which set of parameters a published file shall give: "params" or "params_ema".

    Returns:
        The model on the CPU, float32, and its `WeightsInfo`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, does not fit the variant, or contradicts an argument, or an argument that
            the file does not replace is missing.
    """
    path = weights_file(weights)
    state = read_parameters(path, key=key)
    info = read_info(path)
    if info is None:
        return _load_published(path, state, variant, stripe_width)
    stored = info.arguments.get("stripe_width")
    if stripe_width is not None and stripe_width != stored:
        raise ValueError(f"stripe_width must be {stored}, which {path.name} was trained with, got {stripe_width}")
    if variant is not None and variant not in matching_variants(state):
        raise ValueError(f"{path.name} does not hold a {variant}")
    try:
        with torch.device("meta"):
            model = _ARCHITECTURES[info.architecture](**info.arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} was written for other arguments than {info.architecture} has: {error}") from None
    return _with_parameters(model, state, path.name, info.architecture), info


def read_info(path: str | os.PathLike) -> WeightsInfo | None:
    """What a safetensors file of ours says about itself, without reading its parameters; None for any other file."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return None
    with _open_safetensors(path) as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        return None
    try:
        low, high = json.loads(metadata["intensity_range"])
        info = WeightsInfo(
            architecture=metadata["architecture"],
            arguments=json.loads(metadata["arguments"]),
            task=metadata["task"],
            intensity_range=(float(low), float(high)),
            intensity_unit=metadata["intensity_unit"],
            notes=json.loads(metadata["notes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} has damaged metadata: {error}") from None
    if info.architecture not in _ARCHITECTURES or not isinstance(info.arguments, dict):
        raise ValueError(f"{path.name} has damaged metadata: architecture {info.architecture!r}")
    return info


def read_parameters(path: str | os.PathLike, *, key: str = "params") -> dict[str, Tensor]:
    """The named parameters of a .safetensors, .pth, .pt or .ckpt file; nothing in it is executed.

    Args:
        path: the file.
        key: the entry of a pickled checkpoint that holds them; "params" serves where "params_ema" is missing, and so do
            "state_dict" and a file that is nothing but the parameters.

    Returns:
        Name -> tensor on the CPU; a leading "module." is taken off the names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no parameters.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dictionary)
    elif path.suffix in (".pth", ".pt", ".ckpt"):
        found = _read_pickled(path, key)
    else:
        raise ValueError(f"weights must be a .safetensors, .pth, .pt or .ckpt file, got {path}")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def matching_variants(state: dict[str, Tensor]) -> list[str]:
    """The published configurations whose parameters have exactly these names and shapes.

    Example:
        >>> matching_variants(MaIR.from_variant("mair-t-x3").state_dict())
        ['mair-t-x3']
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return [variant for variant in _variants() if _shapes_of(variant) == shapes]


@cache
def _shapes_of(variant: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = model_from_variant(variant)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _variants() -> list[str]:
    return [*mair.VARIANTS, *mair_unet.VARIANTS]


def _load_published(
    path: Path, state: dict[str, Tensor], variant: str | None, stripe_width: int | None
) -> tuple[MaIR | MaIRUNet, WeightsInfo]:
    if variant is None:
        fitting = " or ".join(matching_variants(state)) or "none of the published configurations"
        raise ValueError(f"variant must be given for {path.name}, which does not tell it; its shapes fit {fitting}")
    configurations = {**mair.VARIANTS, **mair_unet.VARIANTS}
    with torch.device("meta"):
        model = model_from_variant(variant)
    published = configurations[variant]["stripe_width"]
    if stripe_width is None:
        raise ValueError(
            f"stripe_width must be given for {path.name}, which does not tell it; the published configuration of "
            f"{variant} has {published}"
        )
    if stripe_width != published:
        warnings.warn(
            f"{path.name} is used with stripe_width {stripe_width}; the published configuration of {variant} has "
            f"{published}",
            stacklevel=3,
        )
        with torch.device("meta"):
            model = model_from_variant(variant, stripe_width=stripe_width)
    task = "super-resolution" if model.scale > 1 else variant.rsplit("-", 1)[1]
    info = WeightsInfo(type(model).__name__, model.arguments, task, (0.0, 255.0), "8-bit")
    return _with_parameters(model, state, path.name, variant), info


def _with_parameters(
    model: MaIR | MaIRUNet, state: dict[str, Tensor], file_name: str, model_name: str
) -> MaIR | MaIRUNet:
    """Give a model on the meta device its parameters; a file that does not fit costs no memory."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [name for name in (*expected, *found) if expected.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        fitting = " or ".join(matching_variants(state)) or "no published configuration"
        raise ValueError(
            f"{file_name} does not fit {model_name}: {name} must have shape {expected.get(name, 'none, it is unknown')}"
            f", got {found.get(name, 'nothing')} ({len(set(wrong))} parameters differ; its shapes fit {fitting})"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.eval()


def _open_safetensors(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    try:
        return safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name} is not a readable safetensors file: {error}") from None


def read_checkpoint(path: Path) -> Any:
    """The tensors and plain values of a .pth, .pt or .ckpt file, on the CPU; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds other things.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path.name} holds more than tensors and plain values, or is damaged: not loaded") from None
    except Exception as error:  # unpicklers fail in many ways on damaged data
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path.name} is not a readable checkpoint: {reason}") from None


def _read_pickled(path: Path, key: str) -> dict[str, Tensor]:
    if key not in ("params", "params_ema"):
        raise ValueError(f'key must be "params" or "params_ema", got {key!r}')
    content = read_checkpoint(path)
    for name in (key, "params", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path.name} holds no parameters under {key!r}")
    return content
