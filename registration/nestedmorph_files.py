"""Weight files of NestedMorph: the published form, Lightning checkpoints, safetensors.

The published layout and the aligned one (see `NestedMorph`) have tensors of the same names and shapes, so the tensors
do not show which layout a file needs. Our files record the layout; a file without a record is refused or gives a
warning.
"""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from ..runs.files import atomic_path
from ..runs.json_files import parse_json
from ..runs.json_types import check_record
from ..runs.weight_file import check_finite_weights, check_number_kinds, read_plain, read_weights, write_weights
from .choices import FlowHead, Norm
from .nestedmorph import NestedMorph

RECORD = "nestedmorph"  # key of the metadata, or of a checkpoint's dictionary, that holds `NestedMorph.config`

_scalar: Any = np.float64().__reduce__()[0]  # numpy._core.multiarray.scalar
# The published files hold the best score as a NumPy scalar, which older NumPy wrote under the name of another module.
_SAFE: list[Any] = [(_scalar, "numpy.core.multiarray.scalar"), _scalar, np.dtype, np.dtypes.Float64DType]

# (channels of the first stage, input channels of the flow head) of earlier revisions of the published code
_OLDER = {
    (128, 3): "widths 128 to 1024, two blocks per stage (2024-12-20 to 2025-03-18)",
    (48, 3): "widths 48 to 384, flow from three channels (2025-03-18 to 2025-07-14)",
    (32, 1): "widths 32 to 256 (a single revision of 2025-07-14)",
}


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network and the spacing of the grid on which it was trained.

    Args:
        network: `network(moving, fixed) -> (warped, displacement)` on (1, 1, D, H, W) in [0, 1].
        spacing_mm: voxel spacing of the training grid; None if it is unknown.
    """

    network: nn.Module
    spacing_mm: float | None = None


class _Layout(TypedDict):
    """The content of `NestedMorph.config`."""

    official: bool
    keep_unused: NotRequired[bool]
    diffeomorphic: NotRequired[bool]
    flow_head: NotRequired[FlowHead]
    mixer: NotRequired[str]
    width: NotRequired[int]
    norm: NotRequired[Norm]


class _Training(TypedDict):
    """The options of the training that a registration needs."""

    spacing_mm: NotRequired[float | None]


def read_trained_network(path: str | os.PathLike[str]) -> TrainedNetwork:
    """Read weights of NestedMorph and, if the file records it, the spacing at which they were trained.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights of NestedMorph, see `load_nestedmorph`.
    """
    network = load_nestedmorph(path)
    return TrainedNetwork(network, (read_training_options(path) or {}).get("spacing_mm"))


def read_training_options(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the options of a training ("spacing_mm", "orientation", ...) from its weights; None if there are none.

    Args:
        path: a file written by `export_network`, a Lightning checkpoint of `RegistrationModule`, or any other weights.

    Raises:
        ValueError: the file is damaged, or the spacing in it is not a positive number.
    """
    path = Path(path)
    options: dict[str, Any] | None = None
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (safetensors.SafetensorError, OSError, MemoryError) as error:
            raise ValueError(f"{path.name} is not a readable safetensors file: {error}") from None
        if "training" in metadata:
            options = parse_json(metadata["training"], f"the training options in {path.name}")
    elif path.suffix == ".ckpt":
        content = read_plain(path, "checkpoint")
        parameters = content.get("hyper_parameters", {}) if isinstance(content, dict) else {}
        if "spacing_mm" in parameters:
            options = parameters | {"orientation": "RAS"}
    if options is not None:
        check_record(options, _Training, f"the training options in {path.name}")
        spacing = options.get("spacing_mm")
        if spacing is not None and spacing <= 0:
            raise ValueError(f"{path.name} is damaged: spacing_mm must be above 0, got {spacing}")
    return options


