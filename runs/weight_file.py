"""Weight files and checkpoints, read by safetensors and `weights_only=True`, so that no code in a file is executed."""

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from .files import atomic_path
from .words import one_line

_LARGEST_CLAIM = 16_384  # limit of each number in the description of a network, and of their sum
_POSITION = ("pytorch-lightning_version", "epoch", "global_step", "loops", "optimizer_states", "lr_schedulers")
# states of callbacks that are infinite until there is a first score
_SCORES = ("best_score", "best_model_score", "current_score", "kth_value", "best_k_models")


def write_weights(path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and string metadata as safetensors, completely or not at all.

    Args:
        path: the file to write; must end in .safetensors.
        state: name -> tensor, on any device.
        metadata: text entries for the file's header.

    Raises:
        ValueError: the path has another suffix, or a tensor is not finite.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{path} is not written: {name} holds NaN or infinite numbers, so the training diverged; lower the "
                "learning rate"
            )
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        # safetensors' own save_file creates files that only their owner may read
        temporary.write_bytes(save(contiguous, metadata))


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors on the CPU, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds NaN or infinite weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dictionary)
    except (safetensors.SafetensorError, OSError, MemoryError) as error:
        raise ValueError(f"{path.name} is not a readable safetensors file: {error}") from None
    check_finite_weights(path, state)
    return state, metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors; empty if the file is not one."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError, MemoryError):
        return {}


def read_checkpoint(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read the dictionary of a training checkpoint onto the CPU.

    Args:
        path: a file written by a Lightning trainer.
        what: the kind of training, for the error, such as "an EEG training".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is not a checkpoint, or holds NaN or infinite weights.
    """
    path = Path(path)
    content = read_plain(path, f"checkpoint of {what}")
    _check_sums(path, what)
    parts = ("hyper_parameters", "state_dict")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in parts):
        raise ValueError(f"{path} is not a checkpoint of {what}")
    check_finite_weights(path, content["state_dict"])
    return content


def check_resumable(path: str | os.PathLike[str], what: str, module: nn.Module) -> None:
    """Refuse a checkpoint that a Lightning trainer cannot continue with a module.

    Args:
        path: the checkpoint to resume from.
        what: the kind of training, for the error, such as "an EEG training".
        module: the module that is trained.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, lacks the position of the training, or is of another network.
    """
    content = read_checkpoint(path, what)
    missing = [part for part in _POSITION if part not in content]
    if missing:
        raise ValueError(f"{path} is not a checkpoint of {what} that can be resumed: it lacks {', '.join(missing)}")
    _check_position(Path(path), content)
    kept = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in content["state_dict"].items()}
    needed = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    other = next((name for name in sorted({*kept, *needed}) if kept.get(name) != needed.get(name)), None)
    if other is not None:
        raise ValueError(
            f"{path} is of another network: {other} has shape {kept.get(other)} there and {needed.get(other)} here; "
            "resume with the options of the first run, or choose another --output"
        )


def _check_position(path: Path, content: dict[str, Any]) -> None:
    """Refuse counters, states of optimizers and states of callbacks that a Lightning trainer does not write."""
    counts = {name: content[name] for name in ("epoch", "global_step")}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{path} is damaged: {name} must be a whole number from 0 on, got {count!r}")
    loop = content["loops"].get("fit_loop") if isinstance(content["loops"], dict) else None
    parts = ("state_dict", "epoch_progress", "epoch_loop.batch_progress")
    if not isinstance(loop, dict) or not all(isinstance(loop.get(part), dict) for part in parts):
        raise ValueError(f"{path} is damaged: it does not hold the position of a training")
    states = content["optimizer_states"]
    if not isinstance(states, list) or not all(
        isinstance(state, dict) and state.get("param_groups") and "state" in state for state in states
    ):
        raise ValueError(f"{path} is damaged: it does not hold the state of an optimizer")
    callbacks = content.get("callbacks", {})
    if not isinstance(callbacks, dict) or not all(isinstance(state, dict) for state in callbacks.values()):
        raise ValueError(f"{path} is damaged: it does not hold the states of callbacks")
    kept = [{name: value for name, value in state.items() if name not in _SCORES} for state in callbacks.values()]
    for part, values in (("an optimizer", states), ("a callback", kept)):
        for tensor in _tensors(values):
            check_finite_weights(path, {f"the state of {part}": tensor})


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested mappings and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _check_sums(path: Path, what: str) -> None:
    """Refuse a checkpoint whose checksums, which torch does not check, do not fit its content."""
    if not zipfile.is_zipfile(path):
        return  # torch reports it
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{path} is not a readable checkpoint of {what}: {damaged} in it is damaged")


def read_plain(path: str | os.PathLike[str], what: str) -> Any:
    """Read the tensors and plain values that PyTorch pickled into a file onto the CPU.

    Args:
        path: a file written by `torch.save`.
        what: the kind of file, for the error, such as "checkpoint".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds other objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # unpicklers fail in many ways on damaged data, often without a message
        reason = "it is damaged, or holds more than tensors and plain values"
        if isinstance(error, OSError | RuntimeError):
            reason = one_line(error).split(". This is an internal miniz error")[0][:120]
    raise ValueError(f"{path} is not a readable {what}: {reason}")


def check_claims(path: Path, arguments: Any) -> None:
    """Refuse the description of a network with implausible or negative numbers of layers or channels.

    Args:
        path: the weight file.
        arguments: the arguments of the network, as plain values.

    Raises:
        ValueError: a number is too large or negative; the message names the file.
    """
    total, left = 0.0, [arguments]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
            total += len(value)
        elif isinstance(value, int | float):
            total += value if math.isfinite(value) and value >= 0 else math.inf
    if total > _LARGEST_CLAIM:
        raise ValueError(f"{path.name} is damaged: its description claims a network of impossible size")


def check_number_kinds(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse integers in place of a network's fractions, or the reverse, which torch would round silently.

    Raises:
        ValueError: the kind of a tensor differs; the message names the file and the first such tensor.
    """
    for name, tensor in expected.items():
        if name in state and state[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{path.name} is damaged: {name} must be {tensor.dtype}, got {state[name].dtype}")


def check_finite_weights(path: Path, state: Mapping[str, Any]) -> None:
    """Refuse weights with NaN or infinity, since every result computed with them would also be NaN or infinite.

    Raises:
        ValueError: a weight is not finite; the message names the file and the first such tensor.
    """
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path.name} is damaged: {name} holds NaN or infinite numbers; get the file again")
