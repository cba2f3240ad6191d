"""A pass through each network and back on the meta device, which has no values: one that asked for a value would fail.

On a GPU, it would wait for the device, or copy from it, in each step of a training.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from voxelwave.eeg.adhdeepnet import ADHDeepNet
from voxelwave.eeg.eegnet import EEGNet
from voxelwave.eeg.long_recording import LongRecordingNet
from voxelwave.eeg.module import EEGModule
from voxelwave.registration.nestedmorph import NestedMorph
from voxelwave.restoration.mair import MaIR
from voxelwave.scanpath.oat import OAT, SceneBatch

META = torch.device("meta")


def nestedmorph(**arguments) -> Tensor:
    warped, displacement = NestedMorph(**arguments).to(META)(*torch.rand(2, 1, 1, 64, 64, 64, device=META))
    return warped.mean() + displacement.square().mean()


def classifier(network: torch.nn.Module, *shape: int) -> Tensor:
    label = torch.zeros(shape[0], dtype=torch.long, device=META)
    return F.cross_entropy(network.to(META)(torch.rand(*shape, device=META)), label)


def oat(**arguments) -> Tensor:
    network = OAT(rows=3, columns=4, appearance="none", steps=8, **arguments).to(META)
    yes = torch.ones(2, dtype=torch.bool, device=META)
    present = torch.ones(2, 12, dtype=torch.bool, device=META)
    scenes = SceneBatch(torch.zeros(2, 12, 2, device=META), present, yes.long(), yes, yes)
    return network(scenes, torch.arange(2, device=META), torch.zeros(2, 5, dtype=torch.long, device=META)).mean()


LOSSES = {
    "NestedMorph": nestedmorph,
    "NestedMorph with routing": lambda: nestedmorph(
        flow_head="quarter", mixer="bilevel(regions=4, top=4)", diffeomorphic=True
    ),
    "MaIR": lambda: MaIR.from_variant("mair-t-x2").to(META)(torch.rand(1, 3, 32, 32, device=META)).mean(),
    "ADHDeepNet": lambda: classifier(ADHDeepNet(), 8, 19, 512),
    "EEGNet": lambda: classifier(EEGNet(19, 512, 2, 128.0), 8, 19, 512),
    "LongRecordingNet": lambda: classifier(LongRecordingNet(19, 2, 128), 2, 19, 1280),
    "LongRecordingNet, two lengths": lambda: (
        LongRecordingNet(19, 2, 128).to(META)(torch.rand(2, 19, 1280, device=META), torch.tensor([1280, 700])).mean()
    ),
    "OAT": oat,
    "OAT with slots": lambda: oat(mixer="workspace(slots=3, top=2)"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_pass_and_its_gradients_need_no_value_from_the_device(name):
    loss = LOSSES[name]()
    loss.backward()
    assert loss.device == META
    assert loss.shape == ()


def test_a_training_step_of_eeg_needs_no_value_and_keeps_the_lengths_on_the_cpu():
    module = EEGModule(network="long_recording", arguments={"n_chans": 19, "n_outputs": 2, "sfreq": 128}).to(META)
    module.log = lambda *_, **__: None
    batch = {
        "x": torch.rand(2, 19, 1280),
        "noise": torch.zeros(2),
        "label": torch.zeros(2, dtype=torch.long),
        "samples": torch.tensor([1280, 700]),
    }
    moved = module.transfer_batch_to_device(batch, META, 0)
    assert {name: tensor.device.type for name, tensor in moved.items()} == {
        "x": "meta",
        "noise": "meta",
        "label": "meta",
        "samples": "cpu",
    }
    module.training_step(moved, 0).backward()
