"""Checkpoints from which no training can continue are refused in one line."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from voxelwave.runs.weight_file import check_claims, check_number_kinds, check_resumable, read_weights, write_weights


class Line(L.LightningModule):
    def __init__(self, width=2):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 1)

    def training_step(self, batch, _):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **options)
    trainer.fit(Line(), torch.utils.data.DataLoader(torch.ones(2, 2)))
    trainer.save_checkpoint(path)
    return path


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


def test_a_whole_checkpoint_of_the_same_network_passes(checkpoint):
    check_resumable(checkpoint, "a training", Line())


def test_a_checkpoint_of_another_network_is_refused(checkpoint):
    words = "is of another network: layer.weight has shape (1, 2) there and (1, 3) here"
    with pytest.raises(ValueError, match=re.escape(words)):
        check_resumable(checkpoint, "a training", Line(3))


def test_a_checkpoint_without_the_position_of_the_training_is_refused(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["optimizer_states"]
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="that can be resumed: it lacks optimizer_states"):
        check_resumable(tmp_path / "last.ckpt", "a training", Line())


@pytest.mark.parametrize("damage", ["empty", "text", "half", "foreign"])
def test_a_file_that_is_no_checkpoint_is_refused(checkpoint, tmp_path, damage):
    path, whole = tmp_path / "last.ckpt", checkpoint.read_bytes()
    if damage == "foreign":
        torch.save(object(), path)
    else:
        path.write_bytes({"empty": b"", "text": b"hello\n", "half": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ValueError, match="is not a readable checkpoint of a training") as caught:
        check_resumable(path, "a training", Line())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "complaint"),
    [
        ("epoch", "one", "epoch must be a whole number from 0 on, got 'one'"),
        ("global_step", -3, "global_step must be a whole number from 0 on, got -3"),
        ("loops", "abc", "does not hold the position of a training"),
        ("loops", {"fit_loop": {}}, "does not hold the position of a training"),
        ("optimizer_states", [3], "does not hold the state of an optimizer"),
        ("optimizer_states", [{"state": {0: {"m": torch.tensor([float("nan")])}}, "param_groups": [{}]}], "optimizer"),
        ("callbacks", {"x": 3}, "does not hold the states of callbacks"),
        ("callbacks", {"Best": {"weights": {"w": torch.tensor(float("inf"))}}}, "holds NaN or infinite numbers"),
    ],
)
def test_a_position_that_no_trainer_wrote_is_refused(checkpoint, tmp_path, part, value, complaint):
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, part: value}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=re.escape(complaint)):
        check_resumable(tmp_path / "last.ckpt", "a training", Line())


def test_a_training_without_a_score_so_far_can_be_resumed(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    callbacks = {"EarlyStopping": {"best_score": torch.tensor(float("inf")), "wait_count": 0}}
    torch.save({**content, "callbacks": callbacks}, tmp_path / "last.ckpt")
    check_resumable(tmp_path / "last.ckpt", "a training", Line())


def test_flipped_bytes_within_the_weights_are_found(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    weights = content["state_dict"]["layer.weight"].numpy().tobytes()
    whole = checkpoint.read_bytes()
    assert whole.count(weights) >= 1
    (tmp_path / "last.ckpt").write_bytes(whole.replace(weights, bytes(len(weights))))
    with pytest.raises(ValueError, match=r"is not a readable checkpoint of a training: \S+ in it is damaged"):
        check_resumable(tmp_path / "last.ckpt", "a training", Line())


def test_whole_numbers_in_place_of_weights_are_refused():
    state = {"layer.weight": torch.ones(1, 2, dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged: layer\.weight must be torch\.float32, got torch"):
        check_number_kinds(Path("w.safetensors"), state, Line().state_dict())


@pytest.mark.parametrize("arguments", [{"width": 10**9}, {"depths": [1, -2]}, {"width": float("nan")}])
def test_a_description_of_an_impossible_network_is_refused(arguments):
    with pytest.raises(ValueError, match="claims a network of impossible size"):
        check_claims(Path("w.safetensors"), arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged_are_not_written(tmp_path, value):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.ones(2)}, {})
    with pytest.raises(ValueError, match=r"w\.safetensors is not written: b holds NaN or .* lower the learning rate"):
        write_weights(path, {"a": torch.zeros(2), "b": torch.tensor([1.0, value])}, {})
    assert read_weights(path)[0]["a"].tolist() == [1, 1]
