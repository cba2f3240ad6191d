"""OAT as an exported program with dynamic sizes."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..runs.onnx_file import Exportable, Size
from .appearance import CROP_SIZE
from .oat import BEGIN, OAT, SceneBatch
from .weights import WeightsInfo


class OneCallOAT(nn.Module):
    """OAT with tensors as arguments and one path for each scene: scores (S, T, N + 2) as `OAT.forward` gives them."""

    exported_as = "OAT"

    def __init__(self, network: OAT) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        position: Tensor,
        present: Tensor,
        target: Tensor,
        shown: Tensor,
        flagged: Tensor,
        previous: Tensor,
        appearance: Tensor | None = None,
    ) -> Tensor:
        """The arguments are the fields of `SceneBatch` and `previous` of `OAT.forward`."""
        scenes = SceneBatch(position, present, target, shown, flagged, appearance)
        scores: Tensor = self.network(scenes, torch.arange(previous.shape[0], device=previous.device), previous)
        return scores


def exportable(network: OAT, info: WeightsInfo, *, weights: Path | None = None) -> Exportable:
    """The network with the description that its export needs.

    Args:
        network: in evaluation mode.
        info: the description of its weights.
        weights: the weight file.
    """
    objects = ("scenes", "objects")
    inputs: dict[str, tuple[int | str, ...]] = {
        "position": (*objects, 2),
        "present": objects,
        "target": ("scenes",),
        "shown": ("scenes",),
        "flagged": ("scenes",),
        "previous": ("scenes", "steps"),
    }
    looks: dict[str, tuple[int, ...]] = {
        "cnn": (3, *CROP_SIZE),
        "features": (network.arguments["features"],),
        "none": (),
    }
    look = looks[network.appearance]
    if look:
        inputs["appearance"] = (*objects, *look)
    most = int(network.arguments["steps"])

    def example(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        scenes, count, steps = sizes["scenes"], sizes["objects"], sizes["steps"]
        grid = torch.tensor([network.rows, network.columns])
        present = torch.ones(scenes, count, dtype=torch.bool)
        present[-1, 2:] = False
        yes = torch.ones(scenes, dtype=torch.bool)
        previous = torch.randint(2, (scenes, steps), generator=generator)
        previous[:, 0] = BEGIN
        position = (torch.rand(scenes, count, 2, generator=generator) * grid).floor()
        crops = (torch.rand(scenes, count, *look, generator=generator),) if look else ()
        return position, present, torch.zeros(scenes, dtype=torch.long), yes, yes.clone(), previous, *crops

    given = info.target_position == "given"
    return Exportable(
        network=OneCallOAT(network).eval(),
        inputs=inputs,
        outputs=("scores",),
        sizes={
            "scenes": Size(meaning="scenes, with a path each"),
            "objects": Size(least=2, meaning="objects of the largest scene"),
            "steps": Size(most=most, meaning="tokens of the path so far, with the first one"),
        },
        example=example,
        tried=({"scenes": 2, "objects": 5, "steps": 4}, {"scenes": 3, "objects": 9, "steps": 7}),
        preprocessing={
            "position": f"row and column of each object, in places of a grid of {network.rows} x {network.columns}",
            "present": "false for the padding after the last object of a scene",
            "target": "index of the target; -1 if there is none",
            "shown": f"{str(given).lower()} for these weights: whether the position of the target is given",
            "flagged": f"{str(given).lower()} for these weights: whether fixations on the target are marked",
            "previous": f"{BEGIN}, then the indices of the objects fixated so far",
            "appearance": {"cnn": "crops of 150 x 93 pixels, RGB in 0..1", "features": list(info.features)}.get(
                network.appearance, "none"
            ),
            "scores": "for each step, scores of the objects, of the end, and of the padding class, which is left out: "
            "the softmax of all but the last one is the probability of the next fixation",
            "longest": info.longest,
        },
        card=asdict(info),
        weights=weights,
    )