def load_nestedmorph(
    path: str | os.PathLike[str],
    *,
    official: bool | None = None,
    flow_head: FlowHead | None = None,
    unused: Literal["drop", "keep"] = "drop",
) -> NestedMorph:
    """Load a model in evaluation mode from a file of weights.

    No code in the file is executed: pickles are read with `weights_only=True`.

    Args:
        path: a published checkpoint (`.pth.tar`: epoch, state_dict, best_dsc, optimizer), a state_dict saved by
            PyTorch, a checkpoint of our training (`.ckpt`), or a safetensors file.
        official: whether the weights were trained in the published layout. This is needed only if the file does not
            record its layout and is not a published checkpoint; otherwise it must agree with the record. A bare
            state_dict with exactly the published names is read as official, with a warning.
        flow_head: the flow head of the network, see `NestedMorph`. This is needed only for a file without a record that
            holds another head than the published one; otherwise it must agree with the record.
        unused: "drop" the 10.7 million parameters that the published model never uses, or "keep" them, so that
            `save_published` can write the same file again. If the file lacks them, "keep" is an error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights of NestedMorph, damaged weights, or weights of an older revision, or its
            layout is unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    contents = _read(path)
    state, record = contents.state, contents.record
    head = _head(path, record, flow_head)
    recorded_parts = {name: value for name, value in (record or {}).items() if name in ("mixer", "width", "norm")}
    parts: dict[str, Any] = recorded_parts | {"flow_head": head}
    _refuse_other_layouts(path, state, parts, recorded=record is not None)
    complete = len(state) == len(_names(keep_unused=True, **parts))
    if record is None and head != "published":
        official = bool(official)
    if record is not None:
        recorded = bool(record.get("official"))
        if official is not None and official != recorded:
            raise ValueError(f"official must be {recorded}, as recorded in {path.name}, or be left out, got {official}")
        official = recorded
    elif official is None:
        if not complete:
            raise ValueError(
                f"{path.name} does not record its layout: pass official=True for weights of the "
                "published code, official=False for the aligned layout"
            )
        if not contents.published:
            warnings.warn(
                f"{path.name} has the published names and no record of its layout; it is read as official weights",
                stacklevel=2,
            )
        official = True
    if unused == "keep" and not complete:
        raise ValueError(
            f'unused must be "drop" for {path.name}, which does not hold the unused parameters, got "keep"'
        )
    config = dict(record or {}) | {"official": official, "keep_unused": unused == "keep"}
    flags = {name: bool(config.get(name)) for name in ("official", "keep_unused", "diffeomorphic")}
    model = NestedMorph(**(parts | flags))
    wanted = model.state_dict()
    check_number_kinds(path, state, wanted)
    model.load_state_dict({name: state[name] for name in wanted})
    return model.eval()


def save_nestedmorph(path: str | os.PathLike[str], model: NestedMorph) -> None:
    """Write weights and layout as safetensors, which `load_nestedmorph` reads without further arguments.

    This example converts published weights:
    `save_nestedmorph("n.safetensors", load_nestedmorph("published.pth.tar"))`. A training writes its weights with
    `export_network`, which adds the options of the training.
    """
    write_weights(path, model.state_dict(), {RECORD: json.dumps(model.config)})


def published_state_dict(model: NestedMorph, *, unused: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return all 628 entries that the published code requires of a state_dict.

    Args:
        model: a model of the official layout, with or without the unused parameters.
        unused: source of the entries that the model lacks, such as the state_dict of the original file. By default
            they are newly initialised, which does not change any output.
    """
    if not model.official:
        raise ValueError(
            "model must have official=True: the published code would misread weights of the aligned layout"
        )
    state: dict[str, Tensor] = NestedMorph(official=True).state_dict()
    own: dict[str, Tensor] = model.state_dict()
    for source in (unused or {}, own):
        state |= {name: tensor.detach().cpu() for name, tensor in source.items() if name in state}
    return state


def save_published(
    path: str | os.PathLike[str], model: NestedMorph, *, epoch: int = 0, unused: Mapping[str, Tensor] | None = None
) -> None:
    """Write a checkpoint of the published form (`.pth.tar`) with an empty optimizer, for use with the published code.

    Args:
        path: the file to write.
        model: see `published_state_dict`.
        epoch: the epoch to record.
        unused: see `published_state_dict`.
    """
    contents = {
        "epoch": epoch,
        "state_dict": published_state_dict(model, unused=unused),
        "best_dsc": 0.0,
        "optimizer": {},
    }
    with atomic_path(path) as temporary:
        torch.save(contents, temporary)


