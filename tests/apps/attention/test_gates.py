"""`voxelwave attention explain` of ADHDeepNet shows which gates of its channels matter."""

import torch
from torch import nn

from voxelwave.apps.attention.gates import GateCase, GateSubject, describe_gates, gates_in_words
from voxelwave.eeg.adhdeepnet import ADHDeepNet


def subject_with(network, *, people=8, label=lambda person: person % 2):
    generator = torch.Generator().manual_seed(1)
    cases = []
    for person in range(people):
        windows = torch.randn(2, 3, 32, generator=generator) * (1 + 3 * (person % 2))  # the second class is louder
        cases.append(GateCase(f"{person}.edf", f"p{person}", windows, label(person)))
    return GateSubject("Gates", network, ("control", "case"), cases, [], ("p0",))


def small_network():
    torch.manual_seed(0)
    return ADHDeepNet(3, 32, sfreq=64.0, F1=2, D=1, kernel_length=4, se_nodes=2).eval().requires_grad_(False)


class PlantedGates(nn.Module):
    """All gates are 0.5, but gate 5 grows with the size of the channels' means."""

    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def forward(self, mean):
        gates = torch.full_like(mean, 0.5)
        gates[:, 5] = torch.sigmoid(self.strength * mean.abs().sum(1))
        return gates


def test_only_the_channel_that_is_read_matters():
    network = small_network()
    network.classify.weight.zero_()
    network.classify.weight[1, 7] = 5.0
    gates = describe_gates(subject_with(network))
    assert len(gates) == 512
    second = [gate for gate in gates if gate.block == 2]
    assert [gate.channel for gate in second if gate.effect.mean > 0] == [7]
    assert all(0 <= gate.mean <= 1 for gate in gates)
    words = " ".join(gates_in_words(subject_with(network), gates))
    assert "On 8 recordings of 8 subjects" in words
    assert "optimistic" in words


def test_a_gate_that_follows_the_class_is_found_and_constant_gates_are_not():
    network = small_network()
    network.excite1, network.excite2 = PlantedGates(0.0), PlantedGates(1.0)
    subject = subject_with(network, people=40)
    gates = describe_gates(subject)
    apart = [gate.channel for gate in gates if gate.p * len(gates) < 0.05]
    assert apart == [5]
    assert {gate.spread for gate in gates if gate.channel != 5} == {0.0}
    words = " ".join(gates_in_words(subject, gates))
    assert "1 of 512 gates differ between case and control" in words
    assert "most act as constant factors" in words


def test_without_labels_no_difference_is_stated():
    subject = subject_with(small_network(), label=lambda person: None)
    gates = describe_gates(subject)
    assert all(gate.difference is None and gate.p is None for gate in gates)
    assert "differ between" not in " ".join(gates_in_words(subject, gates))
