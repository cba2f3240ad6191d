"""`voxelwave attention explain` of pairs of scans says whether a registration network needs both images."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from voxelwave.apps.attention import pairs
from voxelwave.apps.attention.explain import in_words
from voxelwave.apps.attention.heads import describe_heads, removal
from voxelwave.apps.attention.pairs import look_at_pairs, pair_case, pair_input, registration_subject
from voxelwave.apps.cli import main
from voxelwave.kernels.attention.baselines import SoftmaxAttention
from voxelwave.kernels.attention.layer import MixingLayer
from voxelwave.registration import nestedmorph
from voxelwave.registration.nestedmorph import NestedMorph
from voxelwave.registration.nestedmorph_files import save_nestedmorph
from voxelwave.volumes import Volume, write_volume

SIZE = (16, 14, 12)


def head(centre, size=SIZE):
    """A bright ball with a soft edge, (1, D, H, W)."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
    radius = sum((axis - c).square() for axis, c in zip(axes, centre, strict=True)).sqrt()
    return torch.sigmoid(4 - radius)[None]


class CentreNetwork(nn.Module):
    """The displacement is the distance of the images' centres of mass, or twice the fixed one's distance from a point.

    The attention layer reads both images or, if `blind`, the fixed one alone; its output is not used.
    """

    def __init__(self, blind):
        super().__init__()
        self.blind = blind
        self.mixing = MixingLayer(4, 2, SoftmaxAttention())

    def forward(self, moving, fixed):
        source = fixed if self.blind else moving
        self.mixing(torch.nn.functional.adaptive_avg_pool1d(source.flatten(2), 32).view(1, 8, 4))
        target = torch.tensor([3.0, 3.0, 3.0]) if self.blind else self.centre(moving)
        shift = (target - self.centre(fixed)).view(1, 3, 1, 1, 1)
        return moving, shift.expand(1, 3, *fixed.shape[2:])

    @staticmethod
    def centre(image):
        weights = image[0, 0].clamp_min(1e-9)
        axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in weights.shape), indexing="ij")
        return torch.stack([(axis * weights).sum() / weights.sum() for axis in axes])


def explained(model, **options):
    pair = pair_input(head((7, 7, 6)), head((6, 6, 5)), **options)
    subject = registration_subject(model, [pair_case(model, pair, "a to b")], [])
    return subject, look_at_pairs(subject)


def test_a_network_that_ignores_the_moving_image_is_called_out():
    subject, where = explained(CentreNetwork(blind=True))
    assert "ignores the moving image" in where.warnings[0]
    assert "cannot align these scans" in where.warnings[0]
    rows = describe_heads(subject)
    assert "ignores the moving image" in in_words(subject, rows, removal(subject, rows), where)[0]
    assert set(where.dependence.values()) == {0.0}
    by_part = {row.part: row.effect.mean for row in where.reliance}
    assert by_part.pop("the fixed image, replaced by an empty one") > 1
    assert set(by_part.values()) == {0.0}


def test_a_network_that_uses_both_images_is_not_called_out():
    _, where = explained(CentreNetwork(blind=False), spacing=(2.0, 2.0, 2.0))
    assert where.warnings == []
    words = " ".join(where.sentences)
    assert "It uses the moving image" in words
    assert "one pair, so their spread is not known" in words
    assert min(where.dependence.values()) > 0.05
    shifted = next(row for row in where.reliance if "shifted" in row.part)
    assert shifted.effect.mean == pytest.approx(8, abs=0.8)  # 4 voxels of 2 mm, less what leaves the image


def test_a_network_that_ignores_the_fixed_image_or_does_nothing_is_called_out():
    class Fixed(CentreNetwork):
        def forward(self, moving, fixed):
            return super().forward(moving, head((6, 6, 5))[None])

    class Still(CentreNetwork):
        def forward(self, moving, fixed):
            warped, displacement = super().forward(moving, fixed)
            return warped, 1e-6 * displacement

    assert "ignores the fixed image" in explained(Fixed(blind=False))[1].warnings[0]
    assert "does almost nothing" in explained(Still(blind=False))[1].warnings[0]


def test_a_network_that_hardly_follows_a_shift_is_named():
    class Bright(CentreNetwork):
        """The displacement follows the brightness of the moving image, not its place."""

        def forward(self, moving, fixed):
            warped, displacement = super().forward(moving, fixed)
            return warped, displacement * 0 + 3 * moving.max() + 0.1 * displacement.mean()

    warnings = explained(Bright(blind=False))[1].warnings
    assert "hardly aligns by it" in warnings[0]
    assert "ignores" not in warnings[0]


@pytest.fixture
def narrow(monkeypatch):
    """A network of the same structure that is ten times cheaper."""
    monkeypatch.setattr(nestedmorph, "WIDTHS", (16, 32, 64, 128))


def trained_like(mixer=None):
    """NestedMorph with random weights whose displacements are some voxels long."""
    torch.manual_seed(0)
    model = NestedMorph(mixer=mixer).eval()
    nn.init.normal_(model.flow.weight, std=1.0)
    return model


