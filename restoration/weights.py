"""Weight files: our own safetensors files, which describe their network, and published files, which do not.

A published file holds parameters only. The shapes of the parameters do not depend on the stripe width and do not always
determine the variant, so both must be given when the file is loaded; they are checked as far as possible.
"""

import json
import os
import warnings
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runs.catalogue import find_weights
from ..runs.json_files import parse_json
from ..runs.weight_file import (
    check_claims,
    check_finite_weights,
    check_number_kinds,
    read_plain,
    read_weights,
    write_weights,
)
from . import mair, mair_unet
from .elastic import FULL, SMALLER, Sizes, extract, nested_arguments
from .mair import MaIR
from .mair_unet import MaIRUNet

FORMAT = "voxelwave-restoration-1"

Network = MaIR | MaIRUNet
UNITS = ("relative", "HU", "8-bit")
NETWORKS: dict[str, type[MaIR] | type[MaIRUNet]] = {"MaIR": MaIR, "MaIRUNet": MaIRUNet}


@dataclass(frozen=True)
class WeightsInfo:
    """Network, task and intensity range of a file of weights.

    Attributes:
        architecture: "MaIR" or "MaIRUNet".
        arguments: the constructor's arguments, including stripe width and channels.
        task: "denoise", "super-resolution", "deblur" or "dehaze".
        intensity_range: the intensities that are mapped to 0 and 1 for the network.
        intensity_unit: their unit: "HU", "8-bit", or "relative" if each image is scaled separately.
        notes: free text for a reader, such as data, licence, command and seed.
        sizes: the smaller networks that the file contains: "small" or "medium" -> the arguments that differ.
    """

    architecture: str
    arguments: dict[str, Any]
    task: str
    intensity_range: tuple[float, float]
    intensity_unit: str
    notes: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def scale(self) -> int:
        """The super-resolution factor; 1 for other tasks."""
        return int(self.arguments.get("scale", 1))

    @property
    def slices(self) -> int:
        """The number of neighbouring slices that become input channels (2.5-D)."""
        taken, given = int(self.arguments["in_channels"]), int(self.arguments["out_channels"])
        return 1 if taken == given else taken


