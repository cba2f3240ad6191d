"""Every attention mechanism can be named in a configuration file, and a model takes it or gives the reason why not."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from voxelwave.apps.arguments import parse_arguments
from voxelwave.apps.eeg.nested_options import NestedCV
from voxelwave.apps.registration.options import Train as TrainRegistration
from voxelwave.apps.scanpath.options import Train as TrainScanpath
from voxelwave.eeg.long_recording import LongRecordingNet
from voxelwave.kernels.attention.choice import NAMES
from voxelwave.registration import nestedmorph
from voxelwave.registration.module import RegistrationModule
from voxelwave.scanpath.data import PathData
from voxelwave.scanpath.estimators import build_module
from voxelwave.scanpath.planted import planted_dataset

TEXTS = {
    name: {
        "routing": "routing(clusters=3)",
        "head_split": 'head_split(mixers=["softmax", "uniform"], heads=[1, HEADS])',
    }.get(name, name)
    for name in NAMES
}
CAUSAL_ONLY = ("neural_memory", "sliding_window")
SELF_ONLY = ("power", "key_scored", "duality", *CAUSAL_ONLY)


@dataclass(frozen=True)
class User:
    """A model, and the mechanisms that it refuses with a part of the message."""

    heads: int
    refused: dict[str, str]


USERS = {
    "registration": User(
        2,
        {
            **dict.fromkeys(SELF_ONLY, "cross attention without causality"),
            "graph_window": "needs a graph of the tokens",
            "fixed_map": "cross attention without causality",
        },
    ),
    "scanpath": User(
        4,
        {
            "bilevel": "needs tokens on a grid",
            "fixed_map": "needs a largest number of tokens",
            **dict.fromkeys(CAUSAL_ONLY, "self attention without causality"),
        },
    ),
    "eeg": User(
        4,
        {
            "bilevel": "needs tokens on a grid",
            "graph_window": "needs a graph of the tokens",
            "fixed_map": "needs a largest number of tokens",
        },
    ),
}


def run_configured(user: str, text: str, folder: Path) -> torch.Tensor:
    """The output of the model of a configuration file that names the mechanism."""
    file = folder / "config.yaml"
    words = ["--config", str(file), "-o", "out"]
    if user == "registration":
        file.write_text(yaml.safe_dump({"mixer": text, "size": [32, 32, 32]}))
        train = TrainRegistration(**parse_arguments(TrainRegistration, [*words, "--pairs", "pairs.csv"], prog="train"))
        module = RegistrationModule(mixer=train.settings.mixer)
        displacement: torch.Tensor = module(*torch.rand(2, 1, 1, 32, 32, 32))[1]
        return displacement
    if user == "scanpath":
        network = {"mixer": text, "heads": 4, "d_appearance": 4, "d_position": 12, "layers": 1, "feed_forward": 16}
        file.write_text(yaml.safe_dump({"network": network}))
        options = TrainScanpath(**parse_arguments(TrainScanpath, ["data.json", *words], prog="train"))
        dataset = planted_dataset(4, seed=0)
        oat = build_module(dataset, options.network or {}, appearance="features", seed=0).network.eval()
        batch = PathData(dataset, appearance="features")[[0, 1]]
        return oat(batch.scenes, batch.scene, batch.previous).softmax(-1)  # absent objects score -inf
    file.write_text(yaml.safe_dump({"model_options": {"long_recording": {"settings": {"mixer": text, "dim": 16}}}}))
    nested = NestedCV(**parse_arguments(NestedCV, ["study", *words], prog="nested-cv"))
    settings = (nested.model_options or {})["long_recording"]["settings"]
    return LongRecordingNet(3, 2, 32.0, **settings)(torch.rand(1, 3, 320))


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_names_any_mechanism(
    user: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nestedmorph, "WIDTHS", (16, 32, 64, 128))
    text = TEXTS[name].replace("HEADS", str(USERS[user].heads - 1))
    if name in USERS[user].refused:
        with pytest.raises(ValueError, match=USERS[user].refused[name]) as caught:
            run_configured(user, text, tmp_path)
        assert "\n" not in str(caught.value)
    else:
        assert run_configured(user, text, tmp_path).isfinite().all()


def test_every_mechanism_has_a_model_that_takes_it() -> None:
    refused_by_all = set.intersection(*(set(user.refused) for user in USERS.values()))
    # a fixed map is made for one number of tokens, and the tokens of all models vary in number
    assert refused_by_all == {"fixed_map"}