@pytest.mark.parametrize("mixer", [None, "bilevel(region=[1, 1, 1], top=2)"])
def test_nestedmorph_with_a_moving_image_that_is_multiplied_by_zero(narrow, mixer):
    model = trained_like(mixer)
    size = (32, 32, 32)
    moving, fixed = head((14, 15, 16), size), head((15, 16, 15), size)
    label = torch.zeros(size, dtype=torch.bool)
    label[10:14, 12:18, 14:20] = True
    pair = pair_input(moving, fixed, label=label)
    subject = registration_subject(model, [pair_case(model, pair, "a to b")], [])
    where = look_at_pairs(subject)
    assert "ignores" not in " ".join(where.warnings)
    assert max(where.dependence.values()) > 0
    assert "The label gets" in " ".join(where.sentences)
    assert "side its box." in " ".join(where.sentences)
    assert where.pictures[0][0].count("<svg") == 1
    assert "Blue box" in where.pictures[0][1]
    with torch.no_grad():
        model.unet.backbone.patch_embed1.proj.weight[:, 0] = 0
        if mixer is not None:
            for parameter in model.unet.backbone.of_moving.parameters():
                parameter.zero_()
    where = look_at_pairs(subject)
    assert "ignores the moving image" in where.warnings[0]
    assert max(where.dependence.values()) == 0


def test_the_attention_over_the_image_is_that_of_the_whole_map(narrow):
    from voxelwave.attention_analysis.trace import record_run

    model = trained_like()
    pair = pair_input(head((14, 15, 16), (32, 32, 32)), head((15, 16, 15), (32, 32, 32)))
    case = pair_case(model, pair, "a to b")
    whole, streamed = (record_run(model, case.run, most_keys=most) for most in (None, 100))
    assert streamed[0].weights.shape[-2] == 64 < whole[0].weights.shape[-2] == 512
    torch.testing.assert_close(streamed[0].column_means(), whole[0].column_means(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(streamed[0].weights[:, :, 0], whole[0].weights[:, :, 0], atol=1e-6, rtol=1e-4)
    assert streamed[1].received is None  # 64 keys


@pytest.fixture
def scans(tmp_path, narrow):
    """Two scans, a label map, and weights."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    for name, centre in (("moving", (14, 15, 16)), ("fixed", (15, 16, 15))):
        image = head(centre, (32, 30, 31))[0].numpy()
        image[12, 13, 14] += 0.5
        write_volume(tmp_path / f"{name}.nii.gz", Volume(image, affine))
    label = np.zeros((32, 30, 31), np.int16)
    label[11:14, 12:16, 13:17] = 7
    write_volume(tmp_path / "lesion.nii.gz", Volume(label, affine))
    save_nestedmorph(tmp_path / "net.safetensors", trained_like())
    return tmp_path


@pytest.mark.slow
def test_the_command_explains_a_pair_and_a_table_of_pairs(scans, capsys, monkeypatch):
    monkeypatch.setattr(pairs, "align_affine", lambda moving, fixed: np.eye(4))  # the scans are aligned already
    command = ["attention", "explain", "--weights", str(scans / "net.safetensors"), "--threads", "1"]
    pair = ["-i", str(scans / "moving.nii.gz"), "--fixed", str(scans / "fixed.nii.gz")]
    label = ["--label", str(scans / "lesion.nii.gz")]
    assert main([*command, *pair, *label, "-o", str(scans / "one")]) == 0
    page = (scans / "one" / "attention.html").read_text()
    assert "Blue box: the label" in page
    record = json.loads((scans / "one" / "attention.json").read_text())
    assert record["unit_of_effects"] == "mm"
    assert record["heads"][0]["effect"]["low"] is None  # a single pair has no interval
    (scans / "pairs.tsv").write_text(
        "moving\tfixed\tsubject\nmoving.nii.gz\tfixed.nii.gz\ta\nfixed.nii.gz\tmoving.nii.gz\tb\n"
    )
    assert main([*command, "-i", str(scans), "-o", str(scans / "two")]) == 0
    record = json.loads((scans / "two" / "attention.json").read_text())
    assert record["units"] == ["a", "b"]
    assert record["heads"][0]["effect"]["low"] is not None
    assert "On 2 pairs" in capsys.readouterr().out


def test_wrong_use_is_reported_in_one_line(scans, capsys):
    command = ["attention", "explain", "--weights", str(scans / "net.safetensors"), "-o", str(scans / "out")]
    assert main([*command, "-i", str(scans / "moving.nii.gz")]) == 1
    assert "need two scans, --input MOVING --fixed FIXED" in capsys.readouterr().err
    assert main([*command, "-i", str(scans / "moving.nii.gz"), "--label", str(scans / "lesion.nii.gz")]) == 2
    assert "--label belongs to the moving scan of a pair" in capsys.readouterr().err
