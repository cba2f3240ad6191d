"""Files with NestedMorph's weights: the published form, Lightning checkpoints, safetensors.

The published layout and the aligned one (see `NestedMorph`) have tensors of the same names and shapes, so the names
cannot tell which one a file needs: our files say it, and a file that does not say it is refused or named in a warning.
"""

import json
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..runs.files import atomic_path
from .nestedmorph import NestedMorph


def read_training_options(path: str | os.PathLike) -> dict[str, Any] | None:
    """The options that a network was trained with ("spacing_mm", "orientation", ...); None if the file does not say.

    Args:
        path: written by `export_network`, a Lightning checkpoint of `RegistrationModule`, or any other weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return json.loads(metadata["training"]) if "training" in metadata else None
    if path.suffix == ".ckpt":
        options = torch.load(path, map_location="cpu", weights_only=True).get("hyper_parameters", {})
        return options | {"orientation": "RAS"} if "spacing_mm" in options else None
    return None


RECORD = "nestedmorph"  # key of the metadata, or of a checkpoint's dictionary, that holds `NestedMorph.config`

_scalar: Any = np.float64().__reduce__()[0]  # numpy._core.multiarray.scalar
# The published files keep the best score as a NumPy scalar; older NumPy wrote it under another module's name.
_SAFE: list[Any] = [(_scalar, "numpy.core.multiarray.scalar"), _scalar, np.dtype, np.dtypes.Float64DType]

# (channels of the first stage, input channels of the flow head) of the revisions before the present one
_OLDER = {
    (128, 3): "widths 128 to 1024, two blocks per stage (2024-12-20 to 2025-03-18)",
    (48, 3): "widths 48 to 384, flow from three channels (2025-03-18 to 2025-07-14)",
    (32, 1): "widths 32 to 256 (a single revision of 2025-07-14)",
}


def load_nestedmorph(
    path: str | os.PathLike, *, official: bool | None = None, unused: Literal["drop", "keep"] = "drop"
) -> NestedMorph:
    """A model in evaluation mode with the weights of a file.

    Nothing in the file is executed: pickles are read with `weights_only=True`.

    Args:
        path: a published checkpoint (`.pth.tar`: epoch, state_dict, best_dsc, optimizer), a state_dict saved by
            PyTorch, a checkpoint of our training (`.ckpt`), or a safetensors file.
        official: which layout the weights were trained in. Needed only where the file does not say it and is not a
            published checkpoint; a file that says otherwise is refused. A bare state_dict of exactly the published
            names is taken as official, with a warning.
        unused: "drop" the 10.7 million parameters that the published model never uses, or "keep" them, so that
            `save_published` can write the same file again. A file without them cannot "keep" them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file with NestedMorph weights, weights of an older revision, or the layout is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    state, record, published = _read(path)
    _refuse_other_layouts(path, state)
    complete = len(state) == len(_names(keep_unused=True))
    if record is not None:
        recorded = bool(record.get("official"))
        if official is not None and official != recorded:
            raise ValueError(f"official must be {recorded}, as {path.name} records, or not be given, got {official}")
        official = recorded
    elif official is None:
        if not complete:
            raise ValueError(
                f"{path.name} does not say in which layout it was trained: pass official=True for weights of the "
                "published code, official=False for the aligned layout"
            )
        if not published:
            warnings.warn(
                f"{path.name} has the published names and no record of its layout: taken as official weights",
                stacklevel=2,
            )
        official = True
    if unused == "keep" and not complete:
        raise ValueError(
            f'unused must be "drop" for {path.name}, which does not hold the unused parameters, got "keep"'
        )
    config = dict(record or {}) | {"official": official, "keep_unused": unused == "keep"}
    model = NestedMorph(**{name: bool(config.get(name)) for name in ("official", "keep_unused", "diffeomorphic")})
    wanted = model.state_dict()
    model.load_state_dict({name: state[name] for name in wanted})
    return model.eval()


