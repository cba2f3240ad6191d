"""Fixtures of the kernel tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

# PyTorch stores its constructors when a default device is first used, which must happen before they are replaced
with torch.device("cpu"):
    torch.zeros(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill uninitialised tensors with NaN (integers: the largest value), so that a kernel that reads them fails."""

    def poisoned(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def created(*arguments: Any, **options: Any) -> Tensor:
            tensor = create(*arguments, **options)
            with torch.no_grad():
                if tensor.is_floating_point():
                    return tensor.fill_(float("nan"))
                # as float32, bytes of 255 are NaN too
                return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)

        return created

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