class _Contents(NamedTuple):
    """The tensors of a file, our record of the model if there is one, and whether it is a published checkpoint."""

    state: dict[str, Tensor]
    record: Mapping[str, Any] | None
    published: bool


def _read(path: Path) -> _Contents:
    if path.suffix == ".safetensors":
        state, metadata = read_weights(path)
        record = parse_json(metadata[RECORD], f"the record in {path.name}") if RECORD in metadata else None
        if record is not None:
            check_record(record, _Layout, f"the record in {path.name}")
        return _Contents(_without_prefix(path, state), record, False)
    with torch.serialization.safe_globals(_SAFE):
        contents = read_plain(path, "file of weights")
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path.name} must hold a dictionary with weights, got {type(contents).__name__}")
    state = _without_prefix(path, contents.get("state_dict", contents))
    check_finite_weights(path, state)
    return _Contents(state, _record_of(contents), {"epoch", "state_dict", "best_dsc"} <= contents.keys())


def _record_of(contents: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Our record: under its own key, or among the hyper-parameters that Lightning stores."""
    for holder in (contents, contents.get("hyper_parameters")):
        record = holder.get(RECORD) if isinstance(holder, Mapping) else None
        if isinstance(record, Mapping):
            return record
    return None


def _without_prefix(path: Path, state: Any) -> dict[str, Tensor]:
    """The network's tensors without the prefix, such as "network.", that a training checkpoint adds to their names."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{path.name} must hold a state_dict, got {type(state).__name__}")
    end = "flow.weight"
    prefixes = [name[: -len(end)] for name in state if isinstance(name, str) and name.endswith(end)]
    if len(prefixes) != 1:
        raise ValueError(
            f"{path.name} does not hold NestedMorph's weights: expected one entry {end}, got {len(prefixes)}"
        )
    prefix = prefixes[0]
    parts = tuple(prefix + part for part in ("unet.", "flow.", "spatial_transform."))
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(parts)}


def _head(path: Path, record: Mapping[str, Any] | None, given: FlowHead | None) -> FlowHead:
    """The flow head of a file: the recorded one, or without a record the given one."""
    if record is None:
        return given or "published"
    recorded: FlowHead = record.get("flow_head", "published")
    if given not in (None, recorded):
        raise ValueError(f'flow_head must be "{recorded}", as recorded in {path.name}, or be left out, got "{given}"')
    return recorded


def _refuse_other_layouts(path: Path, state: Mapping[str, Tensor], parts: dict[str, Any], *, recorded: bool) -> None:
    first = state.get("unet.backbone.patch_embed1.proj.weight")
    flow = state["flow.weight"]
    key = (first.shape[0] if first is not None else 0, flow.shape[1] if flow.ndim == 5 else 0)
    if (key in _OLDER and not recorded) or "spatial_transform.grid" in state:
        which = _OLDER.get(key, "one that stores its sampling grid")
        raise ValueError(
            f"{path.name} comes from an older revision of the published code, {which}, and cannot be loaded; "
            "use weights with widths 48 to 384 and flow from one channel (2025-07-14 and later)"
        )
    try:
        complete, lean = (_names(keep_unused=kept, **parts) for kept in (True, False))
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
    missing = sorted(lean.keys() - state.keys())
    unknown = sorted(state.keys() - complete.keys())
    if missing or unknown:
        raise ValueError(
            f"{path.name} does not fit NestedMorph: {len(missing)} entries are missing{_first(missing)}, "
            f"{len(unknown)} are unknown{_first(unknown)}"
        )
    for name, tensor in state.items():
        if tensor.shape != complete[name]:
            raise ValueError(f"{path.name}: {name} must have shape {tuple(complete[name])}, got {tuple(tensor.shape)}")


def _first(names: list[str]) -> str:
    return f" (such as {names[0]})" if names else ""


def _names(*, keep_unused: bool, **parts: Any) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = NestedMorph(keep_unused=keep_unused, **parts)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