def save_nestedmorph(path: str | os.PathLike, model: NestedMorph) -> None:
    """Write weights and layout as safetensors, which `load_nestedmorph` reads without being told anything."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        # save_file would give a file that its owner alone can read
        temporary.write_bytes(safetensors.torch.save(state, {RECORD: json.dumps(model.config)}))


def published_state_dict(model: NestedMorph, *, unused: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """All 628 entries that the published code loads strictly.

    Args:
        model: of the official layout, with or without the unused parameters.
        unused: where to take entries from that the model does not carry, such as the state_dict of the original file;
            they are freshly initialised if not given, which changes no output.
    """
    if not model.official:
        raise ValueError(
            "model must have official=True: the published code would misread weights of the aligned layout"
        )
    state = NestedMorph(official=True).state_dict()
    own = model.state_dict()
    for source in (unused or {}, own):
        state |= {name: tensor.detach().cpu() for name, tensor in source.items() if name in state}
    return state


def save_published(
    path: str | os.PathLike, model: NestedMorph, *, epoch: int = 0, unused: Mapping[str, Tensor] | None = None
) -> None:
    """Write a checkpoint of the published form (`.pth.tar`) with an empty optimizer; see `published_state_dict`."""
    contents = {
        "epoch": epoch,
        "state_dict": published_state_dict(model, unused=unused),
        "best_dsc": 0.0,
        "optimizer": {},
    }
    with atomic_path(path) as temporary:
        torch.save(contents, temporary)


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any] | None, bool]:
    """The tensors, our record of the model (None if there is none), and whether this is a published checkpoint."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is not a dictionary
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path.name} is not a safetensors file: {error}") from error
        record = json.loads(metadata[RECORD]) if RECORD in metadata else None
        return _without_prefix(path, state), record, False
    try:
        with torch.serialization.safe_globals(_SAFE):
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{path.name} cannot be read as plain weights: {str(error).splitlines()[0]}") from error
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path.name} must hold a dictionary with weights, got {type(contents).__name__}")
    state = contents.get("state_dict", contents)
    record = _record_of(contents)
    return _without_prefix(path, state), record, {"epoch", "state_dict", "best_dsc"} <= contents.keys()


def _record_of(contents: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Our record: under its own key, or among the hyper-parameters that Lightning stores."""
    parameters = contents.get("hyper_parameters")
    for holder in (contents, parameters):
        if isinstance(holder, Mapping) and isinstance(holder.get(RECORD), Mapping):
            return holder[RECORD]
    return None


def _without_prefix(path: Path, state: Any) -> dict[str, Tensor]:
    """The network's own tensors: a training checkpoint has them below some attribute such as "network."."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{path.name} must hold a state_dict, got {type(state).__name__}")
    end = "flow.weight"
    prefixes = [name[: -len(end)] for name in state if isinstance(name, str) and name.endswith(end)]
    if len(prefixes) != 1:
        raise ValueError(
            f"{path.name} does not hold NestedMorph's weights: it needs one entry {end}, got {len(prefixes)}"
        )
    prefix = prefixes[0]
    parts = tuple(prefix + part for part in ("unet.", "flow.", "spatial_transform."))
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(parts)}


def _refuse_other_layouts(path: Path, state: Mapping[str, Tensor]) -> None:
    first = state.get("unet.backbone.patch_embed1.proj.weight")
    flow = state["flow.weight"]
    key = (first.shape[0] if first is not None else 0, flow.shape[1] if flow.ndim == 5 else 0)
    if key in _OLDER or "spatial_transform.grid" in state:
        which = _OLDER.get(key, "one that stores its sampling grid")
        raise ValueError(
            f"{path.name} comes from an older revision of the published code, {which}, which cannot be loaded; "
            "needed are widths 48 to 384 with flow from one channel (2025-07-14 and later)"
        )
    complete, lean = _names(keep_unused=True), _names(keep_unused=False)
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


def _names(*, keep_unused: bool) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = NestedMorph(official=True, keep_unused=keep_unused)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