def model_from_variant(variant: str, **changes: Any) -> Network:
    """Build a published configuration of either network, with random parameters.

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
    path: str | os.PathLike[str],
    model: Network,
    *,
    task: str,
    intensity_range: tuple[float, float],
    intensity_unit: str,
    notes: dict[str, str] | None = None,
    sizes: Sizes | None = None,
) -> None:
    """Write parameters, with the description that is needed to use them, as a safetensors file.

    Args:
        path: the file to write, which ends in .safetensors.
        model: the network, whose constructor arguments are written too.
        task, intensity_range, intensity_unit, notes, sizes: see `WeightsInfo`.
    """
    low, high = intensity_range
    if not low < high:
        raise ValueError(f"intensity_range must be (low, high) with low < high, got {intensity_range}")
    if intensity_unit not in UNITS:
        raise ValueError(f"intensity_unit must be one of {', '.join(UNITS)}, got {intensity_unit!r}")
    metadata = {
        "format": FORMAT,
        "architecture": type(model).__name__,
        "arguments": json.dumps(model.arguments),
        "task": task,
        "intensity_range": json.dumps([float(low), float(high)]),
        "intensity_unit": intensity_unit,
        "notes": json.dumps(notes or {}),
    }
    if sizes:
        nested_arguments(model.arguments, sizes)
        metadata["sizes"] = json.dumps(sizes)
    write_weights(path, model.state_dict(), metadata)


def load_weights(
    weights: str | os.PathLike[str],
    *,
    variant: str | None = None,
    stripe_width: int | None = None,
    key: str = "params",
    size: str = FULL,
) -> tuple[Network, WeightsInfo]:
    """Load a network in evaluation mode, with the description of its weights.

    A file of ours (`save_weights`) needs no other argument; given arguments are checked against it. A published file
    (.pth, .pt, .ckpt, or safetensors without our metadata) needs `variant` and `stripe_width`; it is assumed to be for
    8-bit images divided by 255, like all published files. No code in a file is executed.

    Args:
        weights: the file, or a name in the catalogue, see `runs.catalogue`.
        variant: name of the published configuration.
        stripe_width: width in pixels of the stripes of the scan order.
        key: the set of parameters to take from a published file: "params" or "params_ema".
        size: "small", "medium" or "full"; the smaller ones need a file that contains them.

    Returns:
        The model on the CPU, float32, and its `WeightsInfo`. Those of a smaller size are the same as if the file
        contained this size only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, does not fit the variant, contradicts an argument, or needs an argument.
    """
    path = find_weights(weights, "restoration")
    state, metadata = _read(path, key)
    info = _info(path, metadata)
    available = (*(name for name in SMALLER if info is not None and name in info.sizes), FULL)
    if size not in available:
        raise ValueError(f"size must be {' or '.join(available)} for {path.name}, which has no other size, got {size}")
    if info is None:
        return _load_published(path, state, variant, stripe_width)
    stored = info.arguments.get("stripe_width")
    if stripe_width is not None and stripe_width != stored:
        raise ValueError(f"stripe_width must be {stored}, which {path.name} was trained with, got {stripe_width}")
    if variant is not None and variant not in matching_variants(state):
        raise ValueError(f"{path.name} does not hold a {variant}")
    try:
        with torch.device("meta"):
            model = NETWORKS[info.architecture](**info.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name} holds arguments that {info.architecture} does not take: {error}") from None
    model = _with_parameters(model, state, path, info.architecture)
    if size == FULL:
        return model, info
    assert isinstance(model, MaIR)  # checked when the description was read
    model = extract(model, size, info.sizes)
    return model, replace(info, arguments=model.arguments, sizes={})


def read_info(path: str | os.PathLike[str]) -> WeightsInfo | None:
    """The description in a weight file of ours; None for any other file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its metadata are.
    """
    path = Path(path)
    return _info(path, read_weights(path)[1]) if path.suffix == ".safetensors" else None


def _info(path: Path, metadata: dict[str, str]) -> WeightsInfo | None:
    if metadata.get("format") != FORMAT:
        return None
    try:
        low, high = parse_json(metadata["intensity_range"], "intensity_range")
        info = WeightsInfo(
            architecture=metadata["architecture"],
            arguments=parse_json(metadata["arguments"], "arguments"),
            task=metadata["task"],
            intensity_range=(float(low), float(high)),
            intensity_unit=metadata["intensity_unit"],
            notes=parse_json(metadata["notes"], "notes"),
            sizes=parse_json(metadata.get("sizes", "{}"), "sizes"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} has damaged metadata: {error}") from None
    if info.architecture not in NETWORKS or not isinstance(info.arguments, dict):
        raise ValueError(f"{path.name} has damaged metadata: unknown architecture {info.architecture!r}")
    if info.intensity_unit not in UNITS or not low < high or not isinstance(info.notes, dict):
        raise ValueError(f"{path.name} has damaged metadata: range {low} to {high} {info.intensity_unit!r}")
    if not isinstance(info.sizes, dict):
        raise ValueError(f"{path.name} has damaged metadata: sizes must be a mapping, got {info.sizes!r}")
    check_claims(path, [info.arguments, info.sizes])
    if info.sizes:
        try:
            if info.architecture != "MaIR":
                raise ValueError(f"{info.architecture} must have no sizes, got {info.sizes!r}")
            nested_arguments(info.arguments, info.sizes)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path.name} has damaged metadata: {error}") from None
    return info


def read_parameters(path: str | os.PathLike[str], *, key: str = "params") -> dict[str, Tensor]:
    """Read the named parameters of a .safetensors, .pth, .pt or .ckpt file; no code in it is executed.

    Args:
        path: the file.
        key: the entry of a pickled checkpoint that holds the parameters. If it is missing, "params", "state_dict" and
            the file itself are tried.

    Returns:
        Name -> tensor on the CPU; a leading "module." is removed from the names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds no parameters, or holds NaN or infinite ones.
    """
    return _read(Path(path), key)[0]


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and metadata; a pickled file has no metadata."""
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        found, metadata = read_weights(path)
    elif path.suffix in (".pth", ".pt", ".ckpt"):
        found = _read_pickled(path, key)
    else:
        raise ValueError(f"weights must be a .safetensors, .pth, .pt or .ckpt file, got {path}")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}, metadata


def matching_variants(state: dict[str, Tensor]) -> list[str]:
    """List the published configurations whose parameters have exactly these names and shapes.

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
) -> tuple[Network, WeightsInfo]:
    if variant is None:
        fitting = " or ".join(matching_variants(state)) or "none of the published configurations"
        raise ValueError(f"variant must be given for {path.name}, which does not contain it; its shapes fit {fitting}")
    configurations = {**mair.VARIANTS, **mair_unet.VARIANTS}
    with torch.device("meta"):
        model = model_from_variant(variant)
    published = configurations[variant]["stripe_width"]
    if stripe_width is None:
        raise ValueError(
            f"stripe_width must be given for {path.name}, which does not contain it; the published configuration of"
            f" {variant} has {published}"
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
    return _with_parameters(model, state, path, variant), info


def _with_parameters(model: Network, state: dict[str, Tensor], path: Path, model_name: str) -> Network:
    """Load parameters into a model on the meta device, so that a file that does not fit takes no memory."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [name for name in (*expected, *found) if expected.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        fitting = " or ".join(matching_variants(state)) or "no published configuration"
        raise ValueError(
            f"{path.name} does not fit {model_name}: {name} must have shape {expected.get(name, 'none, it is unknown')}"
            f", got {found.get(name, 'nothing')} ({len(set(wrong))} parameters differ; its shapes fit {fitting})"
        )
    check_number_kinds(path, state, model.state_dict())
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.eval()


def _read_pickled(path: Path, key: str) -> dict[str, Tensor]:
    if key not in ("params", "params_ema"):
        raise ValueError(f'key must be "params" or "params_ema", got {key!r}')
    content = read_plain(path, "file of weights")
    for name in (key, "params", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path.name} holds no parameters under {key!r}")
    check_finite_weights(path, content)
    return content
