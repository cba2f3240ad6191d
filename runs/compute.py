"""Choice of the number of CPU threads and of the device."""

import torch


def use_threads(threads: int | None) -> None:
    """Set the number of CPU threads that torch uses; None leaves it unchanged."""
    if threads is not None:
        torch.set_num_threads(threads)


def choose_device(device: str) -> str:
    """The device for "auto", "cpu" or "cuda"; "auto" uses a GPU if there is one.

    Raises:
        ValueError: the device is "cuda" but there is no GPU, or the device is unknown.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device must be "auto", "cpu" or "cuda", got {device!r}')
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("--device cuda needs a CUDA GPU; none was found: drop the option or use --device cpu")
    return ("cuda" if available else "cpu") if device == "auto" else device
